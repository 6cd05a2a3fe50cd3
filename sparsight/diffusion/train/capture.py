"""Recording what a teacher attention sees and returns.

Shape legend: B batch, N tokens of the image, C channels, h heads, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from blocks.base import Layout, SiteSamples
from sparsight.diffusion.surgery.shell import Shell
from sparsight.diffusion.surgery.student import delivered_grid

POSITIONS, POSITIONS_PLACE = ("image_rotary_emb", "rotary_emb"), 3
"""Names, and place where there is no name, of what turns queries and keys, among the arguments of an attention."""


@contextmanager
def capture_site(shell: Shell) -> Iterator[list[SiteSamples]]:
    """Collect what a shell's teacher saw and gave, in fp32, one entry for every forward pass inside.

    At a joint site that is what image tokens take from each other, with its mass: see ``blocks.SiteSamples``.
    """
    samples: list[SiteSamples] = []
    cores = _Cores() if shell.mixer.site.text is not None else None

    def begin(attention: nn.Module, args: tuple[Any, ...]) -> None:
        if cores is not None:
            cores.first = None

    def note(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        hidden_BNC = (args[0] if args else kwargs["hidden_states"]).detach().float()
        if cores is None:
            grid = delivered_grid(shell.grid, shell.mixer.site.path)
            positions = positions_of(args, kwargs, Layout(grid))
            samples.append(SiteSamples(hidden_BNC, output.detach().float(), grid, positions=positions))
        elif cores.first is not None:
            site, (q, k, v, scale) = shell.mixer.site, cores.first
            layout = site.layout(delivered_grid(shell.grid, site.path), q.shape[2])
            positions = positions_of(args, kwargs, layout)
            samples.append(samples_of_image(hidden_BNC, q, k, v, layout, scale, positions))

    handles = [
        shell.attention.register_forward_pre_hook(begin),
        shell.attention.register_forward_hook(note, with_kwargs=True),
    ]
    try:
        # compiled blocks know nothing of hooks that came later
        with torch.compiler.set_stance("force_eager"), cores or nullcontext():
            yield samples
    finally:
        for handle in handles:
            handle.remove()


class _Cores(TorchFunctionMode):
    """Keeps queries, keys, values and scale of the first core since it was asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.first: tuple[Tensor, Tensor, Tensor, float] | None = None

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.scaled_dot_product_attention and self.first is None:
            self._keep(*args, **kwargs or {})
        return function(*args, **kwargs or {})

    def _keep(
        self, query: Tensor, key: Tensor, value: Tensor, *_: Any, scale: float | None = None, **options: Any
    ) -> None:
        self.first = query, key, value, query.shape[-1] ** -0.5 if scale is None else scale


def positions_of(args: tuple[Any, ...], kwargs: Mapping[str, Any], layout: Layout) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines (N, d) of the image's tokens, of what an attention was given; none if nothing turns them."""
    by_place = args[POSITIONS_PLACE] if len(args) > POSITIONS_PLACE else None
    given = next((kwargs[name] for name in POSITIONS if kwargs.get(name) is not None), by_place)
    if given is None:
        return None
    cos, sin = (layout.image(each.detach().float().reshape(1, -1, each.shape[-1]))[0] for each in given)
    return cos, sin


def samples_of_image(
    hidden_BNC: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    scale: float,
    positions: tuple[Tensor, Tensor] | None = None,
) -> SiteSamples:
    """What image tokens take from each other in a joint attention, with its mass.

    Args:
        hidden_BNC: The image's tokens that entered it, alone or among those of text.
        q: Queries (B, h, tokens, d) of image and text.
        k: Keys.
        v: Values.
        layout: Where the image stands among them.
        scale: Factor of the logits.
        positions: Of the image's tokens, see :func:`positions_of`.
    """
    q, k, v = (layout.split(x.detach().float())[1] for x in (q, k, v))
    hidden_BNC = layout.image(hidden_BNC)
    output_BNC = F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)
    # head by head: all logits at once may not fit
    masses = [
        (q_Nd @ k_Nd.mT * scale).logsumexp(-1) for q_Nd, k_Nd in zip(q.flatten(0, 1), k.flatten(0, 1), strict=True)
    ]
    masses_BNh = torch.stack(masses).unflatten(0, q.shape[:2]).transpose(1, 2)
    return SiteSamples(hidden_BNC, output_BNC, layout.grid, masses_BNh, positions)
