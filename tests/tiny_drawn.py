"""What every family's run must show: both stages trained, a grid drawn, and plain diffusers drawing as the student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_modules import AttentionDistillation
from sparsight.diffusion.export.folder import write_pipeline
from sparsight.diffusion.model.sampling import starting_noise


def check_trained(folder: Path, module: AttentionDistillation, fresh: AttentionDistillation) -> None:
    """All that is trained has moved, and there is a grid."""
    assert list(folder.rglob("samples/*.png"))
    before, state = fresh.state_dict(), module.state_dict()
    assert state.keys() == before.keys()
    assert all(not torch.equal(state[name], before[name]) for name in module.trained_names())


def check_plain_diffusers_draws(
    module: AttentionDistillation,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    captions: list[str],
    kinds: Sequence[Any],
    pipeline: type,
    latents: Callable[[Any, Tensor], Tensor],
) -> None:
    """An export draws the student's latents.

    Args:
        module: Trained.
        folder: For the export.
        monkeypatch: Keeps the code of exports out of the user's cache.
        captions: Two.
        kinds: What loads the export.
        pipeline: What it must be of.
        latents: What a pipeline draws from some noise.
    """
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(folder / "modules"))
    monkeypatch.syspath_prepend(str(folder / "modules"))
    index, batch = torch.arange(2), {"caption": captions}
    noise = starting_noise(module.diffusion.sample_shape(), seed=module.seed, index=index)
    wanted = module.draw_latents(batch, index)
    assert not torch.allclose(wanted, module.draw_teacher_latents(batch, index), atol=1e-4)
    write_pipeline(module.diffusion, folder / "student", fp16=False)
    for kind in kinds:
        stock = kind.from_pretrained(folder / "student", trust_remote_code=True)
        assert type(stock) is pipeline and type(stock.transformer).__module__.startswith("modeling_")
        torch.testing.assert_close(latents(stock, noise), wanted, rtol=1e-5, atol=1e-5)
