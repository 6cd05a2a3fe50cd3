"""Files of data are looked for before any weights are loaded, whatever source names them and however deep it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset, Features, Image, Value

from datamodules import (
    ConversationRecords,
    EmojiRecords,
    FolderRecords,
    HuggingFaceConversations,
    HuggingFaceRecords,
    HuggingFaceStream,
    IdxRecords,
    LabelledQuestions,
    NamingTask,
    ParquetRecords,
    PublishedTask,
    TarRecords,
)
from sparsight.command.cli import main
from tests.tiny_distillation import distillation_config
from tests.tiny_files import png, write_files, write_shard

Config = dict[str, Any]


def of(kind: str, **options: Any) -> Config:
    return {"class_path": f"datamodules.{kind}", "init_args": options}


def images(**sources: Config) -> Config:
    return of("ImageDataModule", **{"train": of("FolderRecords", root="there"), "image_size": 8} | sources)


def talks(**options: Any) -> Config:
    return of("InstructionDataModule", model="x", **options)


STREAM: dict[str, Any] = {"image_size": 8, "batches_per_epoch": 1}
NAMING: dict[str, Any] = {"name": "naming", "dimension": "coarse_perception"}
LATENTS = of("CachedLatentsDataModule", teacher="x", images=images(train=of("TarRecords", files="gone.tar")))
MISSING: list[tuple[Config, str]] = [
    (images(train=of("TarRecords", files="gone-*.tar")), r"data\.train\.files: there is no file gone-\*\.tar"),
    (images(val=of("FolderRecords", root="a.tar")), r"data\.val\.root: a\.tar is a file; give a folder"),
    (
        images(
            train=of("MixedRecords", sources=[of("FolderRecords", root="there"), of("TarRecords", files="gone.tar")])
        ),
        r"data\.train\.sources\.1\.files: there is no file gone\.tar",
    ),
    (of("StreamingImageDataModule", train=of("TarStream", files="gone-*"), **STREAM), r"data\.train\.files: .*gone-\*"),
    (LATENTS, r"data\.images\.train\.files: .*gone\.tar"),
    (of("TeacherSamplesDataModule", teacher="x", captions="gone.txt"), r"data\.captions: .*gone\.txt"),
    (
        talks(train=of("FolderRecords", root="there"), chat={"template": "gone.jinja"}),
        r"data\.chat\.template is 'gone\.jinja'",
    ),
    (
        of("ReformEvalDataModule", tasks=[of("NamingTask", source=of("TarRecords", files="gone.tar"), **NAMING)]),
        r"data\.tasks\.0\.source\.files: .*gone\.tar",
    ),
    (images() | {"init_args": images()["init_args"] | {"batch_size": -1}}, r"data\.batch_size is -1"),
]
PRUNE = {"score": {"class_path": "sparsight.lvlm.scores.AngularDistance"}}
FACES = of("HuggingFaceRecords", path="saved", caption_column="captoin")
WRONG: list[tuple[str, Config, str]] = [
    ("fit", images(train=FACES), r"data\.train\.caption_column is 'captoin', which.*'text'"),
    ("validate", images(val=FACES), r"data\.val\.caption_column is 'captoin'"),
    (
        "fit",
        of("StreamingImageDataModule", train=of("TarStream", files="a.tar"), val=FACES, **STREAM),
        r"data\.val\.caption_column",
    ),
    ("fit", images() | {"init_args": images()["init_args"] | {"batch_size": 3}}, r"data.*: 2 training records do not"),
    (
        "fit",
        images() | {"init_args": images()["init_args"] | {"batch_size": 2, "val_share": 0.5}},
        r"data.*: 1 training records do not fill one batch of 2",
    ),
    (
        "fit",
        images() | {"init_args": images()["init_args"] | {"val_share": 0.1}},
        r"data\.val_share=0.1 holds out 0 of 2",
    ),
    ("fit", talks(train=of("ConversationRecords", file="bad.json")), r"data\.train.*: .*bad\.json"),
    (
        "fit",
        talks(train=of("ConversationRecords", file="talks.json"), val=of("ConversationRecords", file="bad.json")),
        r"data\.val.*: .*bad\.json",
    ),
]
SOURCES: list[tuple[Any, str]] = [
    (TarRecords(["a.tar", "gone.tar"]), "files: there is no file gone.tar"),
    (TarRecords("a-{0..2}.tar"), "files: there is no file a-0.tar"),
    (ParquetRecords("gone/*.parquet"), "files: there is no file gone/*.parquet"),
    (HuggingFaceStream("parquet", "gone.parquet"), "files: there is no file gone.parquet"),
    (HuggingFaceStream("a/b/gone"), "path: a/b/gone does not exist"),
    (HuggingFaceRecords("./gone"), "path: ./gone does not exist"),
    (HuggingFaceConversations("/gone"), "path: /gone does not exist"),
    (IdxRecords("there"), "images: there is a folder; give a file"),
    (IdxRecords("a.tar", "gone.idx"), "labels: gone.idx does not exist"),
    (EmojiRecords("gone.ttf"), "emoji font gone.ttf does not exist"),
    (ConversationRecords("there"), "file: there is a folder"),
    (ConversationRecords("a.tar", "gone"), "images: gone does not exist"),
    (LabelledQuestions(TarRecords("gone.tar")), "files: there is no file gone.tar"),
    (NamingTask(FolderRecords("there"), similar="e", **NAMING), "embeddings e do not exist"),
    (PublishedTask("CIFAR10", root="there"), "file: there/"),
]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration whose model cannot be loaded."""
    path = distillation_config(tmp_path)
    files: dict[str, bytes | str] = {
        "there/a/0.png": png(),
        "there/a/1.png": png(1),
        "bad.json": "{",
        "talks.json": "[{}, {}, {}, {}, {}, {}, {}, {}]",
    }
    write_files(tmp_path, files)
    write_shard(tmp_path / "a.tar", 0, 2)
    Dataset.from_dict(
        {"image": [{"bytes": png()}], "text": ["b"]}, features=Features(image=Image(), text=Value("string"))
    ).save_to_disk(str(tmp_path / "saved"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sparsight.diffusion.model.diffusion_model.DiffusionModel.from_pretrained", None)
    return path


@pytest.mark.parametrize(("data", "message"), MISSING, ids=[each[1] for each in MISSING])
def test_what_is_missing_is_named_before_weights_are_loaded(config: Path, data: Config, message: str) -> None:
    assert len(told("fit", config, data, message).splitlines()) == 1


@pytest.mark.parametrize(("verb", "data", "message"), WRONG, ids=[each[2] for each in WRONG])
def test_what_data_hold_is_seen_before_weights_are_loaded(config: Path, verb: str, data: Config, message: str) -> None:
    assert len(told(verb, config, data, message).splitlines()) == 1


@pytest.mark.parametrize(
    ("model", "folder"),
    [({}, "student"), ({"base": "some/model", "prune": None}, "tuned"), ({"base": "x", "prune": PRUNE}, "pruned")],
    ids=["student", "tuned", "pruned"],
)
def test_an_export_that_is_there_is_seen_before_weights_are_loaded(
    config: Path, model: Config, folder: str, tmp_path: Path
) -> None:
    content = yaml.safe_load(config.read_text())
    if model:
        options = {name: value for name, value in model.items() if value is not None} | {"stages": [{"steps": 1}]}
        content["model"] = {"class_path": "lightning_modules.SparseLayerTuning", "init_args": options}
        content["data"] = talks(train=of("ConversationRecords", file="talks.json"))
    content["trainer"]["callbacks"] = [{"class_path": "callbacks.ExportAtEnd"}]
    config.write_text(yaml.safe_dump(content))
    write_files(tmp_path / "runs" / folder, {"README.md": "an earlier one"})
    with pytest.raises(SystemExit, match=rf"default_root_dir: ExportAtEnd's .*/{folder} exists already: give"):
        main(["fit", "--config", str(config)])
    with pytest.raises(SystemExit, match=r"callbacks\.ExportAtEnd\.output there exists already"):
        main(["fit", "--config", str(config), "--trainer.callbacks.output", "there"])


def told(verb: str, config: Path, data: Config, message: str) -> str:
    """What a verb says of other data, as it begins."""
    content = yaml.safe_load(config.read_text()) | {"data": data}
    if data["class_path"].endswith(("InstructionDataModule", "ReformEvalDataModule")):
        tuning = {"base": "some/model", "stages": [{"steps": 1}]}
        content["model"] = {"class_path": "lightning_modules.SparseLayerTuning", "init_args": tuning}
    config.write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit, match=f"^sparsight: {message}") as stop:
        main([verb, "--config", str(config)])
    return str(stop.value)


def test_every_source_names_the_option(config: Path) -> None:
    for source, message in SOURCES:
        with pytest.raises(FileNotFoundError, match="^" + re.escape(message)):
            source.check_paths()
    for there in (
        HuggingFaceRecords("mnist"),
        HuggingFaceRecords("user/da-ta.1"),
        TarRecords("*.tar"),
        PublishedTask("CIFAR10"),
    ):
        there.check_paths()


def test_verbs_that_open_no_data_do_without(config: Path) -> None:
    data = images(train=of("TarRecords", files="gone.tar"), val=of("FolderRecords", root="gone"))
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"data": data}))
    with pytest.raises(ValueError, match="NoneType"):  # it comes as far as the model
        main(["export", "--config", str(config)])
