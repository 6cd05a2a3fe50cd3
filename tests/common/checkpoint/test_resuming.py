"""Which checkpoint a run goes on from, what is compared with it, and that none is needed for it to be compared."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import AsyncCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn

from callbacks import TrainableEMA
from datamodules import FolderRecords, IdxRecords
from sparsight.command.mistakes import in_one_line
from sparsight.command.trainer import SparsightTrainer
from sparsight.common.checkpoint.file import read_checkpoint, read_header
from sparsight.common.checkpoint.io import OrderedCheckpointIO, WholeCheckpointIO
from sparsight.common.checkpoint.run_record import DATA, RUN, check_run, run_record
from sparsight.common.errors import CheckpointError, ConfigurationError
from tests import tiny
from tests.tiny_run import Line, data, trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that saved steps 2 and 4, and ``last``."""
    folder = tmp_path_factory.mktemp("trained")
    trainer(folder, max_steps=4).fit(Line(), datamodule=data(folder))
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, in the order of its times."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def named(run: Path) -> dict[str, str]:
    """All ways to name the last checkpoint of a run."""
    folder = run / "checkpoints"
    return {"path": str(folder / "last.ckpt"), "last": "last", "best": "best"}


def test_every_way_to_name_a_checkpoint_goes_on_from_it(run: Path) -> None:
    for name in (*named(run).values(), Path(named(run)["path"])):
        again = trainer(run, max_steps=4)
        again.fit(Line(), datamodule=data(run), ckpt_path=name)
        assert (again.global_step, Path(again.ckpt_path or "").parent) == (4, run / "checkpoints"), name
    resumed = trainer(run, max_steps=6)
    resumed.fit(Line(), datamodule=data(run), resume=True)
    assert resumed.global_step == 6
    newest = max((run / "checkpoints").glob("last*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    state = torch.load(newest, weights_only=True)["loops"]["fit_loop"]
    assert state["epoch_loop.batch_progress"]["total"]["ready"] == 6, "two steps were new"


@pytest.mark.parametrize("way", ["path", "last", "best", "resume"])
def test_every_way_compares_options(run: Path, way: str) -> None:
    how: dict[str, Any] = {"resume": True} if way == "resume" else {"ckpt_path": named(run)[way]}
    with pytest.raises(ConfigurationError, match=r"rate: 0\.1 in the checkpoint, 0\.2 in the configuration"):
        trainer(run).fit(Line(rate=0.2), datamodule=data(run), **how)
    for options, message in {
        ("batch_size", 8): r"global_batch: 4 in the checkpoint, 8 in the configuration",
        ("seed", 1): r"data\.seed: 0 in the checkpoint, 1 in the configuration",
        ("limit", 12): r"data\.limit: None in the checkpoint, 12 in the configuration",
    }.items():
        with pytest.raises(CheckpointError, match=message) as refused:
            trainer(run).fit(Line(), datamodule=data(run, **dict([options])), **how)
        work = Namespace(trainer=Namespace(), model=Namespace(class_path="Line", init_args=Namespace(variant=None)))
        assert in_one_line(refused.value, begun=False, config=work) == str(refused.value), "no other key stands first"
    with pytest.raises(ConfigurationError, match=r"accumulate_grad_batches: 1 in the checkpoint, 2"):
        trainer(run, accumulate_grad_batches=2).fit(Line(), datamodule=data(run), **how)


ARITHMETIC: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    r"trainer\.precision: '32-true' in the checkpoint, 'bf16-mixed'": ({}, {"precision": "bf16-mixed"}),
    r"gradient_clip_val: None in the checkpoint, 0\.5": ({}, {"gradient_clip_val": 0.5}),
    r"gradient_clip_algorithm: 'norm' in the checkpoint, 'value'": (
        {"gradient_clip_val": 1.0},
        {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"},
    ),
    r"limit_train_batches: '1\.0' in the checkpoint, '1' in": ({}, {"limit_train_batches": 1}),
    r"limit_train_batches: '1\.0' in the checkpoint, '2' in": ({}, {"overfit_batches": 2}),
    r"TrainableEMA\.decay: 0\.9 in the checkpoint, 0\.5": (
        {"callbacks": [TrainableEMA(0.9)]},
        {"callbacks": [TrainableEMA(0.5)]},
    ),
}


@pytest.mark.parametrize("message", ARITHMETIC)
def test_what_changes_the_arithmetic_is_compared(message: str, tmp_path: Path) -> None:
    before, now = ARITHMETIC[message]
    saver = {"callbacks": [ModelCheckpoint(tmp_path, every_n_train_steps=2, save_last=True)]}
    trainer(tmp_path, max_steps=2, **{**before, "callbacks": [*saver["callbacks"], *before.get("callbacks", [])]}).fit(
        Line(), datamodule=data(tmp_path)
    )
    with pytest.raises(CheckpointError, match=message):
        trainer(tmp_path, max_steps=4, **now).fit(Line(), datamodule=data(tmp_path), ckpt_path=tmp_path / "last.ckpt")


def test_what_means_the_same_is_no_difference(tmp_path: Path) -> None:
    """Steps, processes of the loader and ways to say no clipping may change; both spellings of a clipping are read."""
    trainer(tmp_path, max_steps=2).fit(Line(), datamodule=data(tmp_path))
    other = {"gradient_clip_val": 0.0, "gradient_clip_algorithm": "norm", "precision": 32, "log_every_n_steps": 1}
    again = trainer(tmp_path, max_steps=4, **other)
    again.fit(Line(), datamodule=data(tmp_path), ckpt_path="last")
    assert again.global_step == 4


def test_what_rounds_otherwise_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    with pytest.warns(UserWarning, match=r"rounded otherwise .*\n.*matmul_precision: '\w+' in the checkpoint, 'med"):
        trainer(run, max_steps=6).fit(Line(), datamodule=data(run), ckpt_path="last")


def test_a_run_that_clips_by_value_can_go_on(tmp_path: Path) -> None:
    """Lightning makes an object of its own of the word, which was kept and then refused when it was read."""
    clip = {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}
    trainer(tmp_path, max_steps=2, **clip).fit(Line(), datamodule=data(tmp_path))
    again = trainer(tmp_path, max_steps=4, **clip)
    again.fit(Line(), datamodule=data(tmp_path), ckpt_path="last")
    assert again.global_step == 4


def test_verbs_that_train_nothing_compare_the_module_alone(run: Path) -> None:
    last = named(run)["path"]
    trainer(run, limit_val_batches=1).validate(Line(), datamodule=data(run, val_share=0.5, seed=3), ckpt_path=last)
    for verb in ("validate", "test", "predict"):
        with pytest.raises(ConfigurationError, match=r"rate: 0\.1 in the checkpoint"):
            getattr(trainer(run), verb)(Line(rate=0.3), datamodule=data(run, val_share=0.5), ckpt_path="last")


def test_lightnings_own_trainer_compares_too(run: Path) -> None:
    plain = Trainer(default_root_dir=run, logger=False, max_steps=6, accelerator="cpu", limit_val_batches=0)
    with pytest.raises(ConfigurationError, match="global_batch: 4 in the checkpoint, 8"):
        plain.fit(Line(), datamodule=data(run, batch_size=8), ckpt_path=named(run)["path"], weights_only=True)


def test_the_seed_of_everything_is_compared(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    trainer(tmp_path / "seeded", max_steps=2).fit(Line(), datamodule=data(run))
    monkeypatch.setenv("PL_GLOBAL_SEED", "4")
    with pytest.raises(ConfigurationError, match="seed_everything: 3 in the checkpoint, 4"):
        trainer(tmp_path / "seeded").fit(Line(), datamodule=data(run), ckpt_path="last")


def test_data_that_moved_are_told_by_what_they_hold(run: Path, tmp_path: Path, recwarn: Any) -> None:
    def resume(images: Path, labels: Path) -> None:
        module = data(run)
        module.sources["train"] = IdxRecords(str(images), str(labels))
        module.hparams["train"] = {"init_args": {"images": str(images), "labels": str(labels)}}  # as the command does
        trainer(run, max_steps=6).fit(Line(), datamodule=module, ckpt_path="last")

    before = data(run)
    images, labels = tiny.save_idx(tmp_path)
    before.hparams["train"] = {"init_args": {"images": str(images), "labels": str(labels)}}
    before.sources["train"] = IdxRecords(str(images), str(labels))
    trainer(run, max_steps=2).fit(Line(), datamodule=before)
    moved = [path.rename(path.with_name(f"moved_{path.name}")) for path in (images, labels)]
    resume(*moved)
    assert any("have moved, but their records are those of" in str(warning.message) for warning in recwarn)
    content = bytearray(moved[0].read_bytes())
    content[80:144] = bytes(64)  # the second image of 24
    moved[0].write_bytes(bytes(content))
    with pytest.raises(ConfigurationError, match=r"identity\.content: '\w+' in the checkpoint"):
        resume(*moved)


@pytest.mark.parametrize(
    ("known", "found", "ends"),
    [
        ({"records": 2, "sha256": "a"}, {"records": 2, "sha256": "a", "content": "c"}, "moved"),
        ({"records": 2, "sha256": "a"}, {"records": 2, "sha256": "b", "content": "c"}, "refused"),
        ({"records": 2, "sha256": "a", "content": "c"}, {"records": 2, "sha256": "b", "content": "c"}, "moved"),
        ({"sha256": "a", "content": "c"}, {"sha256": "a", "content": "d"}, "refused"),
        ({"content": "c", "changed": 1}, {"content": "c", "changed": 2}, "changed"),
        ({"content": "c"}, {}, "cannot be told"),
    ],
)
def test_facts_of_data_that_both_versions_know_are_compared(
    run: Path, known: dict[str, Any], found: dict[str, Any], ends: str, recwarn: Any
) -> None:
    class Known(Wrapping):
        def identity(self) -> dict[str, Any]:
            return found

    again = trainer(run)
    again.state.fn = TrainerFn.FITTING
    before, now = ({"train": {"init_args": {"file": name}}} for name in ("a.json", "b.json"))
    vars(again)["datamodule"] = Known("cache", now)
    saved = {RUN: run_record(again) | {"identity": known}, DATA: dict(Wrapping("cache", before).hparams)}
    if ends in ("refused", "cannot be told"):
        with pytest.raises(CheckpointError, match="records were added, removed" if ends == "refused" else ends):
            check_run(saved, again, source="last.ckpt")
        return
    check_run(saved, again, source="last.ckpt")
    told = " ".join(str(warning.message) for warning in recwarn)
    assert "have moved" in told and ("too many to be read whole" in told) == (ends == "changed")


class Wrapping(LightningDataModule):
    """Holds the options of another datamodule, as the command keeps them."""

    def __init__(self, cache_dir: str, images: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)


def test_options_of_a_datamodule_inside_another_count_as_its_own(run: Path) -> None:
    again = trainer(run)
    again.state.fn = TrainerFn.FITTING

    def wrapping(**changed: Any) -> Wrapping:
        options = {"num_workers": 0, "seed": 0, "val": {"init_args": {"root": "a"}}, "train": {"revision": "x"}}
        return Wrapping("cache", {"class_path": "datamodules.ImageDataModule", "init_args": options | changed})

    saved = {RUN: run_record(again), DATA: dict(wrapping().hparams)}
    vars(again)["datamodule"] = wrapping(num_workers=2, val={"init_args": {"root": "b"}})
    check_run(saved, again, source="last.ckpt")
    for changed in ({"seed": 1}, {"train": {"revision": "y"}}):
        vars(again)["datamodule"] = wrapping(**changed)
        with pytest.raises(ConfigurationError, match=r"data\.images\.init_args\.(seed|train\.revision): "):
            check_run(saved, again, source="last.ckpt")


def test_a_data_set_of_another_class_is_refused(run: Path) -> None:
    folder = run / "pictures"
    folder.mkdir()
    from PIL import Image

    for number in range(24):
        Image.new("L", (8, 8), number).save(folder / f"{number}.png")
    other = data(run)
    other.sources["train"] = FolderRecords(str(folder), class_folders=False)
    with pytest.raises(ConfigurationError, match=r"identity\.content"):
        trainer(run).fit(Line(), datamodule=other, ckpt_path="last")


def test_last_with_nothing_there_names_where_it_looked(tmp_path: Path) -> None:
    for logger in (False, CSVLogger(tmp_path / "logs")):
        with pytest.raises(CheckpointError, match=r"there is no last\.ckpt in .*checkpoints"):
            trainer(tmp_path, logger=logger).fit(Line(), datamodule=data(tmp_path), ckpt_path="last")
    for keyword, message in {"best": "last.ckpt", "hpc": "no hpc_ckpt"}.items():
        with pytest.raises(CheckpointError, match=message):
            trainer(tmp_path).fit(Line(), datamodule=data(tmp_path), ckpt_path=keyword)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at nowhere\.ckpt"):
        trainer(tmp_path).fit(Line(), datamodule=data(tmp_path), ckpt_path="nowhere.ckpt")
    with pytest.raises(CheckpointError, match="is a folder"):
        trainer(tmp_path).fit(Line(), datamodule=data(tmp_path), ckpt_path=str(tmp_path))
    with pytest.raises(CheckpointError, match="download it"):
        trainer(tmp_path).fit(Line(), datamodule=data(tmp_path), ckpt_path="https://hub/last.ckpt")


def test_last_is_that_of_the_newest_numbered_run(tmp_path: Path) -> None:
    for steps in (4, 6):
        trainer(tmp_path, max_steps=steps, logger=CSVLogger(tmp_path)).fit(Line(), datamodule=data(tmp_path))
    again = trainer(tmp_path, max_steps=6, logger=CSVLogger(tmp_path))
    again.fit(Line(), datamodule=data(tmp_path), ckpt_path="last")
    assert "version_1" in str(again.ckpt_path) and again.global_step == 6
    again = trainer(tmp_path, max_steps=6, logger=CSVLogger(tmp_path))
    again.fit(Line(), datamodule=data(tmp_path), resume=True)
    assert "version_1" in str(again.ckpt_path)


def test_a_link_named_last_is_followed(tmp_path: Path) -> None:
    saver = ModelCheckpoint(every_n_train_steps=2, save_top_k=1, save_last="link", filename="{step}")
    made = SparsightTrainer(
        default_root_dir=tmp_path, logger=False, max_steps=4, callbacks=[saver], accelerator="cpu", limit_val_batches=0
    )
    made.fit(Line(), datamodule=data(tmp_path))
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert last.is_symlink() and read_header(last).step == 4
    again = trainer(tmp_path, max_steps=4)
    again.fit(Line(), datamodule=data(tmp_path), ckpt_path="last")
    assert again.global_step == 4
    last.resolve().unlink()
    with pytest.raises(CheckpointError, match="leads to a file that is gone"):
        trainer(tmp_path).fit(Line(), datamodule=data(tmp_path), ckpt_path="last")


def test_a_link_named_last_leads_to_a_checkpoint_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, gaps = tmp_path / "checkpoints" / "last.ckpt", []
    for name in ("remove", "unlink", "replace", "symlink"):
        original = getattr(os, name)

        def watched(*arguments: Any, _original: Any = original, **options: Any) -> Any:
            there = last.exists()
            done = _original(*arguments, **options)
            gaps.append(there and not last.exists())
            return done

        monkeypatch.setattr(os, name, watched)
    saver = ModelCheckpoint(every_n_train_steps=1, save_top_k=-1, save_last="link", filename="{step}")
    made = SparsightTrainer(
        default_root_dir=tmp_path, logger=False, max_steps=4, callbacks=[saver], accelerator="cpu", limit_val_batches=0
    )
    made.fit(Line(), datamodule=data(tmp_path))
    assert gaps and not any(gaps) and last.is_symlink() and read_header(last).step == 4


def test_a_checkpoint_is_read_twice_on_resuming(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once to compare it with its hash, once to load it; a file that has changed in between is compared again."""
    compared: list[Path] = []
    from sparsight.common.checkpoint import file, find

    for module in (file, find):
        original = module.verify
        monkeypatch.setattr(
            module, "verify", lambda path, _original=original: (compared.append(path), _original(path))[1]
        )
    trainer(run, max_steps=6).fit(Line(), datamodule=data(run), resume=True)
    assert len(compared) == 1
    io = WholeCheckpointIO()
    last = run / "checkpoints" / "step=2.ckpt"
    io.was_whole(last)
    last.write_bytes(last.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match="cut off"):
        io.load_checkpoint(last)


def test_resume_takes_the_newest_whole_one(run: Path, recwarn: Any) -> None:
    folder = run / "checkpoints"
    for path, step in ((folder / "last.ckpt", 4), (folder / "step=4.ckpt", 4)):
        path.write_bytes(path.read_bytes()[:-2000])  # as a kill or a full disk may leave other programs' files
        again = trainer(run, max_steps=step)
        again.fit(Line(), datamodule=data(run), resume=True)
        newest = {"last.ckpt": "step=4.ckpt", "step=4.ckpt": "step=2.ckpt"}[path.name]
        assert Path(again.ckpt_path or "").name in (newest, "last.ckpt"), path
        for new in folder.glob("last*.ckpt"):
            if path.name == "last.ckpt" or new.name != "last.ckpt":
                new.unlink()
    assert any("passed over" in str(warning.message) for warning in recwarn)


def test_a_run_killed_before_its_first_last_goes_on_with_one_last(tmp_path: Path) -> None:
    """The checkpoint that training goes on from knows of no ``last`` yet."""
    for steps in (1, 3):
        saver = ModelCheckpoint(every_n_train_steps=1, save_top_k=-1, save_last=True, filename="{step}")
        made = SparsightTrainer(
            default_root_dir=tmp_path,
            logger=False,
            max_steps=steps,
            callbacks=[saver],
            accelerator="cpu",
            limit_val_batches=0,
            enable_progress_bar=False,
        )
        made.fit(Line(), datamodule=data(tmp_path), resume=True)
        last = tmp_path / "checkpoints" / "last.ckpt"
        assert read_header(last).step == steps
        if steps == 1:
            last.unlink()
    assert [path.name for path in last.parent.glob("last*")] == ["last.ckpt"]


def test_resume_says_when_nothing_is_whole_or_there(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
        trainer(run).fit(Line(), datamodule=data(run), resume=True)
    shutil.rmtree(run / "checkpoints")
    with caplog.at_level("INFO"):
        begun = trainer(run, max_steps=2)
        begun.fit(Line(), datamodule=data(run), resume=True)
    assert begun.global_step == 2 and "starting at step 0" in caplog.text
    with pytest.raises(CheckpointError, match="which is no folder"):
        trainer(run).fit(Line(), datamodule=data(run), resume=str(run / "nowhere"))
    with pytest.raises(ConfigurationError, match="give one of them"):
        trainer(run).fit(Line(), datamodule=data(run), resume=True, ckpt_path="last")


def test_resume_finds_runs_elsewhere_by_their_folder(run: Path, tmp_path: Path) -> None:
    moved = trainer(tmp_path / "other", max_steps=4)
    moved.fit(Line(), datamodule=data(run), resume=str(run))
    assert Path(moved.ckpt_path or "").parent == run / "checkpoints"


def test_weights_alone_are_nothing_to_go_on_from(run: Path) -> None:
    made = trainer(run, max_steps=4)
    made.fit(Line(), datamodule=data(run), resume=True)
    made.save_checkpoint(run / "weights.ckpt", weights_only=True)
    with pytest.raises(CheckpointError, match="holds weights alone"):
        trainer(run).fit(Line(), datamodule=data(run), ckpt_path=run / "weights.ckpt")
    resumed = trainer(run, max_steps=4)
    resumed.fit(Line(), datamodule=data(run), resume=True)
    assert Path(resumed.ckpt_path or "").name != "weights.ckpt"


def test_what_killed_processes_left_is_removed(run: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    left = run / "checkpoints" / f".last.{ended.pid}.part.ckpt"
    left.write_bytes(b"half")
    trainer(run, max_steps=4).fit(Line(), datamodule=data(run), resume=True)
    assert not left.exists()


def test_checkpoints_are_loaded_by_class_without_code_or_addresses(run: Path) -> None:
    assert Line.load_from_checkpoint(run / "checkpoints" / "last.ckpt").rate == 0.1
    with pytest.raises(CheckpointError, match="download it"):
        Line.load_from_checkpoint("http://127.0.0.1/last.ckpt")


@pytest.mark.parametrize("option", ["ckpt_path", "resume"])
def test_a_checkpoint_without_a_name_is_refused(run: Path, option: str) -> None:
    with pytest.raises(CheckpointError, match="name is empty: give a file, last or best, or leave it out"):
        trainer(run).fit(Line(), datamodule=data(run), **{option: ""})


def test_the_users_own_way_of_writing_stays() -> None:
    own = WholeCheckpointIO()
    assert SparsightTrainer(plugins=[own], accelerator="cpu", logger=False).strategy.checkpoint_io is own
    wrapped = SparsightTrainer(plugins=[AsyncCheckpointIO()], accelerator="cpu", logger=False).strategy.checkpoint_io
    assert isinstance(wrapped, OrderedCheckpointIO) and isinstance(wrapped.checkpoint_io, WholeCheckpointIO)


def test_the_record_of_a_run_is_in_its_checkpoints(run: Path) -> None:
    saved = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert saved["format"] == 1
    assert saved["sparsight_run"]["identity"]["records"] == 24
    assert saved["datamodule_hyper_parameters"]["batch_size"] == 4


@pytest.mark.parametrize("save_last", [True, "link"])
@pytest.mark.parametrize("left", ["older", "damaged", "none"])
def test_last_is_brought_up_to_date_where_a_run_was_killed_before_it(
    run: Path, save_last: bool | Literal["link"], left: str
) -> None:
    """A run that has nothing left to do writes no checkpoint any more: ``last`` would stay behind for good."""
    folder = run / "checkpoints"
    last = folder / "last.ckpt"
    if left == "older":
        shutil.copyfile(folder / "step=2.ckpt", last)
    elif left == "damaged":
        last.write_bytes(last.read_bytes()[:-2000])
    else:
        last.unlink()
    saver = ModelCheckpoint(dirpath=folder, every_n_train_steps=2, save_top_k=-1, save_last=save_last)
    again = SparsightTrainer(
        default_root_dir=run, logger=False, max_steps=4, callbacks=[saver], accelerator="cpu", limit_val_batches=0
    )
    again.fit(Line(), datamodule=data(run), resume=True)
    assert Path(again.ckpt_path or "").name == "step=4.ckpt"
    assert read_header(last).step == 4 and last.is_symlink() == (save_last == "link")
