"""Kernels travel with exports: versions of them live side by side in one process, and without Triton torch steps in."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blocks import DeltaConvBlock, Grid
from blocks.ops.optional import why_missing
from sparsight.diffusion.students.modeling import CodeFile, load_class, student_file
from sparsight.testing import SITE, relative_l2

OPTIONS = {"scales": [1], "kernel_size": 3, "entry_width": 2, "pool_branch": False, "backend": "triton"}
GRID = Grid(2, 3)


def carried(code: CodeFile, folder: Path) -> type[DeltaConvBlock]:
    load_class(code, folder)
    return sys.modules[code.stem].FILES.get("blocks.delta_conv.DeltaConvBlock")


@pytest.mark.slow
def test_the_project_and_two_exports_have_their_own_kernels(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton, which has no wheel for this platform, is not installed")
    code = student_file([DeltaConvBlock], "DiTTransformer2DModel")
    line = "value = s / (1 + tl.exp(-t)) if SIGMOID"
    assert code.text.count(line) == 1
    other = replace(code, stem=f"{code.stem}_other", text=code.text.replace(line, line.replace("s /", "3 * s /")))
    own = DeltaConvBlock(SITE, **OPTIONS)
    torch.nn.init.zeros_(own.exit.bias)
    mixers = [own]
    for each, folder in ((code, "same"), (other, "other")):
        mixers.append(carried(each, tmp_path / folder)(SITE, **OPTIONS))
        mixers[-1].load_state_dict(own.state_dict())
    hidden = torch.randn(1, GRID.tokens, SITE.channels)
    with torch.no_grad():
        wanted = own.reference(hidden, GRID)
        for mixer, factor in [*zip(mixers, (1, 1, 3), strict=True), (own, 1)]:
            assert mixer.serving_backend(GRID, hidden) == "triton"
            assert relative_l2(mixer(hidden, GRID), factor * wanted) < 1e-5


def test_an_export_does_without_triton_and_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)  # as where it is not installed
    code = student_file([DeltaConvBlock], "DiTTransformer2DModel")
    text = code.text + "\n# without triton\n"
    kind = carried(replace(code, stem=f"{code.stem}_without", text=text), tmp_path)
    mixer, hidden = kind(SITE, **OPTIONS), torch.randn(1, GRID.tokens, SITE.channels)
    with pytest.warns(UserWarning, match="DeltaConvBlock is computed with torch, not with triton") as seen:
        for _ in range(2):
            assert relative_l2(mixer(hidden, GRID), mixer.reference(hidden, GRID)) < 1e-5
    assert len(seen) == 1
    why_missing.cache_clear()
