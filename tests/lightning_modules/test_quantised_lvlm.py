"""An image-text model with frozen layers in 8 bits: adapters train on it, exports hold the base's own weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_modules import LVLMEvaluation, SparseLayerTuning
from sparsight.command.cli import main
from sparsight.common.errors import ConfigurationError
from sparsight.common.quantised.weights import decoded, has_codes, is_coded
from sparsight.lvlm.model.load import ModelLoading, load_lvlm
from sparsight.lvlm.model.lora import LoRA
from sparsight.lvlm.scores.parameters import ParameterChange
from sparsight.lvlm.surgery.selection import All, Explicit
from sparsight.lvlm.train.memory import tuning_memory
from sparsight.lvlm.train.stages import TuningStage
from tests.tiny_extras import needs_torchao
from tests.tiny_lvlm import save_tiny_lvlm, tiny_inputs
from tests.tiny_tuning import SCORE, STAGE, checkpoint, pruning, tuning_config, with_callback

IN_8_BITS = ModelLoading(quantization="int8")
ADAPTERS = {"rank": 2, "alpha": 4, "dropout": 0.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_lvlm(tmp_path_factory.mktemp("lvlm") / "base", "fast_vlm")


def module_of(base: Path, **options: Any) -> SparseLayerTuning:
    stages = [TuningStage(steps=1, train=["projector"]), TuningStage(steps=1)]  # layers train later
    return SparseLayerTuning(str(base), stages, layers=options.pop("layers", Explicit([1, 4])), **options)


@needs_torchao
@pytest.mark.parametrize("lora", [None, LoRA(2, 4, 0.0)], ids=["full", "adapters"])
def test_what_never_trains_is_codes_and_everything_else_is_as_it_was(base: Path, lora: LoRA | None) -> None:
    plain, module = (module_of(base, lora=lora, loading=loading) for loading in (ModelLoading(), IN_8_BITS))
    assert module.base_hash == plain.base_hash
    wanted, trained = dict(plain.model.named_parameters()), {n for part in plain.trained.values() for n in part}
    codes = {name for name, p in module.model.named_parameters() if is_coded(p)}
    layers = {name.split("layers.")[1].split(".")[0] for name in codes}
    assert not codes & trained and layers == set("012345") - (set() if lora else {"1", "4"})
    for name, parameter in module.model.named_parameters():
        if name in codes:
            step = wanted[name].abs().amax(1, keepdim=True) / 127
            assert ((decoded(parameter) - wanted[name]).abs() <= 0.51 * step).all()
        elif "lora_A" not in name:  # which is random
            assert torch.equal(parameter, wanted[name])
    inputs = tiny_inputs("fast_vlm", plain.model)
    with torch.no_grad():
        exact, coarse = (each.model(**inputs).logits for each in (plain, module))
    assert 0 < (coarse - exact).norm() / exact.norm() < 0.05
    held = [
        sum(v for k, v in tuning_memory(m.model, m.parts, m.trained, m.clock.stages).standing.items() if "frozen" in k)
        for m in (plain, module)
    ]
    assert held[1] < 0.75 * held[0]
    if lora is None:
        moved = ParameterChange(str(base)).measure(module.model, module.parts, [])
        assert moved[1] == 0 < moved[0] < 0.2  # by rounding alone


@needs_torchao
@pytest.mark.usefixtures("reload_here")
def test_a_run_resumes_bitwise_and_exports_adapters_on_the_weights_of_the_base(base: Path, tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to(base)
    options: dict[str, Any] = {"lora": ADAPTERS, "loading": {"quantization": "int8"}}
    whole = main(["fit", "--config", str(tuning_config(tmp_path, **options))])
    state = whole.model.state_dict()
    assert not any(map(is_coded, state.values())) and has_codes(whole.model.model)
    resume = ["--ckpt_path", str(checkpoint(tmp_path, 2)), f"--trainer.default_root_dir={tmp_path / 'again'}"]
    again = main(["fit", "--config", str(tuning_config(tmp_path, **options)), *resume])
    assert all(torch.equal(value, state[name]) for name, value in again.model.state_dict().items())
    folder = tmp_path / "exported"
    asked = ["--ckpt_path", str(checkpoint(tmp_path, 4)), "--weights", "raw", "--output", str(folder)]
    main(["export", "--config", str(tuning_config(tmp_path, **options)), *asked])
    stored, found = load_lvlm(str(base)).state_dict(), load_lvlm(str(folder)).state_dict()
    layers = whole.model.parts.layers_name
    for name, value in found.items():
        if not name.startswith(layers):
            continue
        module = whole.model.model.get_submodule(name.removesuffix(".weight").removesuffix(".bias"))
        if name.endswith(".weight") and name.split("layers.")[1][0] in "14" and "norm" not in name:
            torch.testing.assert_close(value, stored[name] + module.get_delta_weight("default"))
        else:
            assert torch.equal(value, stored[name])
    assert json.loads((folder / "sparsight.json").read_text())["trained_beside"] == "int8"
    assert "were held in int8" in (folder / "README.md").read_text()
    assert (folder / "adapter" / "adapter_model.safetensors").exists()


@needs_torchao
@pytest.mark.slow
@pytest.mark.usefixtures("reload_here")
def test_layers_leave_and_the_rest_heals_beside_codes(base: Path, tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to(base)
    options: dict[str, Any] = {"lora": ADAPTERS, "loading": {"quantization": "int8"}, "prune": SCORE}
    config = tuning_config(tmp_path, healing={"hidden": 1.0}, stages=[STAGE], **options)
    cli = main(["fit", "--config", str(with_callback(config, pruning()))])
    left = cli.model.retired.indices
    assert left and torch.isfinite(cli.trainer.callback_metrics["train/hidden_difference"])
    folder = tmp_path / "exported"
    asked = ["--ckpt_path", str(checkpoint(tmp_path, 4)), "--weights", "raw", "--output", str(folder)]
    main(["export", "--config", str(config), *asked])
    exported = load_lvlm(str(folder))
    stored = load_lvlm(str(base)).state_dict()
    kept = [layer for layer in range(6) if layer not in left]
    name = f"{cli.model.parts.layers_name}.{{}}.mlp.up_proj.weight"
    for now, before in enumerate(kept):
        if before not in (1, 4):
            assert torch.equal(exported.state_dict()[name.format(now)], stored[name.format(before)])


@needs_torchao
def test_an_evaluation_holds_all_layers_in_codes(base: Path) -> None:
    module = LVLMEvaluation(str(base), loading=IN_8_BITS)
    names = [name for name, p in module.model.named_parameters() if is_coded(p)]
    assert len(names) == 7 * 6 and all(name.startswith(module.parts.layers_name) for name in names)


def test_what_cannot_be_is_refused_by_name(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"recipe reads weights, which loading\.quantization holds in codes"):
        LVLMEvaluation("nowhere", loading=IN_8_BITS, recipe=["FastV"])  # type: ignore[list-item]
    monkeypatch.setattr("sparsight.common.quantised.weights.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"model\.loading\.quantization: int8 needs torchao.*\[quantised\]"):
        LVLMEvaluation("nowhere", loading=IN_8_BITS)


@needs_torchao
def test_layers_that_all_train_and_split_ones_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="int8 finds no frozen linear layer in decoder layers: set it to null"):
        module_of(base, layers=All(), loading=IN_8_BITS)
    module = module_of(base, loading=IN_8_BITS)
    module._device_mesh = ModelParallelStrategy  # type: ignore[assignment]  # any: it is not asked
    with pytest.raises(ConfigurationError, match=r"int8 and ModelParallelStrategy \(FSDP2\) do not go together"):
        module.configure_model()
