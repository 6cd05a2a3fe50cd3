"""Methods with weights: trained as a part of a stage, resumed, exported beside the recipe, and loaded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from blocks import FastV, LoFiT, TwoResolutions
from lightning_modules import LVLMEvaluation, SparseLayerTuning
from sparsight.command.cli import main
from sparsight.lvlm.export.reload import example_inputs
from sparsight.lvlm.methods.learned.folder import read_recipe, write_recipe
from sparsight.lvlm.methods.learned.weights import FILE, shape_of
from sparsight.lvlm.methods.recipe import Recipe
from sparsight.lvlm.model.load import load_lvlm
from sparsight.lvlm.train.compute import TuningCompute
from sparsight.lvlm.train.stages import TuningStage
from tests.tiny_batches import batch_of
from tests.tiny_lvlm import save_tiny_lvlm, tiny_processor
from tests.tiny_tuning import STAGE, checkpoint, tuning_config, with_callback

LOFIT = {"class_path": "LoFiT", "init_args": {"count": 3, "penalty": 0.01}}
STAGES = [STAGE | {"steps": 2, "train": ["methods"]}] * 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_lvlm(tmp_path_factory.mktemp("lvlm") / "base", "fast_vlm")


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    (tmp_path / "base").symlink_to(base)
    return tmp_path


def logits(model: Any, recipe: Recipe | None, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        if recipe is None:
            return model(**inputs).logits
        with recipe.on(model):
            return model(**inputs).logits


@pytest.mark.usefixtures("reload_here")
def test_heads_are_chosen_offsets_learn_and_an_export_answers_with_them(folder: Path, base: Path) -> None:
    """LoFiT from the first stage to the reloaded folder."""
    export = {"class_path": "callbacks.ExportAtEnd", "init_args": {"output": str(folder / "out")}}
    config = with_callback(tuning_config(folder, recipe=[LOFIT], stages=STAGES), export)
    cli = main(["fit", "--config", str(config)])
    module = cli.model
    held = module.recipe.weighted["LoFiT"].held
    assert int(held.chosen.sum()) == 3 and not held.scale.any() and module.trained_so_far() == ["methods"]
    assert {"train/LoFiT", "train/loss", "val/loss"} <= set(cli.trainer.callback_metrics)
    before = load_lvlm(str(base)).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in module.model.state_dict().items())
    saved = torch.load(checkpoint(folder, 3), weights_only=True)["state_dict"]
    assert set(saved) == {f"method_weights.LoFiT.{name}" for name in ("scale", "offset", "chosen")}
    decayed = saved["method_weights.LoFiT.offset"] * (1 - 0.05 * 0.01)  # by the optimiser's default
    moved = (held.offset.detach() - decayed).abs().amax(-1)
    assert float(moved[held.chosen].min()) > 1e-6 and float(moved[~held.chosen].max()) < 1e-8

    inputs = example_inputs(tiny_processor("fast_vlm"))
    wanted = logits(module.model.eval(), module.recipe, inputs)
    (place,) = {file.parent for file in (folder / "out").rglob(FILE)}
    for source in (folder / "copy", place):
        if source != place:
            write_recipe(module.recipe, source)
            assert json.loads((source / "recipe.json").read_text())["recipe"][0]["options"]["count"] == 3
        torch.testing.assert_close(logits(load_lvlm(str(base)).eval(), read_recipe(source), inputs), wanted)
    exported = AutoModelForImageTextToText.from_pretrained(place, trust_remote_code=True, dtype=torch.float32)
    torch.testing.assert_close(logits(exported.eval(), None, inputs), wanted)
    plain = logits(load_lvlm(str(place)).eval(), None, inputs)
    assert float((plain - wanted).abs().max()) > 1e-4
    module = LVLMEvaluation(base=str(base), recipe=[LoFiT(count=3, trained=str(place))])
    torch.testing.assert_close(logits(module.model.eval(), module.recipe, inputs), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 3])  # inside the first stage, between both, and inside the second
def test_a_run_goes_on_where_it_was(folder: Path, step: int) -> None:
    config = tuning_config(folder, recipe=[LOFIT], stages=STAGES)
    whole = main(["fit", "--config", str(config)]).model.recipe.weighted["LoFiT"].held.state_dict()
    (found,) = (folder / "run").rglob(f"step={step}*.ckpt")
    again = main(["fit", "--config", str(config), "--ckpt_path", str(found)])
    held = again.model.recipe.weighted["LoFiT"].held.state_dict()
    assert int(held["chosen"].sum()) == 3
    for name, value in whole.items():
        assert torch.equal(held[name], value), name


def test_scales_learn_with_their_penalty_in_the_first_stage(base: Path) -> None:
    """The loss and its gradient are those of the answers and of the sum of absolute scales."""
    stages = [TuningStage(steps=1, train=["methods"], lr=1.0, methods_lr=0.1)] * 2
    module = SparseLayerTuning(base=str(base), stages=stages, recipe=[LoFiT(count=3, penalty=0.5)])
    held, method = module.recipe.weighted["LoFiT"].held, module.recipe.weighted["LoFiT"]
    with torch.no_grad():
        held.scale.normal_(0, 0.1)
    batch: dict[str, Any] = {**batch_of("fast_vlm", module.model), "image_keys": [], "index": torch.arange(2)}
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    module.training_step(batch, 0).backward()
    whole = held.scale.grad.clone()
    held.scale.grad = None
    method.penalty = 0.0
    module.training_step(batch, 0).backward()
    torch.testing.assert_close(whole - held.scale.grad, 0.5 * held.scale.detach().sign(), rtol=1e-3, atol=1e-5)
    assert float(held.scale.grad.abs().max()) > 1e-6 and not held.offset.requires_grad
    assert not any(parameter.requires_grad for parameter in module.model.parameters())
    assert [group["name"] for group in module.configure_optimizers()["optimizer"].param_groups] == ["methods"]
    assert module.configure_optimizers()["optimizer"].param_groups[0]["initial_lr"] == 0.1
    norms = held.scale.detach().norm(dim=-1)
    method.begin(1)
    assert set(held.chosen.flatten().nonzero()[:, 0].tolist()) == set(norms.flatten().topk(3).indices.tolist())
    assert held.offset.requires_grad and not held.scale.requires_grad and method.loss() is None


LEARNING: dict[str, tuple[dict[str, Any], str]] = {  # options, and weights that begin as zeros or ones
    "TwoResolutions": ({"widths": [4, 4, 4, 4], "depths": [1, 1, 1, 1]}, "slow_out.weight"),
    "DualPerspective": ({"side": 2, "heads": 4}, "norm.weight"),
    "AdversarialAttention": ({"layers": [1, 3]}, "3.query.weight"),
}


@pytest.mark.slow
@pytest.mark.usefixtures("reload_here")
@pytest.mark.parametrize("name", LEARNING)
def test_architectures_learn_and_travel(tmp_path: Path, name: str) -> None:
    save_tiny_lvlm(tmp_path / "base")
    export = {"class_path": "callbacks.ExportAtEnd", "init_args": {"output": str(tmp_path / "out")}}
    recipe = [{"class_path": name, "init_args": LEARNING[name][0]}]
    stages = [STAGE | {"steps": 3, "train": ["layers", "methods"], "methods_lr": 0.02}]
    module = main(
        ["fit", "--config", str(with_callback(tuning_config(tmp_path, recipe=recipe, stages=stages), export))]
    ).model
    learnt = module.recipe.weighted[name].held.state_dict()[LEARNING[name][1]]
    assert float((learnt - learnt.round()).abs().max()) > 1e-5
    inputs = example_inputs(tiny_processor())
    wanted = logits(module.model.eval(), module.recipe, inputs)
    (place,) = {file.parent for file in (tmp_path / "out").rglob(FILE)}
    exported = AutoModelForImageTextToText.from_pretrained(place, trust_remote_code=True, dtype=torch.float32)
    torch.testing.assert_close(logits(exported.eval(), None, inputs), wanted)


@pytest.mark.slow
def test_a_region_and_a_method_are_trained_together(folder: Path, base: Path) -> None:
    stage = STAGE | {"steps": 2, "train": ["layers", "methods"]}
    cli = main(["fit", "--config", str(tuning_config(folder, recipe=[LOFIT], stages=[stage]))])
    before = load_lvlm(str(base)).state_dict()
    moved = {name for name, value in cli.model.model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[3] for name in moved} == {"1", "4"}
    assert cli.model.recipe.weighted["LoFiT"].held.scale.abs().min() > 0 and cli.model.predicted_share < 1


def test_what_does_not_go_with_weights_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    methods, layers = ([TuningStage(steps=1, train=[part], lr=0.1)] for part in ("methods", "layers"))
    for stages, recipe, told in (
        (methods, [FastV(3)], "none of the recipe has weights"),
        (methods, [TwoResolutions()], "TwoResolutions works in the vision tower, of which llava"),
        (layers, [LoFiT(count=3)], "LoFiT of the recipe would keep weights that were never trained"),
        (methods, [LoFiT(count=3), LoFiT(count=2)], "LoFiT is there twice"),
        (methods, [LoFiT(count=300)], "LoFiT chooses 300 of 24 heads"),
        (methods, [LoFiT(layers=[9])], r"LoFiT names layers \[9\]"),
        (layers, [LoFiT(count=3, trained=str(tmp_path))], "no file of safetensors that can be read"),
    ):
        with pytest.raises(ValueError, match=told):
            SparseLayerTuning(base=str(base), stages=stages, recipe=recipe)
    with pytest.raises(ValueError, match="keeps what the vision tower answers, which TwoResolutions of recipe change"):
        kept = TuningCompute(vision_cache_gib=0.1)
        SparseLayerTuning(base=str(base), stages=methods, recipe=[TwoResolutions()], compute=kept)
    with pytest.warns(UserWarning, match="LoFiT of model.recipe has weights that were never trained"):
        module = LVLMEvaluation(base=str(base), recipe=[LoFiT(count=3)])
    write_recipe(module.recipe, tmp_path / "one")
    with pytest.raises(ValueError, match="LoFiT has weights for a decoder of"):
        module.recipe.weighted["LoFiT"].fit(shape_of(module.model)._replace(depth=7))
    content = (tmp_path / "one" / "recipe.json").read_text()
    (tmp_path / "one" / "recipe.json").write_text(content.replace("LoFiT", "Unheard"))
    with pytest.raises(ValueError, match="names the method Unheard, which is not in blocks"):
        read_recipe(tmp_path / "one")
    with pytest.raises(ValueError, match="holds no recipe"):
        read_recipe(base)
