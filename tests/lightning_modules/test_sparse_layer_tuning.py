"""Tuning a sparse set of layers through the command: what moves, what is kept, stages, rotation, pruning, resuming."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lightning_modules import SparseLayerTuning
from sparsight.command.cli import main
from sparsight.common.errors import ConfigurationError
from sparsight.lvlm.model.load import load_lvlm
from sparsight.lvlm.model.provenance import FILE, provenance, read_provenance
from sparsight.lvlm.surgery.remove import remove_layers
from sparsight.lvlm.train.unpruned import unpruned_model
from tests.tiny_lvlm import save_tiny_lvlm, tiny_processor
from tests.tiny_tuning import SCORE, STAGE, checkpoint, pruning, tuning_config, with_callback


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_lvlm(tmp_path_factory.mktemp("lvlm") / "base", "fast_vlm")


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    (tmp_path / "base").symlink_to(base)
    return tmp_path


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run without options, whose checkpoints lie in ``folder``."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "base").symlink_to(base)
    return SimpleNamespace(folder=folder, command=fit(folder))


def fit(folder: Path, *arguments: str, **model: Any) -> Any:
    return main(["fit", "--config", str(tuning_config(folder, **model)), *arguments])


def changed(cli: Any, base: Path) -> set[str]:
    before = load_lvlm(str(base)).state_dict()
    return {name for name, value in cli.model.model.state_dict().items() if not torch.equal(value, before[name])}


def test_chosen_layers_and_projector_move_and_nothing_else(plain: Any, base: Path) -> None:
    cli = plain.command
    moved = changed(cli, base)
    assert {name.split(".")[3] for name in moved if ".language_model." in name} == {"1", "4"}
    assert {name.split(".")[1] for name in moved} == {"language_model", "multi_modal_projector"}
    assert cli.trainer.global_step == 4
    assert set(cli.trainer.callback_metrics) >= {"train/loss", "val/loss", "val/visual", "val/text"}


def test_checkpoints_hold_what_was_trained_and_say_of_which_model(plain: Any, folder: Path) -> None:
    saved = torch.load(checkpoint(plain.folder, 4), weights_only=True)
    assert set(saved["state_dict"]) == plain.command.model.trained_names()
    assert saved["hyper_parameters"]["selected_layers"] == saved["sparsight"]["layers"] == [1, 4]
    other = save_tiny_lvlm(folder / "other", "fast_vlm", rms_norm_eps=1e-3)
    weights = load_lvlm(str(other))
    with torch.no_grad():
        weights.lm_head.weight += 1
    weights.save_pretrained(other)
    config = str(tuning_config(folder, base=str(other)))
    with pytest.raises(SystemExit, match="another model"):
        main(["validate", "--config", config, "--ckpt_path", str(checkpoint(plain.folder, 4))])


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4, "dropout": 0.5}], ids=["full", "dropout"])
def test_resuming_is_bitwise(folder: Path, lora: object) -> None:
    stages = [STAGE | {"steps": 2, "train": ["projector"]}, STAGE | {"steps": 2}]
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"weight_decay": 0.1}}
    options: dict[str, Any] = {"stages": stages, "optimizer": optimizer, "lora": lora}
    whole = fit(folder, **options)
    for step in (2, 3) if lora is None else (1,):  # between the stages, and inside of each
        run = f"again{step}"
        resume = ["--ckpt_path", str(checkpoint(folder, step)), f"--trainer.default_root_dir={folder / run}"]
        again = fit(folder, *resume, **options)
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, again.model.state_dict()[name]), (step, name)


def test_a_stage_trains_its_parts_with_their_learning_rates(folder: Path, base: Path) -> None:
    first = STAGE | {"steps": 2, "train": ["projector"], "projector_lr": 0.5}
    cli = fit(folder, stages=[first, STAGE | {"projector_lr": 0.01}])
    early = torch.load(checkpoint(folder, 1), weights_only=True)
    before = load_lvlm(str(base)).state_dict()
    kept = {name.removeprefix("model."): value for name, value in early["state_dict"].items()}
    moved = {name.split(".")[1] for name, value in kept.items() if not torch.equal(value, before[name])}
    assert moved == {"multi_modal_projector"}
    assert [group["lr"] for group in early["optimizer_states"][0]["param_groups"]] == [0.5]
    groups = {group["name"]: group["lr"] for group in cli.trainer.optimizers[0].param_groups}
    assert groups == {"layers": 0.05, "projector": 0.01}
    assert cli.trainer.global_step == 6
    assert "language_model" in {name.split(".")[1] for name in changed(cli, base)}


def test_a_run_recomputes_layers_and_drops_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models come in eval mode, in which transformers recomputes nothing and adapters drop nothing, in silence."""
    calls: list[list[bool]] = []
    begin = SparseLayerTuning.on_train_batch_start

    def listen(module: Any, batch: Any, batch_idx: int) -> None:
        begin(module, batch, batch_idx)
        attention = module.parts.layers[2].self_attn  # frozen, between tuned ones
        attention.register_forward_hook(lambda *_: calls.append([attention.training]))
        assert [layer.self_attn.training for layer in module.parts.layers] == [i in (1, 4) for i in range(6)]

    monkeypatch.setattr(SparseLayerTuning, "on_train_batch_start", listen)
    fit(
        folder,
        "--trainer.max_steps=1",
        "--trainer.num_sanity_val_steps=1",
        "--trainer.val_check_interval=2",
        compute={"gradient_checkpointing": True},
    )
    assert calls == [[False], [False]]


