"""Teacher samples: what is in them, and a cache that survives whatever happens to it."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from safetensors.torch import load_file
from torch import Tensor

from blocks import DeltaConvBlock
from datamodules import TeacherSamplesDataModule
from lightning_modules import AttentionDistillation
from sparsight.common.disk import sample_cache
from sparsight.common.disk.cache_settings import MANIFEST, read_settings
from sparsight.common.hashes import state_hash
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.load import load_pipeline
from sparsight.diffusion.model.sampling import Sampling, sample, starting_noise
from sparsight.diffusion.train import teacher_samples
from sparsight.diffusion.train.stages import Stage
from sparsight.diffusion.train.teacher_samples import NOISE_OFFSET
from sparsight.testing import relative_l2
from tests import tiny
from tests.tiny_extras import needs_torchao


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_pixel_pipeline(tmp_path_factory.mktemp("teacher") / "dit"))


@pytest.fixture(scope="module")
def text_teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_sd_pipeline(tmp_path_factory.mktemp("teacher") / "sd"))


def data(teacher: str, cache: Path, **options: Any) -> TeacherSamplesDataModule:
    defaults = {"count": 6, "val_count": 2, "sampling": {"steps": 4}, "batch_size": 4}
    kept = {"folder": str(cache), "shard_size": 3} | options.pop("kept", {})
    compute = {"device": "cpu", "batch_size": 3} | options.pop("compute", {})
    return TeacherSamplesDataModule(teacher, cache=kept, compute=compute, **defaults | options)


def ready(teacher: str, cache: Path, **options: Any) -> TeacherSamplesDataModule:
    module = data(teacher, cache, **options)
    module.prepare_data()
    module.setup()
    return module


def items(module: TeacherSamplesDataModule, name: str = "train") -> dict[int, dict[str, Any]]:
    dataset = module.datasets[name]
    return {item["index"]: item for item in (dataset[position] for position in range(len(dataset)))}


def shards(cache: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(cache.glob("*/*.safetensors"))}


def contents(cache: Path) -> dict[str, str]:
    return {name: state_hash(load_file(path)) for name, path in shards(cache).items()}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def drawn_ids(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ids of the samples that are drawn from now on."""
    drawn: list[int] = []
    original = teacher_samples.draw

    def counting(model: Any, plan: Any, ids_N: Tensor, **options: Any) -> dict[str, Tensor]:
        drawn.extend(ids_N.tolist())
        return original(model, plan, ids_N, **options)

    monkeypatch.setattr(teacher_samples, "draw", counting)
    return drawn


# -- content -----------------------------------------------------------------------------------------------------------


def test_states_are_those_of_the_sampler_and_the_last_leads_to_the_sample(teacher: str, tmp_path: Path) -> None:
    states = items(ready(teacher, tmp_path))
    finished = items(ready(teacher, tmp_path, mode="samples"))
    model = DiffusionModel.from_pretrained(teacher)
    visited: list[tuple[Tensor, Tensor]] = []
    noise = starting_noise((1, 8, 8), seed=0, index=torch.arange(3) + NOISE_OFFSET)
    final = sample(
        model,
        {"label": torch.arange(3)},
        noise,
        steps=4,
        guidance=2.0,
        on_state=lambda state, timestep: visited.append((state, timestep)),
    )
    for i in range(3):
        torch.testing.assert_close(finished[i]["sample"], final[i])
        assert finished[i]["label"] == i
        for step, (state, timestep) in enumerate(visited):
            item = states[i * 4 + step]
            torch.testing.assert_close(item["xt"], state[i])
            assert item["timestep"] == timestep and item["label"] == i
    assert len({int(item["timestep"]) for item in states.values()}) == 4


def test_training_and_validation_share_no_trajectory_and_no_noise_with_evaluation(teacher: str, tmp_path: Path) -> None:
    module = ready(teacher, tmp_path)
    train, val = items(module), items(module, "val")
    assert sorted(train) == list(range(24)) and sorted(val) == list(range(24, 32))
    stored = torch.stack([item["xt"] for item in (train | val).values()])
    seen_in_grids = starting_noise((1, 8, 8), seed=0, index=torch.arange(8))
    assert (stored[:, None] - seen_in_grids[None]).flatten(2).abs().amax(2).min() > 0.1


