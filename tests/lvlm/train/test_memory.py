"""Memory that tuning holds all the time: against the tensors of a run, and as the documentation says it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import lvlm_memory
from sparsight.command.cli import main
from sparsight.lvlm.train.memory import run_tuning_memory
from tests.tiny_rows import few
from tests.tiny_tuning import ROTATION, SCORE, STAGE, tuning_config, with_callback

ADAM = {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"weight_decay": 0.0}}}
TWO_STAGES = {"stages": [STAGE | {"steps": 1, "train": ["projector"]}, STAGE | {"steps": 2, "train": ["layers"]}]}
CASES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "full": ({}, []),
    "adapters in half precision": ({"lora": {"rank": 2}, "loading": {"dtype": "bfloat16"}}, []),
    "stages": (TWO_STAGES, []),
    "rotation": ({}, [ROTATION]),
    "average, unpruned model": (
        {"healing": {"hidden": 0.5}, "prune": SCORE},
        [{"class_path": "callbacks.TrainableEMA"}],
    ),
}


def size(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("case", few(CASES, "average, unpruned model"))
def test_the_estimate_is_what_a_run_holds(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, callbacks = CASES[case]
    config = tuning_config(tmp_path, **(ADAM | model))
    for callback in callbacks:
        with_callback(config, callback)
    precision = "bf16-mixed" if "loading" in model else "32"
    told = ["--trainer.enable_model_summary=true", "--trainer.precision", precision]
    with caplog.at_level("INFO"):
        cli = main(["fit", "--config", str(config), *told])
    module = cli.model
    estimate = run_tuning_memory(module)
    assert f"Estimated memory:\n{estimate.text()}" in caplog.text
    frozen, trained, gradients, optimiser, average, copy = estimate.standing.values()
    named = dict(module.model.named_parameters())
    weights = [named[name.removeprefix("model.")] for name in module.trained_names()]
    assert trained == size(weights)
    assert frozen + trained == size(named.values()) + size(module.model.buffers())
    assert gradients == size(p for p in named.values() if p.requires_grad)
    states = [value for state in cli.trainer.optimizers[0].state.values() for value in state.values()]
    assert optimiser == pytest.approx(size(states), rel=0.01)
    ema = next((c for c in cli.trainer.callbacks if type(c).__name__ == "TrainableEMA"), None)
    assert average == (0 if ema is None else 2 * size(ema.average.values()))
    assert copy == (0 if module.unpruned is None else frozen + trained)
    counted, configured = lvlm_memory.estimate(yaml.safe_load(config.read_text()))
    assert sum(counted.values()) == sum(p.numel() for p in weights)
    assert configured.total == pytest.approx(estimate.total, rel=0.01)  # some buffers are made by loading


def test_sgd_has_no_state_and_a_run_without_summary_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        cli = main(["fit", "--config", str(tuning_config(tmp_path)), "--trainer.max_steps=1"])
    assert run_tuning_memory(cli.model).standing["optimiser state"] == 0
    assert "Estimated memory" not in caplog.text


def test_a_device_that_is_too_small_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsight.lvlm.train.memory.available_bytes", lambda device: 1000)
    arguments = ["--trainer.max_steps=1", "--trainer.enable_model_summary=true"]
    with pytest.warns(UserWarning, match=r"may need .* set model\.loading\.dtype to bfloat16, choose fewer layers"):
        main(["fit", "--config", str(tuning_config(tmp_path)), *arguments])


@pytest.mark.slow
def test_the_page_has_the_numbers_of_its_command() -> None:
    page = Path("docs/lvlm.md").read_text()
    assert "python -m benchmarks.lvlm_memory" in page
    rows = lvlm_memory.table().splitlines()[2:]
    assert rows == re.findall(r"^\| `\w+`.* GiB \|$", page, flags=re.MULTILINE)
    (qwen,) = (row for row in rows if row.startswith("| `qwen3_vl_2b_24gb` |"))
    recipe = Path("configs/experiment/qwen3_vl_2b_24gb.yaml").read_text()
    assert f"take {qwen.split('|')[-2].strip()} by parameter count" in recipe
