"""Whatever stands in an entry of a published file, it is a sample or a corrupt record that is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.evaluation.published import PublishedTask
from datamodules.sources.records import CorruptRecord
from sparsight.evaluation.questions.question import Formulation
from tests.tiny_published import CHOICE, OPEN, container

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["cat", "dog", 0, 1]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from([*CHOICE, *OPEN, "history", "turn", "dialogue", "box", "img"])
CHANGES = st.dictionaries(FIELDS, JSON, max_size=3)
LEFT_OUT = st.sets(FIELDS, max_size=2)
LAYOUT = {"boxes": "box", "option_end": "."}
CASES = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check_entry(folder: Path, changes: dict[str, Any], left_out: set[str], odd: Any, formulation: Formulation) -> None:
    entry = {name: value for name, value in {**OPEN, **CHOICE, **changes}.items() if name not in left_out}
    (folder / "own.json").write_text(json.dumps(container(entry, odd)), encoding="utf-8")
    fields = LAYOUT if "box" in entry else {}
    task = PublishedTask(file=folder / "own.json", dimension="spatial", formulation=formulation, fields=fields)
    task.open()
    for number in range(len(task)):
        try:
            sample = task[number]
        except CorruptRecord as error:
            assert "own.json entry" in str(error)
        else:
            sample.check(formulation)
            assert sample.id.strip()


FORMULATIONS = st.sampled_from(["SingleChoice", "OCROpenEnded"])


@settings(CASES, max_examples=200)
@given(CHANGES, LEFT_OUT, JSON, FORMULATIONS)
def test_entries_of_any_content(tmp_path: Path, c: dict[str, Any], gone: set[str], odd: Any, form: Formulation) -> None:
    check_entry(tmp_path, c, gone, odd, form)


@pytest.mark.faults
@settings(CASES, max_examples=5000)
@given(CHANGES, LEFT_OUT, JSON, FORMULATIONS)
def test_thousands_of_entries(tmp_path: Path, c: dict[str, Any], gone: set[str], odd: Any, form: Formulation) -> None:
    check_entry(tmp_path, c, gone, odd, form)


def test_a_file_that_is_nested_too_deeply_is_named(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text('{"data": [' + "[" * 100_000)
    task = PublishedTask(file=tmp_path / "own.json", dimension="spatial", formulation="SingleChoice")
    with pytest.raises(ValueError, match=r"own.json is (nested too deeply|not JSON)"):
        task.open()


def test_pictures_under_the_other_name_and_full_stops_of_options(tmp_path: Path) -> None:
    """As records of CLEVR have them, and as the authors' loader makes options of VSR."""
    entry = {**CHOICE, "img": CHOICE["image"]}
    del entry["image"]
    (tmp_path / "own.json").write_text(json.dumps(container(entry, {**entry, "answer": "dog", "question_id": "q2"})))
    for end in ("", "."):
        task = PublishedTask(
            file=tmp_path / "own.json", dimension="spatial", formulation="SingleChoice", fields={"option_end": end}
        )
        task.open()
        for number in range(2):
            assert task[number].images and task[number].options == (f"cat{end}", f"dog{end}")
            assert task[number].answer == 1
    assert PublishedTask("VSR").layout.option_end == "."