def test_no_backward_pass_below_the_lowest_tuned_layer(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        cli = fit(folder, "--trainer.max_steps=1", stages=[STAGE | {"train": ["layers"]}])
    assert "nothing is trained below layer 1" in caplog.text
    assert "(vision tower " in caplog.text  # of the predicted step, as no features are kept
    seen = []
    for index in (0, 1, 2):
        cli.model.parts.layers[index].register_forward_hook(lambda _m, _i, out: seen.append(out.requires_grad))
    batch = next(iter(cli.trainer.datamodule.train_dataloader()))
    cli.model.log = lambda *_, **__: None
    cli.model.training_step(batch, 0)
    assert seen == [False, True, True]


def test_low_precision_of_the_frozen_part_needs_mixed_precision(folder: Path) -> None:
    with pytest.raises(SystemExit, match=r"bf16-mixed"):
        fit(folder, loading={"dtype": "bfloat16"})
    cli = fit(folder, "--trainer.precision=bf16-mixed", loading={"dtype": "bfloat16"})
    kinds = {name: p.dtype for name, p in cli.model.named_parameters()}
    assert {kinds[name] for name in cli.model.trained_names()} == {torch.float32}
    assert {dtype for name, dtype in kinds.items() if name not in cli.model.trained_names()} == {torch.bfloat16}


def test_kept_vision_features_change_nothing(plain: Any, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        cached = fit(folder, f"--trainer.default_root_dir={folder / 'cached'}", compute={"vision_cache_gib": 0.1})
    assert "predicted step" in caplog.text and "(vision tower " not in caplog.text
    for name, value in plain.command.model.state_dict().items():
        torch.testing.assert_close(cached.model.state_dict()[name], value)
    assert cached.model.vision_cache.kept


def test_scores_are_written_and_compared(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = str(tuning_config(folder))
    main(["validate", "--config", config])
    path = folder / "run" / "scores_val.json"
    scores = json.loads(path.read_text())
    assert {item["task"] for item in scores["items"]} == {"naming", "yes_no", "text_opposites"}
    assert len(scores["items"]) == 11
    config = str(tuning_config(folder, evaluation={"new_tokens": 3, "reference": str(path)}))
    with caplog.at_level("INFO"):
        cli = main(["validate", "--config", config])
    assert f"kept of the scores in {path}: likelihood/visual 100.0%, likelihood/text 100.0%" in caplog.text
    metrics = cli.trainer.callback_metrics
    kept = {name: float(value) for name, value in metrics.items() if name.startswith("val/kept/likelihood/")}
    assert kept and all(value == 1.0 for value in kept.values())
    assert "val/accuracy/generation/naming" in metrics
    written = json.loads(path.read_text())["items"]
    assert all(isinstance(item["generated"], str) for item in written)


@pytest.mark.parametrize("rescore", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_layers_outside_the_region_leave_and_the_rest_heals(folder: Path, base: Path, rescore: bool) -> None:
    weights = {"hidden": 0.5, "logits": 1.0, "layers": 0.5}
    config = with_callback(tuning_config(folder, prune=SCORE, healing=weights), pruning(rescore=rescore))
    cli = main(["fit", "--config", str(config)])
    retired = cli.model.retired.indices
    assert len(retired) == 2 and not set(retired) & {0, 1, 4, 5}
    assert set(cli.model.sites()) == {"layers.2", "layers.3"}
    terms = ("hidden_difference", "layers_difference", "answers_divergence")
    assert all(cli.trainer.callback_metrics[f"train/{name}"] > 0 for name in terms)
    saved = torch.load(checkpoint(folder, 4), weights_only=True)
    assert saved["sparsight"]["retired"] == retired
    assert len(cli.model.parts.layers) == 6  # taken out for evaluation alone
    if rescore:
        return
    again = main(["validate", "--config", str(config), "--ckpt_path", str(checkpoint(folder, 4))])
    assert again.model.retired.indices == retired
    wanted, got = (m.trainer.callback_metrics["val/loss"] for m in (cli, again))
    torch.testing.assert_close(got, wanted)
    assert len(again.model.parts.layers) == 6


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4, "dropout": 0.5}], ids=["full", "lora"])
def test_healing_is_compared_with_what_was_tuned_before_layers_left(folder: Path, lora: object) -> None:
    options: dict[str, Any] = {"prune": SCORE, "healing": {"hidden": 0.5}, "lora": lora}
    config = with_callback(tuning_config(folder, **options), pruning(begin=2))
    config = with_callback(config, {"class_path": "tests.lightning_modules.test_sparse_layer_tuning.NoteMetrics"})
    whole = main(["fit", "--config", str(config)])
    noted = next(c for c in whole.trainer.callbacks if isinstance(c, NoteMetrics)).noted
    assert ["train/hidden_difference" in names for names in noted] == [False, False, True, True]
    before = torch.load(checkpoint(folder, 2), weights_only=True)["state_dict"]
    teacher = whole.model.unpruned.model
    for name in whole.model.trained_names():
        assert torch.equal(teacher.get_parameter(name.removeprefix("model.")), before[name])
    resume = ["--ckpt_path", str(checkpoint(folder, 3)), f"--trainer.default_root_dir={folder / 'again'}"]
    again = main(["fit", "--config", str(config), *resume])
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


class NoteMetrics(Callback):
    """Keeps the names that are logged at every step."""

    def __init__(self) -> None:
        self.noted: list[set[str]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.noted.append(set(trainer.callback_metrics))


def pruned_folder(folder: Path, removed: list[int], *, source: Path, earlier: dict[str, Any] | None = None) -> Path:
    """What an earlier run left of a model."""
    model = load_lvlm(str(source))
    depth = len(remove_layers(model, removed)) + len(removed)
    model.save_pretrained(folder)
    tiny_processor("fast_vlm").save_pretrained(folder)
    known: dict[str, Any] = {"base": "base", "revision": None, "base_hash": "", "tuned": [], "parts": []}
    (folder / FILE).write_text(json.dumps(provenance(**known, depth=depth, removed=removed, earlier=earlier)))
    return folder


def test_a_pruned_model_heals_beside_what_it_was(folder: Path, base: Path) -> None:
    pruned = pruned_folder(folder / "pruned", [2], source=base)
    more = pruned_folder(folder / "more", [1], source=pruned, earlier=read_provenance(pruned))
    for student, teacher in ((pruned, base), (more, base)):
        given = load_lvlm(str(student))
        unpruned = unpruned_model(str(teacher), base=str(student), student=given, dtype=torch.float32)
        assert unpruned.depth == 6
    options: dict[str, Any] = {"base": str(more), "healing": {"hidden": 1.0, "teacher": str(pruned)}}
    options["layers"] = {"class_path": "Explicit", "init_args": {"layers": [0]}}
    cli = fit(folder, "--trainer.max_steps=1", f"--data.model={more}", **options)
    assert cli.trainer.callback_metrics["train/hidden_difference"] > 0
    assert (cli.model.unpruned.depth, cli.model.depth) == (5, 4)
    wanted = load_lvlm(str(pruned)).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in cli.model.unpruned.model.state_dict().items())


@pytest.mark.slow
def test_a_teacher_that_cannot_have_been_the_model_is_refused(folder: Path, base: Path) -> None:
    pruned = pruned_folder(folder / "pruned", [2], source=base)
    other = pruned_folder(folder / "other", [3], source=base)
    wide = save_tiny_lvlm(folder / "wide", "fast_vlm", hidden_size=48)
    deep = save_tiny_lvlm(folder / "deep", "fast_vlm", num_hidden_layers=7)
    student = load_lvlm(str(pruned))
    for teacher, message in (
        (None, "layers left model.base .*/pruned before"),
        (other, r"layers \[0, 1, 2, 4, 5\] of a model of 6, the other \[0, 1, 3, 4, 5\] of a model of 6"),
        (wide, "hidden_size 48, not 32"),
        (deep, r"a model of 7, the other .* of a model of 6"),
    ):
        source = None if teacher is None else str(teacher)
        with pytest.raises(ConfigurationError, match=message):
            unpruned_model(source, base=str(pruned), student=student, dtype=torch.float32)
    with pytest.raises(SystemExit, match="none has left or leaves"):
        fit(folder, base=str(pruned), healing={"hidden": 1.0, "teacher": str(pruned)})
    with pytest.raises(SystemExit, match="none has left or leaves"):
        fit(folder, healing={"hidden": 1.0})
    with pytest.raises(SystemExit, match=r"model\.healing\.teacher is .*, but hidden, .* are 0"):
        fit(folder, healing={"teacher": str(base)})


def test_resuming_a_pruned_run_is_bitwise(folder: Path) -> None:
    config = with_callback(tuning_config(folder, prune=SCORE), pruning(begin=2))
    whole = main(["fit", "--config", str(config)])
    for step in (1, 3):
        resume = ["--ckpt_path", str(checkpoint(folder, step)), f"--trainer.default_root_dir={folder / f'again{step}'}"]
        again = main(["fit", "--config", str(config), *resume])
        assert again.model.retired.indices == whole.model.retired.indices
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, again.model.state_dict()[name])


