"""The table of methods, and its exit status."""

from __future__ import annotations

import pytest

from benchmarks.methods import main
from tests.tiny_methods import NEAR


def test_methods_are_tabled_and_broken_promises_end_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--families", "llava,qwen2_5_vl", "--methods", "renumbered,heads"]
    assert main(asked) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [["renumbered", "1"], ["heads", "2"]]
    monkeypatch.setitem(NEAR, "llava", 1e-12)
    assert main(asked) == 1
    assert "llava: decoded in a padded batch" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="there is no faster_v"):
        main(["--methods", "faster_v"])
