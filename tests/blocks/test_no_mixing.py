"""The control without mixing: no token sees another, and it starts as near to the teacher as that allows."""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention

from blocks import Grid, NoMixing, Site, SiteSamples
from sparsight.diffusion.surgery.replace import attention_weights

GRID = Grid(3, 5)
SITE = Site("block.attn1", channels=16, heads=2, head_dim=8, grid=GRID)


def attention() -> Attention:
    return Attention(16, heads=2, dim_head=8, bias=True).requires_grad_(False)


def test_a_token_sees_itself_alone() -> None:
    mixer, hidden = NoMixing(SITE).requires_grad_(False), torch.randn(2, GRID.tokens, 16)
    changed = hidden.clone()
    changed[:, 7] += 1
    difference = (mixer(hidden, GRID) - mixer(changed, GRID)).abs().sum(-1)
    assert bool((difference[:, 7] > 0).all()) and float(difference[:, :7].sum() + difference[:, 8:].sum()) == 0


def test_without_samples_it_is_attention_to_oneself() -> None:
    teacher, mixer = attention(), NoMixing(SITE)
    mixer.init_from_teacher(attention_weights(teacher), [])
    alone = torch.randn(4, 1, 16)  # the only token there is can attend to nothing else
    torch.testing.assert_close(mixer(alone, Grid(1, 1)), teacher(alone), rtol=1e-4, atol=1e-5)


def test_samples_give_the_least_squares_map() -> None:
    teacher, mixer = attention(), NoMixing(SITE)
    hidden = torch.randn(40, GRID.tokens, 16)
    wanted = teacher(hidden)
    mixer.init_from_teacher(attention_weights(teacher), [SiteSamples(hidden, wanted, GRID)])
    columns = torch.cat([hidden, torch.ones_like(hidden[..., :1])], -1).flatten(0, 1)
    best = columns @ torch.linalg.lstsq(columns, wanted.flatten(0, 1)).solution
    got = mixer(hidden, GRID).flatten(0, 1)
    torch.testing.assert_close(got, best, rtol=0, atol=2e-3)
    assert float((got - wanted.flatten(0, 1)).square().sum()) < float(wanted.square().sum())
