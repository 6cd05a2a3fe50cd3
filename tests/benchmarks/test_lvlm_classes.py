"""The table of image-text classes in the documentation is what the benchmark finds."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES

from benchmarks.lvlm_classes import PAGE, row_of, table

SOME = ("llava", "qwen3_vl_moe", "florence2")
written = PAGE.read_text(encoding="utf-8")
SAME = pytest.mark.skipif(
    f"transformers {version('transformers')}," not in written, reason="written with another transformers"
)


def test_the_page_is_of_the_version_that_the_tests_are_pinned_to() -> None:
    """Then what is skipped with other versions runs where `make test` does."""
    pinned = re.search(r"^transformers==(\S+)", Path("tests/constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None and f"transformers {pinned[1]}," in written


@SAME
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SOME else pytest.mark.slow) for name in CLASSES]
)
def test_a_class_is_as_the_page_says(name: str) -> None:
    row = row_of(name)
    assert not row.broken
    assert table([row]).splitlines()[-1] in written.splitlines()


@SAME
def test_three_quarters_of_all_classes_are_served_and_the_rest_says_why() -> None:
    lines = [line for line in written.splitlines() if line.startswith("| `")]
    refused = [line for line in lines if "not served: " in line]
    assert {line.split("`")[1] for line in lines} == set(CLASSES)
    assert len(lines) - len(refused) >= 75 and "Error" not in "".join(refused)
