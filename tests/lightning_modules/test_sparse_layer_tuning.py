"""Tuning a sparse set of layers through the command: what moves, what is kept, stages, rotation, pruning, resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sparsight.cli import main
from sparsight.lvlm.load import load_lvlm
from tests.lightning_modules.lvlm_run import STAGE, tuning_config
from tests.tiny_lvlm import save_tiny_lvlm


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_lvlm(tmp_path_factory.mktemp("lvlm") / "base", "fast_vlm")


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    (tmp_path / "base").symlink_to(base)
    return tmp_path


def fit(folder: Path, *arguments: str, **model: Any) -> Any:
    return main(["fit", "--config", str(tuning_config(folder, **model)), *arguments])


def checkpoint(folder: Path, step: int, run: str = "run") -> Path:
    (found,) = (folder / run).rglob(f"step={step}*.ckpt")
    return found


def changed(cli: Any, base: Path) -> set[str]:
    before = load_lvlm(str(base)).state_dict()
    return {name for name, value in cli.model.model.state_dict().items() if not torch.equal(value, before[name])}


def test_chosen_layers_and_projector_move_and_nothing_else(folder: Path, base: Path) -> None:
    cli = fit(folder)
    moved = changed(cli, base)
    assert {name.split(".")[3] for name in moved if ".language_model." in name} == {"1", "4"}
    assert {name.split(".")[1] for name in moved} == {"language_model", "multi_modal_projector"}
    assert cli.trainer.global_step == 4
    assert set(cli.trainer.callback_metrics) >= {"train/loss", "val/loss", "val/visual", "val/text"}


def test_checkpoints_hold_what_was_trained_and_say_of_which_model(folder: Path) -> None:
    cli = fit(folder)
    saved = torch.load(checkpoint(folder, 4), weights_only=True)
    assert set(saved["state_dict"]) == cli.model.trained_names()
    assert saved["hyper_parameters"]["selected_layers"] == saved["sparsight"]["layers"] == [1, 4]
    other = save_tiny_lvlm(folder / "other", "fast_vlm", rms_norm_eps=1e-3)
    weights = load_lvlm(str(other))
    with torch.no_grad():
        weights.lm_head.weight += 1
    weights.save_pretrained(other)
    config = str(tuning_config(folder, base=str(other)))
    with pytest.raises(SystemExit, match="another model"):
        main(["validate", "--config", config, "--ckpt_path", str(checkpoint(folder, 4))])


def test_resuming_is_bitwise(folder: Path) -> None:
    stages = [STAGE | {"steps": 2, "train": ["projector"]}, STAGE | {"steps": 2}]
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"weight_decay": 0.1}}
    whole = fit(folder, stages=stages, optimizer=optimizer)
    for step in (1, 2, 3):
        run = f"again{step}"
        resume = ["--ckpt_path", str(checkpoint(folder, step)), f"--trainer.default_root_dir={folder / run}"]
        again = fit(folder, *resume, stages=stages, optimizer=optimizer)
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, again.model.state_dict()[name]), (step, name)


def test_a_stage_trains_its_parts_with_their_learning_rates(folder: Path, base: Path) -> None:
    first = STAGE | {"steps": 2, "train": ["projector"], "projector_lr": 0.5}
    cli = fit(folder, "--trainer.max_steps=2", stages=[first, STAGE | {"projector_lr": 0.01}])
    assert {name.split(".")[1] for name in changed(cli, base)} == {"multi_modal_projector"}
    assert [group["lr"] for group in cli.trainer.optimizers[0].param_groups] == [0.5]
    cli = fit(folder, stages=[first, STAGE | {"projector_lr": 0.01}])
    groups = {group["name"]: group["lr"] for group in cli.trainer.optimizers[0].param_groups}
    assert groups == {"layers": 0.05, "projector": 0.01}
    assert cli.trainer.global_step == 6
    assert "language_model" in {name.split(".")[1] for name in changed(cli, base)}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("train", [["layers"], ["projector"], ["layers", "projector"]], ids="+".join)
@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4, "dropout": 0.0}], ids=["full", "lora"])
def test_gradients_flow_in_every_combination(
    folder: Path, base: Path, train: list[str], lora: object, checkpointing: bool
) -> None:
    steps = [STAGE | {"steps": 2, "train": train}]
    cli = fit(folder, stages=steps, lora=lora, gradient_checkpointing=checkpointing)
    names = cli.model.trained_names()
    saved = [torch.load(checkpoint(folder, step), weights_only=True)["state_dict"] for step in (1, 2)]
    assert all(not torch.equal(saved[0][name], saved[1][name]) for name in names)
    assert any("lora" in name for name in names) == (lora is not None and "layers" in train)
    if checkpointing:
        plain = fit(folder, f"--trainer.default_root_dir={folder / 'plain'}", stages=steps, lora=lora)
        for name, value in plain.model.state_dict().items():
            torch.testing.assert_close(cli.model.state_dict()[name], value)


def test_recomputation_really_happens(folder: Path) -> None:
    """Layers in eval mode would be left out of it by transformers, in silence."""
    cli = fit(folder, "--trainer.max_steps=1", gradient_checkpointing=True)
    calls = []
    layer = cli.model.parts.layers[2]  # frozen, between tuned ones
    layer.self_attn.register_forward_hook(lambda *_: calls.append(1))
    cli.model.train()
    cli.trainer.datamodule.setup("fit")
    batch = next(iter(cli.trainer.datamodule.train_dataloader()))
    cli.model.log = lambda *_, **__: None
    cli.model.training_step(batch, 0).backward()
    assert len(calls) == 2
    assert not layer.self_attn.training


def test_no_backward_pass_below_the_lowest_tuned_layer(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        cli = fit(folder, "--trainer.max_steps=1", stages=[STAGE | {"train": ["layers"]}])
    assert "nothing is trained below layer 1" in caplog.text
    seen = []
    for index in (0, 1, 2):
        cli.model.parts.layers[index].register_forward_hook(lambda _m, _i, out: seen.append(out.requires_grad))
    batch = next(iter(cli.trainer.datamodule.train_dataloader()))
    cli.model.log = lambda *_, **__: None
    cli.model.training_step(batch, 0)
    assert seen == [False, True, True]


def test_low_precision_of_the_frozen_part_needs_mixed_precision(folder: Path) -> None:
    with pytest.raises(SystemExit, match=r"bf16-mixed"):
        fit(folder, dtype="bfloat16")
    cli = fit(folder, "--trainer.precision=bf16-mixed", dtype="bfloat16")
    kinds = {name: p.dtype for name, p in cli.model.named_parameters()}
    assert {kinds[name] for name in cli.model.trained_names()} == {torch.float32}
    assert {dtype for name, dtype in kinds.items() if name not in cli.model.trained_names()} == {torch.bfloat16}


def test_kept_vision_features_change_nothing(folder: Path) -> None:
    plain = fit(folder)
    cached = fit(folder, f"--trainer.default_root_dir={folder / 'cached'}", vision_cache_gib=0.1)
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(cached.model.state_dict()[name], value)
    assert cached.model.vision_cache.kept


def test_scores_are_written_and_compared(folder: Path) -> None:
    config = str(tuning_config(folder))
    main(["validate", "--config", config])
    path = folder / "run" / "scores_val.json"
    scores = json.loads(path.read_text())
    assert {item["task"] for item in scores["items"]} == {"naming", "yes_no", "text_opposites"}
    assert len(scores["items"]) == 11
    config = str(tuning_config(folder, evaluation={"new_tokens": 3, "reference": str(path)}))
    cli = main(["validate", "--config", config])
    metrics = cli.trainer.callback_metrics
    kept = {name: float(value) for name, value in metrics.items() if name.startswith("val/kept/likelihood/")}
    assert kept and all(value == 1.0 for value in kept.values())
    assert "val/accuracy/generation/naming" in metrics
    written = json.loads(path.read_text())["items"]
    assert all(isinstance(item["generated"], str) for item in written)


def pruning(amount: int = 2, **options: Any) -> dict[str, Any]:
    init = {"shape": "one_shot", "begin": 1, "amount": amount} | options
    return {"class_path": "callbacks.PruningSchedule", "init_args": init}


def with_callback(config: Path, callback: dict[str, Any]) -> Path:
    content = yaml.safe_load(config.read_text())
    content["trainer"]["callbacks"].append(callback)
    config.write_text(yaml.safe_dump(content))
    return config


SCORE = {"score": {"class_path": "sparsight.lvlm.scores.BlockInfluence"}, "batches": 2}


@pytest.mark.parametrize("rescore", [False, True])
def test_layers_outside_the_region_leave_and_the_rest_heals(folder: Path, base: Path, rescore: bool) -> None:
    config = with_callback(tuning_config(folder, prune=SCORE, distill=0.5), pruning(rescore=rescore))
    cli = main(["fit", "--config", str(config)])
    retired = cli.model.retired.indices
    assert len(retired) == 2 and not set(retired) & {0, 1, 4, 5}
    assert set(cli.model.sites()) == {"layers.2", "layers.3"}
    assert "train/hidden_difference" in cli.trainer.callback_metrics
    saved = torch.load(checkpoint(folder, 4), weights_only=True)
    assert saved["sparsight"]["retired"] == retired
    again = main(["validate", "--config", str(config), "--ckpt_path", str(checkpoint(folder, 4))])
    assert again.model.retired.indices == retired
    wanted, got = (m.trainer.callback_metrics["val/loss"] for m in (cli, again))
    torch.testing.assert_close(got, wanted)
    assert len(again.model.parts.layers) == 6  # taken out for evaluation alone


def test_resuming_a_pruned_run_is_bitwise(folder: Path) -> None:
    config = with_callback(tuning_config(folder, prune=SCORE), pruning(begin=2))
    whole = main(["fit", "--config", str(config)])
    for step in (1, 3):
        resume = ["--ckpt_path", str(checkpoint(folder, step)), f"--trainer.default_root_dir={folder / f'again{step}'}"]
        again = main(["fit", "--config", str(config), *resume])
        assert again.model.retired.indices == whole.model.retired.indices
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, again.model.state_dict()[name])


def test_neighbours_stay_where_spacing_is_asked(folder: Path) -> None:
    score = SCORE | {"protect_tuned": False}
    config = with_callback(tuning_config(folder, prune=score), pruning(begin=0, spacing=2))
    cli = main(["fit", "--config", str(config)])
    one, other = cli.model.retired.indices
    assert abs(one - other) >= 2
    with pytest.raises(SystemExit, match="spacing 3 leaves room for 2 of 3"):
        main(["fit", "--config", str(with_callback(tuning_config(folder, prune=score), pruning(3, spacing=3)))])


def test_layers_need_a_score_to_leave(folder: Path) -> None:
    with pytest.raises(SystemExit, match="`prune`"):
        main(["fit", "--config", str(with_callback(tuning_config(folder), pruning()))])


def test_layers_take_turns_and_the_optimiser_forgets(folder: Path, base: Path) -> None:
    rotation = {"class_path": "callbacks.LayerRotation", "init_args": {"layers": 1, "every_n_steps": 2}}
    layers = {"class_path": "sparsight.lvlm.selection.All"}
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"weight_decay": 0.1}}
    options: dict[str, Any] = {"layers": layers, "optimizer": optimizer, "stages": [STAGE | {"steps": 6}]}
    config = with_callback(tuning_config(folder, **options), rotation)
    whole = main(["fit", "--config", str(config)])
    states = {step: torch.load(checkpoint(folder, step), weights_only=True) for step in range(1, 7)}

    def moved(one: int, other: int) -> set[str]:
        before, after = states[one]["state_dict"], states[other]["state_dict"]
        names = {name for name in after if not torch.equal(before[name], after[name])}
        return {name.split(".")[4] for name in names if ".layers." in name}

    drawn = [states[step]["sparsight"]["active"] for step in (2, 4, 6)]
    assert len({tuple(active) for active in drawn}) > 1
    assert [moved(1, 2), moved(3, 4), moved(5, 6)] == [{str(active[0])} for active in drawn]
    trained = [p for p in whole.model.parameters() if p.requires_grad]
    assert set(whole.trainer.optimizers[0].state) == set(trained)  # nothing is kept of frozen layers
    again = main(["fit", "--config", str(config), "--ckpt_path", str(checkpoint(folder, 3))])
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_rotation_needs_layers_to_choose_from(folder: Path) -> None:
    rotation = {"class_path": "callbacks.LayerRotation", "init_args": {"layers": 3}}
    with pytest.raises(SystemExit, match=r"3 layers at a time, but only \[1, 4\]"):
        main(["fit", "--config", str(with_callback(tuning_config(folder), rotation))])


def test_packed_rows_are_not_scored(folder: Path) -> None:
    config = with_callback(tuning_config(folder, prune=SCORE), pruning())
    with pytest.raises(SystemExit, match=r"data\.packing"):
        main(["fit", "--config", str(config), "--data.packing=true", "--data.max_length=128"])
