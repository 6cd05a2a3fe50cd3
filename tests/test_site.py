"""The documentation site is built without a warning, broken links and pages that nothing leads to among them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_site_is_built_whole_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "NeighborhoodAttention" in (tmp_path / "api" / "mixers.html").read_text()
    for page in tmp_path.rglob("*.html"):
        assert 'src="http' not in page.read_text() and 'rel="stylesheet" href="http' not in page.read_text()
