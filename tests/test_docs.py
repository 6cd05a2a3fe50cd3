"""What the documentation shows must run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from sparsight.surgery.replace import replace, set_mode
from sparsight.surgery.shell import Mode
from tests import tiny
from tests.surgery.test_replace import run

DOCS = Path(__file__).parents[1] / "docs"


def code_blocks(page: str, language: str) -> list[str]:
    """Fenced code of one language."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)


def test_the_block_of_the_tutorial_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for code in code_blocks("your_own_block.md", "python"):
        name = re.match(r"# (\w+\.py)\n", code)
        assert name
        (tmp_path / name[1]).write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    import ripple  # type: ignore[import-not-found]
    import test_ripple  # type: ignore[import-not-found]

    try:
        test_ripple.test_ripple_keeps_its_promises()
        denoiser = tiny.unet().eval()
        set_mode(replace(denoiser, ripple.Ripple).values(), Mode.STUDENT)
        assert run(denoiser, (12, 8)).isfinite().all()
    finally:
        sys.modules.pop("ripple"), sys.modules.pop("test_ripple")
