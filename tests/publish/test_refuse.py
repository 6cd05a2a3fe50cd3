"""Exports are loaded where this project cannot be imported, though it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsight.publish.fresh_process import REFUSED, run_fresh


def script(folder: Path, text: str) -> str:
    path = folder / "asks.py"
    path.write_text(text)
    return str(path)


@pytest.fixture
def scratch(tmp_path: Path) -> str:
    (tmp_path / "scratch").mkdir()
    return str(tmp_path / "scratch")


def test_a_script_runs_by_itself_with_its_arguments(tmp_path: Path, scratch: str) -> None:
    text = "import sys\nfrom pathlib import Path\nPath(sys.argv[1]).write_text(f'{__name__} {sys.argv[2:]}')\n"
    run_fresh(script(tmp_path, text), [str(tmp_path / "out"), "a", "b"], scratch=scratch)
    assert (tmp_path / "out").read_text() == "__main__ ['a', 'b']"


def test_our_packages_and_those_of_mixers_are_out_of_its_reach(tmp_path: Path, scratch: str) -> None:
    text = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        assert str(error).startswith("the export needs "), error
    else:
        raise SystemExit(f"{name} was there")
"""
    asks = script(tmp_path, text)
    run_fresh(asks, [*REFUSED, "xml.dom"], scratch=scratch, refused=[*REFUSED, "xml"])
    with pytest.raises(RuntimeError, match=r"xml\.dom was there"):
        run_fresh(asks, ["xml.dom"], scratch=scratch)