def test_content_depends_on_neither_batch_size_nor_what_was_made_before(teacher: str, tmp_path: Path) -> None:
    ready(teacher, tmp_path / "a")
    ready(teacher, tmp_path / "b", count=3, val_count=0)
    ready(teacher, tmp_path / "b")  # grows: the first shard is from another run
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    other = items(ready(teacher, tmp_path / "c", compute={"batch_size": 2}))
    for index, item in items(ready(teacher, tmp_path / "a")).items():
        torch.testing.assert_close(other[index]["xt"], item["xt"])


def test_kept_states_cover_all_noise_levels_and_lie_apart(teacher: str, tmp_path: Path) -> None:
    module = data(teacher, tmp_path, sampling={"steps": 20}, count=20, states_per_trajectory=3)
    step_NK = module.plan.chosen_steps(torch.arange(20))
    assert step_NK.unique().tolist() == list(range(20))
    assert (step_NK.diff(dim=1) >= 6).all()
    assert module.plan.chosen_steps(torch.arange(5, 9)).equal(step_NK[5:9])
    for label in range(5):  # no class is tied to some of the levels
        of_class = torch.arange(label, 500, 5)
        assert module.plan.chosen_steps(of_class).unique().tolist() == list(range(20))
    few = ready(teacher, tmp_path, sampling={"steps": 8}, count=8, states_per_trajectory=2)
    whole = items(ready(teacher, tmp_path, sampling={"steps": 8}, count=8))
    for index, item in items(few).items():
        assert torch.equal(item["xt"], whole[index]["xt"]) and item["timestep"] == whole[index]["timestep"]
    assert len(few.datasets["train"]) == 16


def test_prediction_asks_for_every_held_out_sample_once(teacher: str, tmp_path: Path) -> None:
    module = ready(teacher, tmp_path, val_count=3)
    batches = list(module.predict_dataloader())
    assert [int(label) for batch in batches for label in batch["label"]] == [6, 7, 8]
    assert torch.equal(next(iter(module.test_dataloader()))["index"], next(iter(module.val_dataloader()))["index"])


def test_validation_comes_by_every_trajectory_before_it_returns_to_one(teacher: str, tmp_path: Path) -> None:
    module = ready(teacher, tmp_path, val_count=5, batch_size=3)
    batches = list(module.val_dataloader())
    labels, index, timesteps = (
        torch.cat([batch[name] for batch in batches]) for name in ("label", "index", "timestep")
    )
    assert labels.tolist() == [6, 7, 8, 9, 0] * 4  # ids 6 to 10 of a teacher with 10 classes
    assert sorted(index.tolist()) == list(range(24, 44))
    assert all(len(first.unique()) == 4 for first in timesteps.split(5)), "the first ones have all noise levels too"


def test_half_precision_files_give_float32_batches(teacher: str, tmp_path: Path) -> None:
    exact = items(ready(teacher, tmp_path))
    module = ready(teacher, tmp_path, kept={"dtype": "float16"})
    for index, item in items(module).items():
        assert item["xt"].dtype == torch.float32 and torch.equal(item["xt"], exact[index]["xt"].half().float())
    stored = load_file(module.datasets["train"].cache.path(0))
    assert stored["xt"].dtype == torch.float16


def test_sizes_in_model_space_that_the_teacher_can_do(teacher: str, text_teacher: str, tmp_path: Path) -> None:
    batch = next(iter(ready(text_teacher, tmp_path, sampling={"size": (8, 12)}, captions=["a cat"]).train_dataloader()))
    assert batch["xt"].shape == (4, 4, 8, 12) and batch["caption"] == ["a cat"] * 4
    with pytest.raises(ValueError, match=r"size is \(4, 12\); allowed: square"):
        data(teacher, tmp_path, sampling={"size": (4, 12)}).prepare_data()
    with pytest.raises(
        ValueError, match=r"size is \(4, 5\); allowed: 2 sides that are multiples of the denoiser's patch size 2"
    ):
        data(teacher, tmp_path, sampling={"size": (4, 5)}).prepare_data()


