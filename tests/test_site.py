"""The documentation site is built without a warning, broken links and pages that nothing leads to among them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_browser import CHROMIUM, OPTIONS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def test_the_site_is_built_whole_and_loads_nothing_from_elsewhere(site: Path) -> None:
    assert "NeighborhoodAttention" in (site / "api" / "mixers.html").read_text()
    for page in site.rglob("*.html"):
        assert 'src="http' not in page.read_text() and 'rel="stylesheet" href="http' not in page.read_text()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("page", ["index.html", "api/callbacks.html"])
def test_pages_opened_from_a_disk_can_be_searched(site: Path, page: str) -> None:
    address = f"{(site / page).as_uri()}?q=neighborhood"
    command = [str(CHROMIUM), *OPTIONS, "--virtual-time-budget=20000", "--dump-dom", address]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "matching documents" in seen.stdout and "study.html?h=neighborhood" in seen.stdout
