"""Data that a config file names and that are not there are refused early, unless something else may change that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from sparsight.command.arguments import check_arguments
from sparsight.command.checks.early_checks import check_early
from sparsight.command.checks.input_paths import check_inputs, needs_of
from sparsight.common.errors import ConfigurationError
from tests.tiny_files import png, write_files

Config = dict[str, Any]


def of(kind: str, **options: Any) -> Config:
    return {"class_path": f"datamodules.{kind}", "init_args": options}


def images(**sources: Config) -> Config:
    return of("ImageDataModule", **sources, image_size=8)


def write(file: str, data: Any, **more: Any) -> str:
    Path(file).write_text(yaml.safe_dump({"data": data, **more}))
    return file


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {"there/a/0.png": png(), "there.tar": b"x", "there.json": b"[]"})
    monkeypatch.chdir(tmp_path)


GONE: list[tuple[Config, str]] = [
    (images(train=of("FolderRecords", root="ther")), r"^data\.train\.root: 'ther' does not exist; did you mean there"),
    (images(train=of("FolderRecords", root="")), r"^data\.train\.root is empty: give a path, or leave it out"),
    (images(train=of("TarRecords", files=["there.tar", " "])), r"^data\.train\.files is empty"),
    (images(train=of("FolderRecords", root="there.tar")), r"^data\.train\.root: there\.tar is a file; give a folder"),
    (images(train=of("TarRecords", files=["there.tar", "gone*"])), r"^data\.train\.files: there is no file gone\*"),
    (
        images(train=of("HuggingFaceRecords", path="./gone")),
        r"^data\.train\.path: \./gone does not exist; give a folder",
    ),
    (
        images(train=of("MixedRecords", sources=[of("FolderRecords", root="there"), of("ParquetRecords", files="no")])),
        r"^data\.train\.sources\.1\.files: there is no file no",
    ),
    (images(train={"class_path": "IdxRecords", "init_args": {"images": "gone.idx"}}), r"^data\.train\.images: 'gone"),
    (
        of("ReformEvalDataModule", tasks=[of("PublishedTask", file="there.json", root="gone/x/y")]),
        r"^data\.tasks\.0\.root: gone/x/y does not exist",
    ),
]


@pytest.mark.parametrize(("data", "message"), GONE, ids=[message for _, message in GONE])
def test_what_is_not_there_is_refused_by_its_key(data: Config, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        check_inputs(["fit", "--config", write("run.yaml", data)])


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["fit", "--ckpt_path", ""], "ckpt_path"),
        (["validate", "--ckpt_path= "], "ckpt_path"),
        (["compare", "", "there.json"], "compare"),
    ],
)
def test_a_blank_is_no_path(arguments: list[str], key: str) -> None:
    """It is what a shell makes of a variable that is not set, and was passed over, or stood for the current folder."""
    with pytest.raises(ConfigurationError, match=f"^{key} is empty: give a path, or leave it out"):
        check_arguments(arguments)


@pytest.mark.parametrize("key", ["ckpt_path", "output", "trainer.default_root_dir"])
def test_a_blank_in_a_config_is_none_either(key: str) -> None:
    config = Namespace(trainer=Namespace(default_root_dir="runs"), model=None, data=None)
    check_early(config, "export")
    config[key] = ""
    with pytest.raises(ConfigurationError, match=f"^{key} is empty"):
        check_early(config, "export")


def test_it_may_stand_in_a_config_that_is_included() -> None:
    write("below.yaml", images(train=of("FolderRecords", root="gone")))
    Path("run.yaml").write_text("include: [below.yaml]\ntrainer: {max_steps: 1}\n")
    with pytest.raises(ValueError, match=r"data\.train\.root: 'gone' does not exist"):
        check_inputs(["fit", "--config=run.yaml"])


@pytest.mark.parametrize(
    "more",
    [
        ["--data.train.root", "there"],
        ["--data.train.init_args.root=there"],
        ["--data.train", "TarRecords"],
        ["--data.train.class_path=datamodules.TarRecords"],
        ["--data", "ImageDataModule"],
        ["--data", "later.yaml"],
        ["--config", "later.yaml"],
        ["--config", "other.yaml"],
        ["--config", "none.yaml"],
        ["--print_config"],
        ["--help"],
    ],
    ids=" ".join,
)
def test_nothing_is_refused_that_something_behind_it_may_change(more: list[str]) -> None:
    gone = write("run.yaml", images(train=of("FolderRecords", root="gone"), val=of("FolderRecords", root="there")))
    write("later.yaml", {"init_args": {"train": {"init_args": {"root": "there"}}}})
    write("other.yaml", images(train=of("TarRecords", files="there.tar")))
    write("none.yaml", {"init_args": {"train": None}})
    check_inputs(["fit", "--config", gone, *more])
    with pytest.raises(ValueError, match="'gone' does not exist"):
        check_inputs(["fit", "--config", gone, "--data.val.root", "there", "--data.image_size=8"])


def test_verbs_that_open_no_data_and_files_inside_a_root_are_left_alone() -> None:
    check_inputs(["export", "--config", write("run.yaml", images(train=of("FolderRecords", root="gone")))])
    task = of("PublishedTask", file="inside.json", root="there")
    for data in (of("ReformEvalDataModule", tasks=[task]), "a name", None, {"class_path": "mine.Data", "init_args": 3}):
        check_inputs(["test", "--config", write("run.yaml", data)])


def test_what_a_class_needs_is_read_from_its_source() -> None:
    assert [(need.rule, need.option) for need in needs_of("datamodules.ConversationRecords")] == [
        ("need_file", "file"),
        ("need_folder", "images"),
    ]
    assert needs_of("mine.FolderRecords") == needs_of("datamodules.NoSuchRecords") == []
