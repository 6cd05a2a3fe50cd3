"""Benchmarks that cannot be read as they are: each mistake is told with the file, the column and the remedy."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest

from datamodules import GQATask, MMBenchTask, MMMUTask, POPETask, ScienceQATask, VQAv2Task
from datamodules.evaluation.benchmarks.benchmark import BenchmarkTask
from datamodules.sources.records import CorruptRecord
from sparsight.common.errors import ConfigurationError
from tests import tiny_benchmarks as tiny
from tests.tiny_benchmarks import write_rows


def changed(rows: list[dict[str, Any]], **values: Any) -> list[dict[str, Any]]:
    return [row | values for row in rows]


def test_a_missing_column_is_named_with_those_that_there_are(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "question"} for row in tiny.pope_rows()]
    file = write_rows(tmp_path / "pope.parquet", rows)
    with pytest.raises(ValueError, match=rf"{file}, split test has no column 'question'.*image_source.*columns: {{"):
        POPETask(str(file)).open()
    with pytest.raises(ValueError, match="no column 'asked'"):
        POPETask(str(file), columns={"question": "asked"}).open()


def test_a_wrong_split_is_told_with_those_that_there_are(tmp_path: Path) -> None:
    write_rows(tmp_path / "data" / "validation-00000-of-00001.parquet", tiny.pope_rows())
    with pytest.raises(FileNotFoundError, match=r"no parquet files of split 'test'.*it has those of validation"):
        POPETask(str(tmp_path)).open()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="it has none of any"):
        POPETask(str(tmp_path / "empty")).open()


@pytest.mark.parametrize(
    ("kind", "rows", "hidden"),
    [
        (POPETask, tiny.pope_rows(), {"answer": None}),
        (MMBenchTask, tiny.mmbench_rows(), {"answer": ""}),
        (MMMUTask, tiny.mmmu_rows(), {"answer": "?"}),
        (ScienceQATask, tiny.scienceqa_rows(), {"answer": -1}),
        (VQAv2Task, tiny.vqa_rows(), {"answers": []}),
    ],
)
def test_hidden_answers_are_told_before_anything_is_asked(
    kind: type[BenchmarkTask], rows: list[dict[str, Any]], hidden: dict[str, Any], tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "test.parquet", changed(rows, **hidden))
    with pytest.raises(ValueError, match=rf"tells none of {len(rows)} answers.*Set split to one with answers"):
        kind(str(file), split="test").open()


def test_some_hidden_answers_are_left_out(tmp_path: Path) -> None:
    rows = tiny.pope_rows()
    task = POPETask(str(write_rows(tmp_path / "pope.parquet", [*rows[:2], rows[2] | {"answer": None}])))
    assert len(task) == 3 and task[1].answer == 1
    with pytest.raises(CorruptRecord, match=r"row 2 of .*pope.parquet, split test: column 'answer' tells no answer"):
        _ = task[2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"answer": "maybe"}, "'maybe', not yes or no"),
        ({"question": " "}, "column 'question' is ' ', not a text"),
        ({"image": None}, "column 'image' is empty"),
    ],
)
def test_rows_that_cannot_be_asked_say_why(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    rows = tiny.pope_rows()
    task = POPETask(str(write_rows(tmp_path / "pope.parquet", [rows[0], rows[1] | values])))
    assert task[0].answer == 0
    with pytest.raises(CorruptRecord, match=message):
        _ = task[1]


def test_options_out_of_range_are_told(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "s.parquet", changed(tiny.scienceqa_rows(), answer=3))
    with pytest.raises(CorruptRecord, match="answer is 3, not the position of one of 3 options"):
        _ = ScienceQATask(str(file))[0]
    file = write_rows(tmp_path / "m.parquet", changed(tiny.mmbench_rows(), answer="D"))
    with pytest.raises(CorruptRecord, match="the answer is 'D', not one of the letters A, B, C"):
        _ = MMBenchTask(str(file))[0]
    file = write_rows(tmp_path / "u.parquet", changed(tiny.mmmu_rows()[:1], options="__import__('os')"))
    with pytest.raises(CorruptRecord, match="is no list of texts"):
        _ = MMMUTask(str(file))[0]


def test_images_in_base64_are_read_and_files_elsewhere_are_not(tmp_path: Path) -> None:
    stream = io.BytesIO()
    tiny.picture(40).save(stream, "PNG")
    texts = changed(tiny.pope_rows(), image=base64.b64encode(stream.getvalue()).decode())
    assert POPETask(str(write_rows(tmp_path / "text.parquet", texts)))[0].images[0].size == (24, 16)
    paths = changed(tiny.pope_rows(), image={"bytes": None, "path": "/etc/passwd"})
    with pytest.raises(CorruptRecord, match="only names a file, '/etc/passwd'"):
        _ = POPETask(str(write_rows(tmp_path / "path.parquet", paths)))[0]
    damaged = changed(tiny.pope_rows(), image="no base64!")
    with pytest.raises(CorruptRecord, match="no image in base64"):
        _ = POPETask(str(write_rows(tmp_path / "damaged.parquet", damaged)))[0]


def test_gqa_without_images_says_where_they_are_wanted(tmp_path: Path) -> None:
    questions, images = tiny.gqa_rows()
    file = str(write_rows(tmp_path / "questions.parquet", questions))
    with pytest.raises(ValueError, match="has no column 'image': set images to the parquet files of"):
        GQATask(file).open()
    task = GQATask(file, images=str(write_rows(tmp_path / "images.parquet", images[:1])))
    assert task[0].images
    with pytest.raises(CorruptRecord, match=r"there is no image 'n1' in .*images.parquet"):
        _ = task[1]


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    file = tmp_path / "test.parquet"
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=rf"{file} cannot be read as parquet"):
        POPETask(str(file)).open()
    with pytest.raises(FileNotFoundError, match=r"task pope: path: .*/none does not exist"):
        POPETask(f"{tmp_path}/none").check_paths()
    with pytest.raises(FileNotFoundError, match="task pope: data set 'nobody/nothing' was found neither on disk nor"):
        POPETask("nobody/nothing").open()  # the tests are offline
    with pytest.raises(ConfigurationError, match="weigh is letters; allowed: texts, marks"):
        POPETask(weigh="letters")  # type: ignore[arg-type]