def test_captions_are_dealt_in_turn_and_steer_the_samples(text_teacher: str, tmp_path: Path) -> None:
    lines = tmp_path / "captions.txt"
    lines.write_text("a cat\n\n a dog \n")
    module = ready(text_teacher, tmp_path, captions=str(lines), mode="samples")
    batch = next(iter(module.val_dataloader()))
    assert batch["caption"] == ["a cat", "a dog"] and batch["index"].tolist() == [6, 7]
    assert batch["sample"].shape == (2, 4, 16, 16)
    other = items(ready(text_teacher, tmp_path, captions=["a cow", "a dog"], mode="samples"))
    same = [torch.equal(other[i]["sample"], item["sample"]) for i, item in items(module).items()]
    assert same == [False, True] * 3 and len(list(tmp_path.glob("*/manifest.json"))) == 2


# -- the cache ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("moved", "missing"), [(0, range(8)), (2, range(3, 8))], ids=["manifest", "second shard"])
def test_a_run_that_was_killed_while_writing_goes_on_there(
    teacher: str,
    tmp_path: Path,
    moved: int,
    missing: range,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ready(teacher, tmp_path / "whole")
    move, moves = os.replace, iter(range(100))

    def killed(source: Any, target: Any) -> None:
        if next(moves) == moved:
            raise KeyboardInterrupt
        move(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        data(teacher, tmp_path / "cut").prepare_data()
    (folder,) = (tmp_path / "cut").iterdir()
    part = folder / ".00001.4711.part.safetensors"  # what remains when not even clean-up could run
    part.write_bytes(b"half")
    drawn = drawn_ids(monkeypatch)
    ready(teacher, tmp_path / "cut")
    assert drawn == list(missing) and not part.exists()
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert not warnings(caplog)  # an unfinished run is no damage


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_shard_is_reported_and_made_again(
    teacher: str, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ready(teacher, tmp_path)
    before = contents(tmp_path)
    path = shards(tmp_path)["00001.safetensors"]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if damage == "flipped" else content[:-100])
    drawn = drawn_ids(monkeypatch)
    ready(teacher, tmp_path)
    assert drawn == [3, 4, 5] and contents(tmp_path) == before
    (warning,) = warnings(caplog)
    assert "00001.safetensors is made again" in warning
    assert {"flipped": "checksum", "truncated": "damaged"}[damage] in warning


def rot(path: Path) -> None:
    """One bit changes, and the file's time does not."""
    before = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_bits_that_rot_are_found_every_month_or_whenever_that_is_asked_for(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ready(teacher, tmp_path)
    before = contents(tmp_path)
    path = shards(tmp_path)["00001.safetensors"]
    drawn = drawn_ids(monkeypatch)
    rot(path)
    ready(teacher, tmp_path)  # made just now: not read
    assert drawn == [] and contents(tmp_path) != before
    ready(teacher, tmp_path, kept={"verify_days": 0})
    assert drawn == [3, 4, 5] and contents(tmp_path) == before
    assert "00001.safetensors is made again: its checksum is wrong" in warnings(caplog)[0]
    rot(path)
    now = sample_cache.time.time()
    monkeypatch.setattr(sample_cache.time, "time", lambda: now + 31 * 24 * 3600)
    ready(teacher, tmp_path, kept={"verify_days": None})
    assert drawn == [3, 4, 5]
    ready(teacher, tmp_path)
    assert drawn == [3, 4, 5, 3, 4, 5] and contents(tmp_path) == before
    verified = (path.parent / "verified.json").read_text()
    ready(teacher, tmp_path)  # the whole ones were verified a moment ago
    assert (path.parent / "verified.json").read_text() == verified


def test_what_killed_processes_left_is_swept_also_beside_finished_shards(teacher: str, tmp_path: Path) -> None:
    ready(teacher, tmp_path)
    folder = next(tmp_path.iterdir())
    left = folder / ".00000.999999999.part.safetensors"
    left.write_bytes(b"half")
    ready(teacher, tmp_path, count=9)
    assert not left.exists()


def test_a_shard_that_is_damaged_in_mid_run_is_named(teacher: str, tmp_path: Path) -> None:
    module = ready(teacher, tmp_path)
    path = shards(tmp_path)["00000.safetensors"]
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"00000\.safetensors was damaged .* begin again"):
        module.datasets["train"][0]


def test_a_complete_cache_is_read_and_not_written(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(teacher, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    drawn = drawn_ids(monkeypatch)
    ready(teacher, tmp_path)
    ready(teacher, tmp_path, count=4, val_count=1)  # shrinking asks for nothing new either
    assert drawn == [] and {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_runs_started_together_make_the_samples_once(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = drawn_ids(monkeypatch)
    # diffusers loads under a global patch that two threads would leave behind; processes have one each
    load, lock = DiffusionModel.from_pretrained, Lock()

    def load_alone(*args: Any, **options: Any) -> DiffusionModel:
        with lock:
            return load(*args, **options)

    monkeypatch.setattr(DiffusionModel, "from_pretrained", load_alone)
    with ThreadPoolExecutor(2) as pool:
        for finished in [pool.submit(data(teacher, tmp_path).prepare_data) for _ in range(2)]:
            finished.result()
    assert sorted(drawn) == list(range(8))


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"sampling": {"steps": 5}}, "steps: 5 there, 4 asked for"),
        ({"sampling": {"steps": 4, "guidance_scale": 1.0}}, "guidance_scale: 1.0 there, 2.0 asked for"),
        ({"seed": 1}, "seed: 1 there"),
        ({"kept": {"dtype": "float16"}}, "dtype: float16 there"),
        ({"mode": "samples"}, "mode: samples there"),
        ({"states_per_trajectory": 3}, "states_per_trajectory: 3 there"),
        ({"kept": {"shard_size": 4}}, "shard_size: 4 there"),
        ({"sampling": {"steps": 4, "size": (4, 4)}}, "shape.1: 4 there, 8 asked for"),
    ],
)
def test_every_setting_has_a_cache_of_its_own_that_no_other_uses(
    teacher: str, tmp_path: Path, option: dict[str, Any], named: str
) -> None:
    ours, theirs = (ready(teacher, tmp_path, **o).datasets["train"].cache.folder for o in ({}, option))
    assert ours != theirs and ours.parent == theirs.parent == tmp_path
    with pytest.raises(ValueError, match="made with other settings and is not used") as error:
        data(teacher, theirs).prepare_data()
    assert named in str(error.value)
    assert ready(teacher, ours).datasets["train"].cache.folder == ours


def test_another_teacher_or_sampler_finds_no_samples_of_this_one(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(teacher_samples, "rank_zero_info", told.append)
    folder = ready(teacher, tmp_path / "cache").datasets["train"].cache.folder
    pipeline = load_pipeline(teacher)
    with torch.no_grad():
        pipeline.transformer.proj_out_2.bias[0] += 1e-3
    pipeline.save_pretrained(tmp_path / "weights")
    pipeline = load_pipeline(teacher)
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, beta_schedule="linear")
    pipeline.save_pretrained(tmp_path / "sampler")
    for name, setting in (("weights", "teacher.weights"), ("sampler", "sampler.config.beta_schedule")):
        with pytest.raises(ValueError, match=setting):
            data(str(tmp_path / name), folder).prepare_data()
        told.clear()
        assert ready(str(tmp_path / name), tmp_path / "cache").datasets["train"].cache.folder != folder
        assert any(f"{folder} is not used" in line and setting in line for line in told)


def test_what_no_caption_means_to_the_teacher_is_a_setting(tmp_path: Path) -> None:
    model = DiffusionModel.from_pretrained(str(tiny.save_sdxl_pipeline(tmp_path / "sdxl")))
    plan = data("", tmp_path, captions=["a cat"]).plan
    zeros = plan.settings(model)["teacher"]
    model.pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    assert plan.settings(model)["teacher"] == zeros | {"zeros_for_no_caption": False} != zeros


def test_a_manifest_that_cannot_be_read_stops_the_run(teacher: str, tmp_path: Path) -> None:
    folder = ready(teacher, tmp_path).datasets["train"].cache.folder
    (folder / "manifest.json").write_text('{"settings": ')
    with pytest.raises(ValueError, match=r"manifest.json is unreadable: delete .* to make it anew"):
        data(teacher, tmp_path).prepare_data()


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "video"}, "mode is 'video'; allowed: samples, trajectory"),
        ({"kept": {"dtype": "int8"}}, "dtype is 'int8'"),
        ({"count": 1, "batch_size": 5}, "count=1 with 4 states each do not fill one batch of 5"),
        ({"mode": "samples", "count": 3}, "count=3 with 1 states each do not fill"),
        ({"sampling": {"steps": 0}}, "steps is 0; allowed: 1 or more"),
        ({"kept": {"shard_size": 0}}, "shard_size is 0"),
        ({"compute": {"batch_size": 0}}, "batch_size is 0"),
        ({"val_count": -1}, "val_count is -1; allowed: 0 or more"),
        ({"sampling": {"steps": 4, "guidance_scale": float("nan")}}, "guidance_scale is nan"),
        ({"states_per_trajectory": 5}, "states_per_trajectory is 5; allowed: 1 to sampling.steps=4"),
        ({"states_per_trajectory": 2, "mode": "samples"}, "leave it out with mode: samples"),
        ({"states_per_trajectory": 1, "count": 4, "sampling": {"steps": 20}}, "leave some of the 20 steps without any"),
        ({"captions": []}, "captions is empty"),
    ],
)
def test_impossible_options_are_refused_before_the_teacher_is_loaded(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        data("nowhere", tmp_path, **options)


def test_teacher_captions_and_folder_must_be_there(teacher: str, text_teacher: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no pipeline folder /nowhere"):
        data("/nowhere", tmp_path).prepare_data()
    with pytest.raises(FileNotFoundError, match=r"there is no file captions\.txt"):
        data(text_teacher, tmp_path, captions="captions.txt")
    with pytest.raises(ValueError, match="conditioned on text: set captions"):
        data(text_teacher, tmp_path).prepare_data()
    with pytest.raises(ValueError, match="conditioned on classes: set captions to null"):
        data(teacher, tmp_path, captions=["a cat"]).prepare_data()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write to .* choose another cache.folder"):
        data(teacher, tmp_path / "file").prepare_data()
    with pytest.raises(RuntimeError, match="call prepare_data before setup"):
        data(teacher, tmp_path).setup()


def test_a_full_disk_is_found_before_sampling(teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = drawn_ids(monkeypatch)
    bytes_needed = 8 * 4 * 64 * 4  # samples, states, pixels, bytes of a float32
    for free in (bytes_needed - 1, bytes_needed):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        if free < bytes_needed:
            with pytest.raises(ValueError, match="lower count or states_per_trajectory"):
                data(teacher, tmp_path).prepare_data()
            assert not drawn
        else:
            data(teacher, tmp_path).prepare_data()


def test_a_teacher_that_yields_nan_stops_and_leaves_no_shard(teacher: str, tmp_path: Path) -> None:
    pipeline = load_pipeline(teacher)
    with torch.no_grad():
        pipeline.transformer.proj_out_2.weight.fill_(3e38)  # weights that are NaN are refused at once
    pipeline.save_pretrained(tmp_path / "broken")
    for mode in ("samples", "trajectory"):
        with pytest.raises(FloatingPointError, match=r"states of samples \[0, 1, 2\] are NaN, infinite"):
            data(str(tmp_path / "broken"), tmp_path / "cache", mode=mode, sampling={"steps": 1}).prepare_data()
    assert not shards(tmp_path / "cache")
    steps: list[int] = []
    model = DiffusionModel.from_pretrained(str(tmp_path / "broken"))
    with pytest.raises(FloatingPointError):
        teacher_samples.draw(
            model, data(teacher, tmp_path).plan, torch.arange(2), sample_batch_size=2, on_step=steps.append
        )
    assert steps == [2]  # the first broken state ends it, not the last step
    with pytest.raises(FloatingPointError, match="too large for float16"):
        data(
            teacher, tmp_path / "cache", sampling={"steps": 4, "guidance_scale": 1e8}, kept={"dtype": "float16"}
        ).prepare_data()


# -- loaders -----------------------------------------------------------------------------------------------------------


def test_workers_and_copies_give_the_batches_of_the_main_process(teacher: str, tmp_path: Path) -> None:
    module = ready(teacher, tmp_path)
    expected = list(module.train_dataloader())
    module.num_workers = 2
    for batch, wanted in zip(module.train_dataloader(), expected, strict=True):
        assert batch.keys() == wanted.keys() and all(torch.equal(batch[key], wanted[key]) for key in wanted)
    copy = pickle.loads(pickle.dumps(module.datasets["train"]))
    assert torch.equal(copy[5]["xt"], module.datasets["train"][5]["xt"])


def test_two_processes_share_the_batches_of_one_and_only_the_first_draws(teacher: str, tmp_path: Path) -> None:
    alone = ready(teacher, tmp_path)
    expected = [set(batch["index"].tolist()) for batch in alone.train_dataloader()]
    found: list[list[set[int]]] = []
    validated: list[int] = []
    for rank in range(2):
        module = data(teacher, tmp_path, batch_size=2)
        strategy = SimpleNamespace(broadcast=lambda own: alone.datasets["train"].cache)  # rank 0's
        module.trainer = SimpleNamespace(world_size=2, global_rank=rank, strategy=strategy, limit_train_batches=None)
        module.setup("fit")
        found.append([set(batch["index"].tolist()) for batch in module.train_dataloader()])
        validated += [int(index) for batch in module.val_dataloader() for index in batch["index"]]
    assert [a | b for a, b in zip(*found, strict=True)] == expected
    assert sorted(validated) == list(range(24, 32))


class Seen(Callback):
    """Ids of the states of every training batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch["index"].tolist())


def test_distillation_on_trajectories_resumes_with_the_next_batch_bitwise(teacher: str, tmp_path: Path) -> None:
    def fit(steps: int, checkpoint: Path | None = None) -> tuple[AttentionDistillation, list[list[int]], Trainer]:
        torch.manual_seed(0)
        mixer = partial(DeltaConvBlock, preset="released_pixart", kernel_size=3)
        stages = [Stage("layerwise", 4, warmup_steps=1), Stage("end_to_end", 4, warmup_steps=1)]
        module = AttentionDistillation(teacher, mixer, stages, trained={"init_samples": 0}, sampling=Sampling(2))
        seen = Seen()
        options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(
            max_steps=steps, max_epochs=-1, accelerator="cpu", callbacks=[seen], default_root_dir=tmp_path, **options
        )
        trainer.fit(module, datamodule=data(teacher, tmp_path / "cache"), ckpt_path=checkpoint)
        return module, seen.batches, trainer

    whole, batches, _ = fit(8)
    _, first, trainer = fit(5)
    trainer.save_checkpoint(tmp_path / "five.ckpt")
    resumed, rest, _ = fit(8, tmp_path / "five.ckpt")
    assert first + rest == batches and len(batches) == 8
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    "held",
    [
        {"dtype": "bfloat16"},
        pytest.param({"dtype": "bfloat16", "quantization": "int8"}, marks=needs_torchao),
    ],
)
def test_a_teacher_is_held_as_is_wished_and_its_samples_have_a_cache_of_their_own(
    held: dict[str, Any], teacher: str, tmp_path: Path
) -> None:
    exact = items(ready(teacher, tmp_path, mode="samples"))
    ready(teacher, tmp_path, mode="samples", loading={"dtype": "float32"})
    (_,) = tmp_path.glob(f"*/{MANIFEST}")  # as it was without a word
    for index, item in items(ready(teacher, tmp_path / "held", mode="samples", loading=held)).items():
        wanted = exact[index]["sample"]
        assert not torch.equal(item["sample"], wanted)
        assert relative_l2(item["sample"], wanted) < 0.1
    (settings,) = map(read_settings, (tmp_path / "held").glob(f"*/{MANIFEST}"))
    assert settings is not None and {f"teacher_{name}": each for name, each in held.items()}.items() <= settings.items()


@pytest.mark.gpu
def test_a_gpu_draws_the_samples_of_the_cpu(teacher: str, tmp_path: Path) -> None:
    cpu = items(ready(teacher, tmp_path / "cpu"))
    module = data(teacher, tmp_path / "gpu")
    module.device = "auto"
    module.prepare_data()
    module.setup()
    for index, item in items(module).items():
        torch.testing.assert_close(item["xt"], cpu[index]["xt"], rtol=1e-2, atol=1e-2)
