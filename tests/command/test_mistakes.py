"""Mistakes and faults of the machine end in one line with key, file or value; our own faults keep their traceback."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub.errors import OfflineModeIsEnabled
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch._utils import ExceptionWrapper

from datamodules.record_dataset import TooManyCorruptRecords
from sparsight import __main__
from sparsight.command.cli import main
from sparsight.command.mistakes import TRACEBACK, in_one_line, raised_by_us
from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.sampling import sample
from tests.tiny_distillation import distillation_config
from tests.tiny_rows import few

ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"weight_decay": -1.0}}
STAGE = {"objective": "layerwise", "steps": 2, "warmup_steps": 1}
CALLBACKS = "lightning.pytorch.callbacks"
LOGGERS = "lightning.pytorch.loggers"


def with_callback(kind: str, **options: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        config["trainer"]["callbacks"] = [{"class_path": kind, "init_args": options}]

    return change


def with_option(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        *above, last = keys
        for key in above:
            config = config.setdefault(key, {})
        config[last] = value

    return change


def stage(**options: Any) -> Callable[[dict[str, Any]], None]:
    return with_option("model", "init_args", "stages", value=[STAGE | options])


MISTAKES = [
    (stage(lr=-0.001), r"model\.stages\.0\.lr is -0\.001; allowed: above 0$"),
    (stage(lr=float("nan")), r"model\.stages\.0\.lr is nan"),
    (stage(steps=0), r"model\.stages\.0\.steps is 0; allowed: 1 or more$"),
    (stage(lr_schedule="cosin"), r"model\.stages\.0\.lr_schedule is 'cosin'; allowed: .*cosine"),
    (stage(loss={"site": -1.0}), r"model\.stages\.0.*loss\.site is -1\.0"),
    (
        with_option("model", "init_args", "optimizer", value=ADAMW),
        r"model\.optimizer\.weight_decay: .* -1\.0 \(from to",
    ),
    (with_option("model", "init_args", "condition_dropout", value=1.5), r"model\.condition_dropout is 1\.5"),
    (with_option("data", "init_args", "batch_size", value=-3), r"data\.batch_size is -3; allowed: 1 or more$"),
    (with_option("trainer", "accelerator", value="tpu"), r"trainer\.accelerator is 'tpu'"),
    (with_option("trainer", "devices", value="two"), r"trainer\.devices is 'two'"),
    (with_option("trainer", "strategy", value="ddpp"), r"trainer\.strategy is 'ddpp'"),
    (with_option("trainer", "max_steps", value=-5), r"trainer\.max_steps must be .* passed in -5"),
    (with_option("trainer", "accumulate_grad_batches", value=0), r"trainer\.accumulate_grad_batches is 0"),
    (with_option("trainer", "gradient_clip_val", value=-1), r"trainer\.gradient_clip_val is -1"),
    (with_option("trainer", "devices", value=9999), r"trainer\.devices is 9999; allowed: up to \d+ on this machine$"),
    (with_option("seed_everything", value=-4), r"seed_everything is -4; allowed: 0 to 4294967295$"),
    (with_option("seed_everything", value=2**40), r"seed_everything is 1099511627776; allowed: 0 to 4294967295$"),
    (with_option("trainer", "logger", value={"class_path": f"{LOGGERS}.MLFlowLogger"}), r"trainer\.logger.*mlflow"),
    (with_callback(f"{CALLBACKS}.ModelCheckpoint", save_top_k=-7), r"trainer\.callbacks\.0\.save_top_k: .*-7"),
    (
        with_callback(f"{CALLBACKS}.ModelCheckpoint", dirpath="config.yaml/x"),
        r"callbacks\.0\.dirpath: 'config\.yaml/x'",
    ),
    (with_option("trainer", "default_root_dir", value="x" * 300), r"trainer\.default_root_dir: .*too long"),
    (
        with_option("data", "init_args", "train", "init_args", "images", value="imagez.idx"),
        r"data\.train\.images: 'imag",
    ),
    *[
        (
            with_option("trainer", option, value=value),
            rf"trainer\.{option} is {value}, with which fit does nothing: to me",
        )
        for option, value in {
            "limit_train_batches": 0,
            "max_steps": 0,
            "max_epochs": 0,
            "max_time": "00:00:00:00",
        }.items()
    ],
    (with_option("trainer", "check_val_every_n_epoch", value=0), r"trainer\.check_val_every_n_epoch is 0; allowed: 1"),
    (with_option("trainer", "val_check_interval", value=0), r"trainer\.val_check_interval is 0; allowed: above 0"),
    (
        stage(objective="end_to_end", loss={"to_teacher": 0, "site": 0}),
        r"model\.stages\.0\.loss is .*; allowed: a weight above 0 among them",
    ),
    (
        with_option("model", "init_args", "site_weights", value={"*": 0.0}),
        r"model\.site_weights is .*; allowed: a weight above 0 for one site at least",
    ),
    (
        with_option("model", "init_args", "site_weights", value={"nothing*": 2.0}),
        r"model\.site_weights\.nothing\* matches no site; sites are transformer_blocks\.0\.attn1, ",
    ),
    (
        with_option(
            "model", "init_args", "optimizer", value={"class_path": "torch.optim.SGD", "init_args": {"zzz": {}}}
        ),
        r"config\.yaml: model\.optimizer\.zzz: there is no such option$",
    ),
    (
        with_option("data", "init_args", "transform", "channels", value=3),
        r"data\.transform\.channels is 3; allowed: 1, as the model's",
    ),
    (with_option("data", "init_args", "image_size", value=9), r"data\.image_size is \(9, 9\); allowed: multiples"),
    (
        with_option("data", "init_args", "image_size", value=[8, 16]),
        r"data\.image_size is \(8, 16\); allowed: a single number",
    ),
    *[
        (with_option(*keys, value={}), rf"config\.yaml: {told}$")
        for keys, told in {
            ("trainr",): r"trainr: there is no such option; did you mean trainer\?",
            ("trainer", "max_stepz"): r"trainer\.max_stepz: there is no such option; did you mean max_steps.*",
            ("model", "init_args", "stagez"): r"model\.stagez: there is no such option; did you mean stages\?",
            ("data", "init_args", "train", "init_args", "imagez"): r"data\.train\.imagez: .* did you mean images\?",
            ("imagez", "folder"): r"imagez: there is no such option; did you mean images\?",
        }.items()
    ],
    *[
        (
            with_option(*keys, value=None),
            rf"{'.'.join(k for k in keys if k != 'init_args')} is null, .* leave it out{more}$",
        )
        for keys, more in {
            ("data", "init_args", "batch_size"): ", which means 64",
            ("data", "init_args", "transform"): "",
            ("model", "init_args", "sampling"): "",
            ("model", "init_args", "trained"): "",
        }.items()
    ],
    (stage(lr=None), r"model\.stages\.0\.lr is null, which it cannot be: leave it out, which means 0\.0003$"),
    (stage(step={}), r"model\.stages\.step: there is no such option; did you mean steps or timesteps\?"),
]


# neighbours in the list are found by the same check: every third is tried by `make test`
@pytest.mark.parametrize(
    ("change", "message"),
    few(MISTAKES, *MISTAKES[::3]),
    ids=[re.sub(r"\W+", " ", each[1])[:40] for each in MISTAKES],
)
def test_the_key_is_named_in_one_line(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = distillation_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(path.read_text())
    config["trainer"]["enable_model_summary"] = True  # the estimate of memory asks for much before a logger is made
    change(config)
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit, match=f"^sparsight: .*{message}") as stop:
        main(["fit", "--config", str(path)])
    assert len(str(stop.value).splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_verbs_that_would_do_nothing_are_refused(tmp_path: Path, verb: str) -> None:
    option = {"validate": "limit_val_batches", "test": "limit_test_batches", "predict": "limit_predict_batches"}[verb]
    with pytest.raises(SystemExit, match=rf"trainer\.{option} is 0, with which {verb} does nothing: leave it out"):
        main([verb, "--config", str(distillation_config(tmp_path)), f"--trainer.{option}", "0"])


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        ("test", "data.test: there are no records .* --data.test FolderRecords .* by `sparsight validate`"),
        ("validate", "data.val: there are no records .* --data.val_share 0.1"),
    ],
)
def test_records_that_no_one_gave_are_missed_before_weights_are_loaded(tmp_path: Path, verb: str, message: str) -> None:
    (tmp_path / "images").mkdir()
    source = {"class_path": "FolderRecords", "init_args": {"root": str(tmp_path / "images")}}
    data = {"class_path": "ImageDataModule", "init_args": {"train": source, "image_size": 8, "batch_size": 2}}
    path = distillation_config(tmp_path)
    config = yaml.safe_load(path.read_text()) | {"data": data}
    path.write_text(yaml.safe_dump(config))
    for weights in (tmp_path / "teacher").rglob("*.safetensors"):
        weights.write_bytes(b"")
    with pytest.raises(SystemExit, match=f"^sparsight: {message}"):
        main([verb, "--config", str(path)])


def test_empty_keys_on_the_command_line_are_refused_and_valid_ones_are_not(tmp_path: Path) -> None:
    path = distillation_config(tmp_path)
    with pytest.raises(SystemExit, match=r"--model\.mixer: model\.mixer\.scale: .* did you mean scales"):
        main(["fit", "--config", str(path), "--model.mixer", "{class_path: DeltaConvBlock, init_args: {scale: {}}}"])
    config = yaml.safe_load(path.read_text())
    config["model"]["init_args"] |= {"site_weights": {}}
    config["model"]["init_args"]["mixer"]["init_args"]["of_another_class"] = {}  # it is replaced below
    path.write_text(yaml.safe_dump(config | {"images": {}}))
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(path), "--model.mixer", "LinearAttention", "--print_config"])
    assert stop.value.code == 0


def test_a_callback_that_needs_a_logger_is_named(tmp_path: Path) -> None:
    config = str(distillation_config(tmp_path))
    more = ["--trainer.logger", "false", "--trainer.callbacks+=LearningRateMonitor"]
    with pytest.raises(SystemExit, match=r"^sparsight: trainer\.callbacks\.0 \(LearningRateMonitor\): .*no logger"):
        main(["fit", "--config", config, *more])


def test_a_checkpoint_that_is_not_there_is_said_before_weights_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = distillation_config(tmp_path)
    (tmp_path / "last.ckpt").touch()
    monkeypatch.setattr("sparsight.diffusion.model.diffusion_model.DiffusionModel.from_pretrained", None)
    with pytest.raises(SystemExit, match=r"^sparsight: ckpt_path: .*lst\.ckpt' does not exist; .* .*/last\.ckpt"):
        main(["fit", "--config", str(config), "--ckpt_path", str(tmp_path / "lst.ckpt")])


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Files of this process cannot grow beyond ``size`` bytes, as on a disk that is full."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.slow
def test_a_full_disk_names_the_checkpoint_in_mid_run(tmp_path: Path) -> None:
    config = distillation_config(tmp_path)
    with files_of_at_most(20_000), pytest.raises(SystemExit, match=r"^sparsight: .*\.ckpt.*too large") as stop:
        main(["fit", "--config", str(config)])
    assert len(str(stop.value).splitlines()) == 1


def test_the_traceback_stays_within_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACEBACK, "1")
    with pytest.raises(ValueError, match="steps is 0"):
        main(["fit", "--config", str(distillation_config(tmp_path, stages=[STAGE | {"steps": 0}]))])


def raised(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def throw(error: BaseException) -> Callable[[], None]:
    def raise_it() -> None:
        raise error

    return raise_it


FAULTS = [
    (
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/b.ckpt"),
        "a/b.ckpt: No space left on device: free some space",
    ),
    (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "quota exceeded: free some space"),
    (OSError(errno.EROFS, os.strerror(errno.EROFS), "x"), "x: Read-only file system: write elsewhere"),
    (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "x"), "x: Permission denied: write elsewhere, or change"),
    (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "x"), "x: Too many open files: raise `ulimit -n`"),
    (OSError(errno.EIO, os.strerror(errno.EIO), "x"), "x: Input/output error: see to the disk"),
    (SafetensorError("Error while serializing: I/O error: File too large (os error 27)"), "File too large"),
    (MemoryError(), "out of memory: main memory: lower batch_size"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), "CUDA out of memory. Tried: lower batch_size"),
    (RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"), "most likely memory ran out"),
    (OfflineModeIsEnabled("Cannot reach https://hub: offline mode"), "HF_HUB_OFFLINE"),
    (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "Connection reset by peer"),
    (torch.distributed.DistNetworkError("The server socket has failed"), "lost each other: The server socket"),
]


@pytest.mark.parametrize(("error", "message"), FAULTS, ids=[each[1][:30] for each in FAULTS])
def test_faults_of_the_machine_are_one_line_at_any_time(error: BaseException, message: str) -> None:
    for begun in (False, True):
        line = in_one_line(raised(throw(error)), begun=begun)
        assert line is not None and message in line and "\n" not in line


def test_a_fault_behind_another_error_is_the_one_that_is_told() -> None:
    """As torch does it: its writer fails anew while it closes a file that could not be written."""

    def write() -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "last.ckpt")
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")

    line = in_one_line(raised(write), begun=True)
    assert line == "last.ckpt: No space left on device: free some space, or write to another disk"


def test_what_a_loader_process_says_of_missing_images_is_told_whole() -> None:
    said = "2 of 2 records are unreadable: talks.json entry 4: FileNotFoundError: [Errno 2] No such file: 'a.png'"
    try:
        raise TooManyCorruptRecords(said)
    except TooManyCorruptRecords:
        carried = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(TooManyCorruptRecords) as stop:
        carried.reraise()
    told = in_one_line(stop.value, begun=True)
    assert told == said


def test_a_hub_that_cannot_be_reached_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub = huggingface_hub.HfApi(endpoint="http://127.0.0.1:9")  # the port that discards: nothing listens
    line = in_one_line(raised(lambda: hub.model_info("some/model", timeout=5)), begun=True)
    assert line is not None and "see to the connection" in line and "\n" not in line


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"nothing of the kind" * 9)
    line = in_one_line(raised(lambda: load_file(path)), begun=False)
    assert line is not None and str(path) in line


BUGS = [TypeError, AttributeError, KeyError, IndexError, AssertionError, ZeroDivisionError, RuntimeError]


@pytest.mark.parametrize("kind", BUGS)
def test_faults_of_the_program_keep_their_traceback(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    import sparsight.publish.facts as ours

    code = compile("def fail(error): raise error", ours.__file__, "exec")
    space: dict[str, Any] = {}
    exec(code, space)
    error = raised(lambda: space["fail"](kind("x")))
    assert raised_by_us(error)
    assert in_one_line(error, begun=False, config=object()) is None
    assert in_one_line(raised(lambda: torch.zeros(2) @ torch.zeros(3)), begun=True) is None
    assert in_one_line(raised(lambda: int("no number")), begun=False, config=object()) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fti", "--config", "x"], r"there is no verb 'fti'; did you mean fit\?"),
        (["--hlp"], r"there is no option '--hlp' before a verb; did you mean --help\?"),
        (["fit", "--config", "confg.yaml"], r"no config 'confg\.yaml'; did you mean config\.yaml\?"),
        (["fit", "--config", "experiment/quickstrat"], r"did you mean experiment/quickstart\?"),
        (["fit", "--config", "."], r"config '\.' is a folder"),
        (["fit", "--config=broken.yaml"], r"broken\.yaml, line 3, column 2: .*did not find expected key"),
        (["fit", "-c", "tab.yaml"], r"tab\.yaml, line 2, column 1: .*spaces, not tabs"),
        (["fit", "--config", "latin.yaml"], r"latin\.yaml, line 2: byte 0xe9 is not UTF-8"),
        (["fit", "--config", "twice.yaml"], r"twice\.yaml, line 3: 'max_steps' is in line 2 already"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_verb_and_files_are_checked_before_anything_heavy(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("trainer: {}\n")
    Path("broken.yaml").write_text("trainer:\n  max_steps: 5\n model:\n  class_path: x\n")
    Path("tab.yaml").write_text("trainer:\n\tmax_steps: 5\n")
    Path("latin.yaml").write_bytes("trainer: {}\n# caf\xe9\n".encode("latin-1"))
    Path("twice.yaml").write_text("trainer:\n  max_steps: 5\n  max_steps: 6\n")
    monkeypatch.setitem(sys.modules, "sparsight.command.cli", None)  # what comes next cannot be imported
    with pytest.raises(SystemExit, match=f"^sparsight: .*{message}"):
        __main__.main(arguments)


def test_an_option_that_a_later_config_sets_back_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(distillation_config(tmp_path))
    late = tmp_path / "late.yaml"
    late.write_text("images: {folder: null}\nmodel: {init_args: {sampling: {steps: 3}}}\n")
    before = ["--images.folder", "drawn", "--model.sampling.steps=2", "--trainer.max_steps", "1"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", config, *before, "--config", str(late), "--print_config"])
    assert stop.value.code == 0
    told = capsys.readouterr().err
    assert f"--images.folder drawn is set back to null by {late}" in told
    assert f"--model.sampling.steps 2 is set back to 3 by {late}" in told and "max_steps" not in told


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("blocks.DeltaConvBlok", "blocks.DeltaConvBlock"),
        ("block.DeltaConvBlock", "blocks.DeltaConvBlock"),
        ("blocks.deltaconvblock", "blocks.DeltaConvBlock"),
        ("blocks.delta_conv.DeltaConvBlok", "blocks.delta_conv.DeltaConvBlock"),
        ("DeltaConvBlok", "DeltaConvBlock"),
        ("deltaconvblock", "DeltaConvBlock"),
    ],
)
def test_a_misspelt_class_is_answered_with_what_was_meant(
    given: str, meant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(distillation_config(tmp_path, mixer={"class_path": given}))
    with pytest.raises(SystemExit):
        main(["fit", "--config", config])
    assert f"model.mixer: there is no class '{given}'; did you mean {meant}?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.mixer.preset", "papr"], r"model\.mixer\.preset: expected Literal\[.*\], got 'papr'$"),
        (["--model.mixer.kernel_size", "three"], r"model\.mixer\.kernel_size: expected int .*, got 'three'$"),
        (["--modle.teacher", "x"], r"did you mean --model\.teacher\?"),
        (["--matmul_precision", "hi"], r"matmul_precision: .*did you mean high\?"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_the_key_itself_is_named(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(distillation_config(tmp_path)), *arguments])
    assert re.search(message, capsys.readouterr().err.splitlines()[0])


def test_a_forgotten_config_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--model.teacher", "teacher"])
    assert "model.teacher: no model is given that could have it; give a --config" in capsys.readouterr().err


def test_more_sampler_steps_than_the_scheduler_has_are_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    config = str(distillation_config(tmp_path, sampling={"steps": 5000}))
    with pytest.raises(
        SystemExit, match=r"model\.sampling\.steps is 5000; allowed: 1 to \d+, the steps of the model's noise"
    ):
        main(["predict", "--config", config, "--untrained", "true"])
    with pytest.raises(ConfigurationError, match=r"^steps is 5000; allowed: 1 to"):
        sample(DiffusionModel.from_pretrained(str(tmp_path / "teacher")), {}, torch.zeros(1), steps=5000, guidance=1.0)


@pytest.mark.parametrize(
    ("ended", "told"),
    [("Terminated", "the run was stopped from outside, as by a time limit"), ("Killed", "most likely memory ran out")],
)
def test_a_loader_process_that_was_ended_is_told_with_its_reason(ended: str, told: str) -> None:
    line = in_one_line(RuntimeError(f"DataLoader worker (pid 19429) is killed by signal: {ended}."), begun=True)
    assert line is not None and told in line
