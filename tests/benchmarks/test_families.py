"""Every family is tried from its sites to its exports, and one that fails is told by the exit code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import families
from benchmarks.family_cases import CASES
from sparsight.diffusion.families.known import FAMILIES, family_of


def test_every_family_is_tried_and_stands_in_the_page() -> None:
    assert {family_of(case.made()).name for case in CASES} == FAMILIES.keys()
    page = Path("docs/recipes.md").read_text()
    (table,) = re.findall(r"^\| family \| sites \|.*\n(?:\|.*\n)+", page, flags=re.MULTILINE)
    assert re.findall(r"^\| ([\w.-]+) \| \d", table, flags=re.MULTILINE) == [case.name for case in CASES]
    assert "FAILS" not in table and "python -m benchmarks.families" in page


def test_what_is_too_far_off_or_no_number_fails() -> None:
    assert families._held(1e-6, 1e-5) == "1.0e-06"
    for value in (2e-5, float("nan")):
        with pytest.raises(families.Failed, match="allowed 1e-05"):
            families._held(value, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_a_family_holds(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert families.main(["--families", name]) == 0
    assert "FAILS" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_family_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of all checks one that does not hold, and one that ends in an error, while others go on."""
    monkeypatch.setattr(families, "CLOSE", -1.0)
    monkeypatch.setattr(families, "gradients", lambda case: 1 / 0)
    assert families.main(["--families", "DiT"]) == 1
    row = capsys.readouterr().out.splitlines()[-1]
    assert "FAILS: 0.0e+00, allowed -1e+00" in row and "FAILS: ZeroDivisionError division by zero" in row
    assert "| 2 | FAILS" in row