@pytest.mark.slow
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


@pytest.mark.slow
def test_layers_take_turns_and_the_optimiser_forgets(folder: Path, base: Path) -> None:
    rotation = {"class_path": "callbacks.LayerRotation", "init_args": {"layers": 1, "every_n_steps": 2}}
    layers = {"class_path": "sparsight.lvlm.surgery.selection.All"}
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


def test_layers_take_turns_only_in_stages_that_train_layers(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    rotation = {"class_path": "callbacks.LayerRotation", "init_args": {"layers": 1, "every_n_steps": 1}}
    stages = [STAGE | {"steps": 2, "train": ["projector"]}, STAGE | {"steps": 1}]
    config = with_callback(tuning_config(folder, stages=stages), rotation)
    with caplog.at_level("INFO"):
        main(["fit", "--config", str(config)])
    assert re.findall(r"step (\d+): training layers", caplog.text) == ["2"]
    layers = torch.load(checkpoint(folder, 3), weights_only=True)["sparsight"]["active"]
    assert f"step 2: training layers {layers}" in caplog.text and len(layers) == 1


def test_rotation_needs_layers_to_choose_from(folder: Path) -> None:
    rotation = {"class_path": "callbacks.LayerRotation", "init_args": {"layers": 3}}
    with pytest.raises(SystemExit, match=r"3 layers at a time, but only \[1, 4\]"):
        main(["fit", "--config", str(with_callback(tuning_config(folder), rotation))])


@pytest.mark.slow
def test_packed_rows_are_neither_scored_nor_compared(folder: Path) -> None:
    packing = ["--data.batching.packing=true", "--data.batching.max_length=128"]
    config = with_callback(tuning_config(folder, prune=SCORE), pruning())
    with pytest.raises(SystemExit, match=r"data\.batching\.packing"):
        main(["fit", "--config", str(config), *packing])
    with pytest.raises(SystemExit, match=r"data\.batching\.packing"):
        fit(folder, *packing, healing={"hidden": 0.5})


@pytest.mark.slow
def test_packed_rows_need_a_kernel_that_takes_masks(folder: Path) -> None:
    ALL_ATTENTION_FUNCTIONS.register("causal_alone", sdpa_attention_forward)
    with pytest.raises(SystemExit, match=r"data\.batching\.packing .* attention kernel causal_alone does not take"):
        fit(
            folder,
            "--data.batching.packing=true",
            "--data.batching.max_length=128",
            loading={"attn_implementation": "causal_alone"},
        )


def test_a_run_too_short_for_its_schedule_says_so(folder: Path) -> None:
    config = with_callback(tuning_config(folder, prune=SCORE), pruning(shape="linear", begin=1, end=4))
    with pytest.warns(UserWarning, match="will have retired 1 of 2 sites when training ends after 4 steps"):
        main(["fit", "--config", str(config)])
