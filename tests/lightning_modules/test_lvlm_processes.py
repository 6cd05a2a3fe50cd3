"""Tuning on two processes: the same weights and scores as on one, through stages, rotation and pruning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.multiprocessing import ProcessRaisedException

from tests.tiny_extras import needs_torchao
from tests.tiny_processes import SHARDED, run_command
from tests.tiny_tuning import ROTATION, SCORE, STAGE, checkpoint, pruning, tuning_config, with_callback

LOFIT = {"class_path": "LoFiT", "init_args": {"count": 3}}
# without its cross-entropy, a mean over tokens of each process
ROUTER = {"class_path": "GammaMoD", "init_args": {"layers": [2, 3], "balance": 0.0}}
ALL = {"class_path": "sparsight.lvlm.surgery.selection.All"}
QLORA = {"loading": {"quantization": "int8"}, "lora": {"rank": 2, "alpha": 4, "dropout": 0.0}}
HEALS = {"healing": {"hidden": 0.5, "logits": 1.0, "layers": 0.5}}
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "stages": ({"stages": [STAGE | {"steps": 2, "train": ["projector"]}, STAGE | {"steps": 2}]}, {}),
    "methods": ({"recipe": [LOFIT], "stages": [STAGE | {"steps": 2, "train": ["methods"]}] * 2}, {}),
    "rotation": ({}, ROTATION),
    "pruning": ({"prune": SCORE} | HEALS, pruning(begin=2)),
    "pruning_what_is_tuned": ({"prune": SCORE | {"protect_tuned": False}, "layers": ALL}, pruning(begin=2)),
    "text_alone": ({}, {}),
    "quantised": (QLORA, {}),
}


def fit(config: Path, root: Path, *arguments: str, processes: int) -> None:
    share = [f"--data.batch_size={4 // processes}", f"--trainer.default_root_dir={root}"]
    # as many calibration batches a process see the same samples
    plain = ["fit", "--config", str(config), f"--trainer.devices={processes}", "--trainer.strategy=ddp"]
    run_command([*plain, *share, *arguments], processes=processes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=needs_torchao if kind == "quantised" else []) for kind in RUNS]
)
def test_two_processes_train_as_one(tmp_path: Path, kind: str) -> None:
    options, callback = RUNS[kind]
    config = tuning_config(tmp_path, **options)
    if callback:
        with_callback(config, callback)
    if kind == "text_alone":  # DDP waits for the gradients of a projector that no image reaches
        content = yaml.safe_load(config.read_text())
        content["data"]["init_args"]["train"] = {"class_path": "TextQuestions", "init_args": {"kinds": ["opposites"]}}
        config.write_text(yaml.safe_dump(content))
    found = {}
    for processes in (1, 2):
        fit(config, tmp_path / f"run{processes}", processes=processes)
        saved = torch.load(checkpoint(tmp_path, 4, run=f"run{processes}"), weights_only=True)
        scores = json.loads((tmp_path / f"run{processes}" / "scores_val.json").read_text())
        found[processes] = saved["state_dict"], saved["sparsight"], scores
    one, two = found[1], found[2]
    for name, value in one[0].items():
        torch.testing.assert_close(two[0][name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert {k: one[1][k] for k in ("active", "retired", "stage")} == {
        k: two[1][k] for k in ("active", "retired", "stage")
    }
    for alone, shared in zip(one[1]["removals"], two[1]["removals"], strict=True):
        measured, share = alone["measured"], shared["measured"]
        assert share["values"] == pytest.approx(measured["values"], rel=1e-3)
        assert share["samples"] == measured["samples"] and len(share["data_sha256"]) == 2
    assert [item["index"] for item in one[2]["items"]] == [item["index"] for item in two[2]["items"]] == list(range(11))
    for a, b in zip(one[2]["items"], two[2]["items"], strict=True):
        assert a["log_likelihood"] == pytest.approx(b["log_likelihood"], abs=1e-3)


def fit_sharded(config: Path, root: Path, *arguments: str) -> dict[str, Any]:
    overlay = root.with_suffix(".yaml")
    overlay.write_text(yaml.safe_dump({"trainer": {"devices": 2, "strategy": SHARDED}}))
    share = ["--data.batch_size=2", f"--trainer.default_root_dir={root}"]
    run_command(["fit", "--config", str(config), "--config", str(overlay), *share, *arguments])
    return torch.load(checkpoint(root.parent, 4, run=root.name), weights_only=True)


# what recipes for large models ask for, all at once
LEAN = {"loading": {"dtype": "bfloat16"}, "lora": {"rank": 2, "alpha": 4, "dropout": 0.0}, "prune": SCORE}


@pytest.mark.slow
@pytest.mark.parametrize("lean", [False, True], ids=["full", "lean"])
def test_sharded_frozen_and_trained_layers_train_as_on_one_process_and_resume(tmp_path: Path, lean: bool) -> None:
    # SGD with momentum: Lightning cannot load an optimiser without any state
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.5}}
    config = tuning_config(tmp_path, optimizer=optimizer, **(LEAN if lean else {}))
    arguments = ["--trainer.precision=bf16-mixed"] if lean else []
    if lean:
        with_callback(config, pruning(begin=2))
    fit(config, tmp_path / "one", *arguments, processes=1)
    wanted = torch.load(checkpoint(tmp_path, 4, run="one"), weights_only=True)
    found = fit_sharded(config, tmp_path / "two", *arguments)
    resume = ["--ckpt_path", str(checkpoint(tmp_path, 2, run="two"))]
    again = fit_sharded(config, tmp_path / "again", *arguments, *resume)
    states = [saved["state_dict"] for saved in (wanted, found, again)]
    assert states[0].keys() == states[1].keys() == states[2].keys()
    for name, value in states[0].items():
        if lean:  # the processes round other sums to bfloat16
            assert (states[1][name] - value).norm() <= 0.1 * value.norm(), name
        else:
            torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6, msg=name)
        torch.testing.assert_close(states[2][name], states[1][name], rtol=0, atol=0, msg=name)
    retired = [saved["sparsight"]["retired"] for saved in (wanted, found, again)]
    assert retired == [[2, 3] if lean else []] * 3


@pytest.mark.slow
@pytest.mark.parametrize("parts", [["methods"], ["layers", "methods"]], ids=["alone", "with_layers"])
def test_weights_of_methods_learn_beside_a_sharded_model_resume_and_travel(tmp_path: Path, parts: list[str]) -> None:
    """The model is split, and the methods' weights are whole in both processes."""
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.5}}
    stages = [STAGE | {"train": parts, "lr": 0.1}]
    config = tuning_config(tmp_path, recipe=[ROUTER], stages=stages, optimizer=optimizer)
    output = tmp_path / "export"
    fit(config, tmp_path / "one", processes=1)
    wanted = torch.load(checkpoint(tmp_path, 4, run="one"), weights_only=True)
    found = fit_sharded(config, tmp_path / "two")
    again = fit_sharded(config, tmp_path / "again", "--ckpt_path", str(checkpoint(tmp_path, 2, run="two")))
    states = [saved["state_dict"] for saved in (wanted, found, again)]
    assert states[0].keys() == states[1].keys() == states[2].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6, msg=name)
        torch.testing.assert_close(states[2][name], states[1][name], rtol=0, atol=0, msg=name)
    learnt = states[1]["method_weights.GammaMoD.weight"]
    before = torch.load(checkpoint(tmp_path, 1, run="two"), weights_only=True)["state_dict"]
    assert float((learnt - before["method_weights.GammaMoD.weight"]).abs().max()) > 1e-5
    resume = ["--ckpt_path", str(checkpoint(tmp_path, 4, run="two"))]
    run_command(["export", "--config", str(config), *resume, "--weights=raw", "--output", str(output)], processes=1)
    torch.testing.assert_close(load_file(output / "recipe.safetensors")["GammaMoD.weight"], learnt)


def test_a_method_that_uses_a_layer_out_of_its_place_is_refused_when_sharded(tmp_path: Path) -> None:
    frozen = {"class_path": "FrozenBlock"}
    stages = [STAGE | {"steps": 2, "train": ["methods"]}]
    with pytest.raises(ProcessRaisedException, match=r"FrozenBlock of model\.recipe uses a decoder layer"):
        fit_sharded(tuning_config(tmp_path, recipe=[frozen], stages=stages), tmp_path / "two")


OTHERS = {"stages": [STAGE | {"steps": 2, "train": ["projector"]}, STAGE | {"steps": 2}]}


@pytest.mark.parametrize("options", [OTHERS, RUNS["methods"][0]], ids=["other_parts", "methods_by_turns"])
def test_stages_that_train_something_else_are_refused_when_sharded(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ProcessRaisedException, match="make each stage a run of its own"):
        fit_sharded(tuning_config(tmp_path, **options), tmp_path / "two")
