"""One rule for labels: numbers keep their numbers, and a class means the same in all sources and to the model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from datamodules import (
    CorruptRecord,
    FolderRecords,
    HuggingFaceRecords,
    HuggingFaceStream,
    ImageDataModule,
    MixedRecords,
    ParquetRecords,
    Record,
    StreamingImageDataModule,
    TarRecords,
    TarStream,
)
from datamodules.images.class_check import check_classes
from datamodules.images.image_dataset import collate
from datamodules.sources.labels import ClassNumbers, NotALabel, number_labels
from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from tests import tiny
from tests.tiny_files import png, write_files, write_tar
from tests.tiny_records import Pictures

NUMBERED: list[tuple[list[Any], list[int | None]]] = [
    (["10", "2", "0"], [10, 2, 0]),
    ([" 7 ", "3.0", "1e1", 4, 5.0, "+6", "007"], [7, 3, 10, 4, 5, 6, 7]),
    (["1", "", "  ", None, float("nan"), "2"], [1, None, None, None, None, 2]),
    ([3.5, "2.5", float("inf"), "9" * 5000, "9" * 30, "1e99", ["1"], {"a": 1}, 1], [None] * 8 + [1]),
]
NAMED: list[tuple[list[Any], list[str] | None, list[int | None], list[str]]] = [
    (["dog", " cat ", "cat", ""], None, [1, 0, 0, None], ["cat", "dog"]),
    (["cafe\u0301"], ["caf\u00e9"], [0], ["caf\u00e9"]),
    ([True, False, True], None, [1, 0, 1], ["false", "true"]),
    (["1_0", "\u0663"], None, [0, 1], ["1_0", "\u0663"]),
    (["1", "cat", 0], ["dog", "cat"], [1, 1, 0], ["dog", "cat"]),
    ([10, "2", "1.0"], ["1", "2", "10"], [2, 1, 0], ["1", "2", "10"]),
    (["a \ud83d", "x"], None, [None, 0], ["x"]),
]
REFUSED: list[tuple[list[Any], list[str] | None, str]] = [
    (["1", "cat"], None, "holds 1 and 'cat' among its labels"),
    (["nan", "1"], None, "holds 1 and 'nan' among its labels"),
    ([-1, 2], None, "label -1; labels start at 0"),
    (["-1"], None, "label -1"),
    (["3"], ["a", "b"], "label 3 but only 2 classes are named"),
    (["cat"], ["dog"], "class 'cat', which is not among `classes`"),
    (["a"], ["a", "a"], "class 'a', which is not among `classes`, or twice"),
    (["0"], ["1", "2"], "class 0, which is not among"),
]


@pytest.mark.parametrize(("values", "numbers"), NUMBERED)
def test_numbers_keep_their_numbers_in_whatever_form(values: list[Any], numbers: list[int | None]) -> None:
    found = number_labels(values, classes=None, where="it")
    assert found.numbers == numbers and found.classes is None
    assert set(found.bad) == {place for place, number in enumerate(numbers) if number is None}


@pytest.mark.parametrize(("values", "given", "numbers", "classes"), NAMED)
def test_all_other_labels_are_names(
    values: list[Any], given: list[str] | None, numbers: list[int | None], classes: list[str]
) -> None:
    found = number_labels(values, classes=given, where="it")
    assert found.numbers == numbers and found.classes == classes
    one = ClassNumbers(classes)
    for value, number in zip(values, numbers, strict=True):
        if number is None:
            with pytest.raises(NotALabel):
                one(value)
        else:
            assert one(value) == number


@pytest.mark.parametrize(("values", "given", "message"), REFUSED)
def test_labels_of_no_sure_meaning_are_refused(values: list[Any], given: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        number_labels(values, classes=given, where="it")


def numbered(tmp_path: Path) -> dict[str, Any]:
    """Pictures whose grey value is their label, 0 to 11, as every kind of source holds them."""
    for number in range(12):
        write_files(tmp_path / "folders" / str(number), {"a.png": png(number)})
        write_files(tmp_path / "table", {f"{number}.png": png(number)})
    (tmp_path / "table/metadata.csv").write_text("file_name,label\n" + "".join(f"{n}.png,{n}.0\n" for n in range(12)))
    parts = [(f"{n}.png", png(n)) for n in range(12)]
    write_tar(tmp_path / "a.tar", dict(m for n in range(12) for m in (parts[n], (f"{n}.cls", f" {n}.0\n".encode()))))
    rows = {"image": [{"bytes": png(n), "path": None} for n in range(12)], "label": [str(n) for n in range(12)]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "rows"))
    names = sorted(rows["label"])
    coded = datasets.Dataset.from_dict(
        rows | {"label": [names.index(text) for text in rows["label"]]},
        features=datasets.Features(image=datasets.Image(decode=False), label=datasets.ClassLabel(names=names)),
    )
    coded.save_to_disk(str(tmp_path / "coded"))
    coded.to_parquet(str(tmp_path / "coded.parquet"))
    return {
        "folders": FolderRecords(tmp_path / "folders"),
        "table": FolderRecords(tmp_path / "table"),
        "tar": TarRecords(str(tmp_path / "a.tar"), label="cls"),
        "rows": HuggingFaceRecords(str(tmp_path / "rows"), label_column="label"),
        "coded": HuggingFaceRecords(str(tmp_path / "coded"), label_column="label"),
    }


def test_every_source_keeps_numbers(tmp_path: Path) -> None:
    for name, source in numbered(tmp_path).items():
        found = {source[place].image.getpixel((0, 0)): source.label_of(place) for place in range(len(source))}
        assert found == {number: number for number in range(12)}, name
        assert source.classes in (None, [str(number) for number in range(12)]), name
    stream = HuggingFaceStream("parquet", str(tmp_path / "coded.parquet"), label_column="label")
    stream.open()
    streamed = [stream.decode(raw) for raw in stream.read(0, 0)]
    assert {record.needed_image.getpixel((0, 0)): record.label for record in streamed} == {n: n for n in range(12)}
    assert stream.classes == [str(number) for number in range(12)]
    write_files(tmp_path / "folders", {"01/b.png": png()})
    with pytest.raises(ValueError, match="has folders of one number"):
        FolderRecords(tmp_path / "folders").open()


# -------------------------------------------------------------------------------------------------------------- mixed
@pytest.mark.parametrize(
    ("names", "numbers"),
    [(["0", "10", "2"], [0, 10, 2]), (["1", "0"], [1, 0]), (["0", "1"], [0, 1]), (["b", "a"], [0, 1])],
)
def test_class_labels_of_a_stream_are_those_of_the_same_files(
    tmp_path: Path, names: list[str], numbers: list[int]
) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    pictures = [{"bytes": png(), "path": None}] * len(names)
    file = str(tmp_path / "a.parquet")
    datasets.Dataset.from_dict({"image": pictures, "label": list(range(len(names)))}, features).to_parquet(file)
    stream = HuggingFaceStream("parquet", file, label_column="label")
    stream.open()
    assert [stream.decode(raw).label for raw in stream.read(0, 0)] == numbers
    rows = ParquetRecords(file, label_column="label")
    assert [rows.label_of(index) for index in range(len(rows))] == numbers
    assert rows.classes == stream.classes


def folders(root: Path, *names: str) -> FolderRecords:
    return FolderRecords(write_files(root, {f"{name}/0.png": png() for name in names}))


def test_a_class_keeps_its_name_in_mixed_sources(tmp_path: Path) -> None:
    mixed = MixedRecords([folders(tmp_path / "x", "ant", "bee"), folders(tmp_path / "y", "bee", "cat")])
    mixed.open()
    assert mixed.classes == ["ant", "bee", "cat"]
    found = [(record.id.split("/")[0], record.label) for record in (mixed[place] for place in range(4))]
    assert found == [("ant", 0), ("bee", 1), ("bee", 1), ("cat", 2)]
    assert [mixed.label_of(place) for place in range(4)] == [0, 1, 1, 2]


@pytest.mark.parametrize("other", ["no labels", "numbers"])
def test_sources_that_cannot_be_mixed_are_refused_before_training(tmp_path: Path, other: str) -> None:
    row = {"file_name": "0.png", **({"label": 1} if other == "numbers" else {})}
    write_files(tmp_path / "z", {"0.png": png(), "metadata.jsonl": json.dumps(row)})
    mixed = MixedRecords([folders(tmp_path / "x", "ant", "bee"), FolderRecords(tmp_path / "z")])
    data = ImageDataModule(mixed, image_size=4, batch_size=1)
    with pytest.raises(ValueError, match="has a label and .* has none" if other == "no labels" else "without names"):
        data.setup("fit")


def test_an_unlabelled_record_takes_no_labels_from_its_batch() -> None:
    records = [Record(str(n), Image.new("L", (2, 2)), label=n or None) for n in range(4)]
    data = ImageDataModule(Pictures(records), image_size=2, batch_size=3, allowed={"corrupt_share": 0.5})
    data.setup("fit")
    assert all("label" in batch for batch in data.train_dataloader())
    with pytest.raises(CorruptRecord, match="it has no label, unlike the others"):
        data.datasets["train"].sample(0, group=0)
    rest: dict[str, Any] = {"image": torch.zeros(1), "caption": None, "corrupt": {}}
    samples = [rest | {"index": number, "label": number or None} for number in (0, 1)]
    with pytest.raises(ValueError, match="record 0 has no label, others of its batch have"):
        collate(samples)
    with pytest.raises(CorruptRecord, match="label -1 is not the number of a class"):
        Record("x", None, label=-1)


# ------------------------------------------------------------------------------------------------------------- streams
LABELS: list[tuple[list[Any], list[str] | None, list[int] | str, list[str] | None]] = [
    ([True, False, True], None, [1, 0, 1], ["false", "true"]),
    ([True, False, True], ["true", "false"], [0, 1, 0], ["true", "false"]),
    (["3", " 1", "2.0"], None, [3, 1, 2], None),
    ([3.0, 1.0, 2.0], None, [3, 1, 2], None),
    (["dog", "cat", "cat"], ["cat", "dog"], [1, 0, 0], ["cat", "dog"]),
    (["dog", "cat", "cat"], None, "holds names such as 'dog'.*give `classes`", None),
    ([None, "cat", "cat"], None, "holds names such as 'cat'.*give `classes`", None),
    ([[1], [2], [3]], None, r"column 'label' .* holds List.*, not one label a row", None),
    ([{"a": 1}] * 3, None, "not one label a row", None),
]


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(("labels", "classes", "numbers", "names"), LABELS)
def test_streams_number_labels_or_refuse_them_once(
    tmp_path: Path, labels: list[Any], classes: list[str] | None, numbers: list[int] | str, names: list[str] | None
) -> None:
    pictures = [{"bytes": png(), "path": None}] * 3
    pq.write_table(pa.table({"image": pictures, "label": labels}), tmp_path / "0.parquet")
    file = str(tmp_path / "0.parquet")
    stream = HuggingFaceStream("parquet", file, label_column="label", classes=classes)
    if isinstance(numbers, str):
        with pytest.raises(ValueError, match=numbers):
            stream.open()
    else:
        stream.open()
        assert [stream.decode(row).label for row in stream.read(0, 0)] == numbers and stream.classes == names
    if isinstance(numbers, str) and "row" in numbers:
        with pytest.raises(ValueError, match=numbers):
            ParquetRecords(file, label_column="label").open()


@pytest.mark.parametrize(("classes", "numbers"), [(None, [0, 1]), (["dog", "cat"], [1, 0])])
def test_class_labels_of_streams_may_be_put_in_another_order(
    tmp_path: Path, classes: list[str] | None, numbers: list[int]
) -> None:
    kinds = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    rows = {"image": [{"bytes": png(), "path": None}] * 2, "label": [0, 1]}
    datasets.Dataset.from_dict(rows, features=kinds).to_parquet(str(tmp_path / "0.parquet"))
    stream = HuggingFaceStream("parquet", str(tmp_path / "0.parquet"), label_column="label", classes=classes)
    stream.open()
    assert [stream.decode(row).label for row in stream.read(0, 0)] == numbers
    assert stream.classes == (classes or ["cat", "dog"])


@pytest.mark.parametrize("kind", [TarRecords, TarStream])
def test_names_in_shards_need_classes(tmp_path: Path, kind: Any) -> None:
    write_tar(tmp_path / "0.tar", {"0.png": png(), "0.cls": b"cat", "1.png": png(), "1.cls": b"dog"})
    with pytest.raises(ValueError, match=r"part 'cls' of .*0\.tar holds names such as 'cat'.*give `classes`"):
        kind(str(tmp_path / "0.tar"), label="cls").open()
    kind(str(tmp_path / "0.tar"), label="cls", classes=["cat", "dog"]).open()


# -------------------------------------------------------------------------------------------------------------- model
@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    folder = tiny.save_pixel_pipeline(tmp_path_factory.mktemp("model"))
    model = DiffusionModel.from_pretrained(str(folder))
    model.pipeline.register_to_config(id2label={"0": "ant, Formica", "1": "honey bee", "2": "cat"})
    return model


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["bee", "ant"], "class 0 of the train records is 'bee', but to the model it is .* does not know it"),
        (["honey bee", "ant"], "is 'honey bee', but to the model it is .* has it as 1"),
        ([f"c{number}" for number in range(11)], "classes 0 to 10, but the model has 10"),
    ],
)
def test_classes_are_compared_with_those_of_the_model(
    tmp_path: Path, model: DiffusionModel, names: list[str], message: str
) -> None:
    source = folders(tmp_path, *names)
    source._classes = names
    source.open()
    with pytest.raises(ValueError, match=message):
        check_classes(source, model, split="train")


def test_classes_of_the_model_by_any_of_their_names_pass(tmp_path: Path, model: DiffusionModel) -> None:
    source = FolderRecords(folders(tmp_path, "formica", "Honey_Bee").root, classes=["formica", "Honey_Bee"])
    source.open()
    check_classes(source, model, split="train")
    write_files(tmp_path / "n", {"0.png": png(), "metadata.csv": "file_name,label\n0.png,10\n"})
    beyond = FolderRecords(tmp_path / "n")
    beyond.open()
    with pytest.raises(ValueError, match="classes 0 to 10, but the model has 10"):
        check_classes(beyond, model, split="train")


def trained(data: Any, model: DiffusionModel) -> Any:
    """A datamodule that is set up for the training of a model."""
    module = SimpleNamespace(diffusion=model)
    data.trainer = SimpleNamespace(lightning_module=module, world_size=1, global_rank=0, limit_train_batches=1.0)
    data.setup("fit")
    return data


@pytest.mark.parametrize("label", [10, 11])
def test_labels_beyond_the_model_are_told_with_their_record(tmp_path: Path, model: DiffusionModel, label: int) -> None:
    members: dict[str, bytes] = {}
    for number in range(4):
        members |= {f"{number}.png": png(), f"{number}.cls": b"%d" % (label if number == 3 else number)}
    file = str(write_tar(tmp_path / "0.tar", members))
    options: dict[str, Any] = {"image_size": 4, "batch_size": 4, "transform": {"channels": 1}}
    told = rf"record 3 of .*0\.tar has label {label}, but the model has 10 classes, 0 to 9: .*give the source `classes`"
    stream = trained(StreamingImageDataModule(TarStream(file, label="cls"), **options), model)
    with pytest.raises(ConfigurationError, match=told):
        next(iter(stream.train_dataloader()))
    with pytest.raises(ValueError, match=f"classes 0 to {label}, but the model has 10"):
        trained(ImageDataModule(TarRecords(file, label="cls"), **options), model)
    others = trained(ImageDataModule(TarRecords(file, label="cls"), allowed={"other_classes": True}, **options), model)
    with pytest.raises(ConfigurationError, match=told):
        next(iter(others.train_dataloader()))
    records = [Record(str(n), Image.new("L", (4, 4)), label=n or label) for n in range(4)]
    unknown = trained(ImageDataModule(Pictures(records), **options), model)  # a source that does not tell
    with pytest.raises(ConfigurationError, match=f"record 0 of Pictures has label {label}"):
        next(iter(unknown.train_dataloader()))
