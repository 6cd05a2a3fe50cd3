"""Attention over parts of the keys, merged, is attention over all of them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from blocks import Grid, NeighborhoodAttention, Site
from blocks.ops.partial import attend, merge


def tensors(*, tokens: int = 12, keys: int = 20, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 3, n, 8).to(dtype) for n in (tokens, keys, keys)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("cuts", [(20,), (7, 13), (1, 0, 12, 7)])
def test_parts_of_the_keys_make_the_whole(cuts: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    q, k, v = tensors(dtype=dtype)
    parts = [attend(q, *each, 0.3) for each in zip(k.split(cuts, 2), v.split(cuts, 2), strict=True)]
    output, lse = merge(parts)
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), scale=0.3)
    assert output.dtype == dtype and lse.dtype == torch.float32
    assert (output.float() - expected).norm() <= tolerance * expected.norm()
    torch.testing.assert_close(lse, (q.float() @ k.float().mT * 0.3).logsumexp(-1, keepdim=True), rtol=0, atol=2e-2)


def test_gradients_are_those_of_the_whole() -> None:
    inputs = [x.double().requires_grad_() for x in tensors()]
    q, k, v = inputs
    weight = torch.randn(2, 3, 12, 8, dtype=torch.float64)
    output, _ = merge([attend(q, k[:, :, :7], v[:, :, :7], 0.3), attend(q, k[:, :, 7:], v[:, :, 7:], 0.3)])
    found = torch.autograd.grad((output * weight).sum(), inputs)
    whole = F.scaled_dot_product_attention(q, k, v, scale=0.3)
    for one, other in zip(found, torch.autograd.grad((whole * weight).sum(), inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)  # logits are fp32


@pytest.mark.parametrize("added", [False, True])
def test_a_query_that_sees_no_key_counts_nothing(added: bool) -> None:
    q, k, v = (x.requires_grad_() for x in tensors())
    seen = torch.ones(12, 20, dtype=torch.bool)
    seen[0] = False
    mask = torch.zeros(12, 20).masked_fill(~seen, -math.inf) if added else seen
    output, lse = attend(q, k, v, 0.3, mask)
    assert not output[:, :, 0].any() and (lse[:, :, 0] == -math.inf).all()
    both, mass = merge([(output, lse), attend(q, k, v, 0.3, mask)])
    assert not both[:, :, 0].any() and (mass[:, :, 0] == -math.inf).all()
    with_others = merge([(output, lse), attend(q, k[:, :, :4], v[:, :, :4], 0.3)])[0]
    torch.testing.assert_close(with_others[:, :, 0], attend(q, k[:, :, :4], v[:, :, :4], 0.3)[0][:, :, 0])
    (both.sum() + with_others.sum()).backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


@pytest.mark.parametrize("grid", [Grid(5, 7), Grid(6, 4)], ids=str)
def test_a_window_and_all_that_is_outside_are_full_attention(grid: Grid) -> None:
    mixer = NeighborhoodAttention(Site("attn1", 16, 2, 8, grid), kernel_size=3)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, grid.tokens, 8) for _ in range(3))
    outside = attend(q, k, v, 0.3, ~mixer.mask(grid))
    whole = merge([mixer.partial(q, k, v, grid, 0.3), outside])[0]
    torch.testing.assert_close(whole, F.scaled_dot_product_attention(q, k, v, scale=0.3))


def test_a_union_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one part"):
        merge([])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["none", "seen", "added", "tiles"])
def test_without_gradients_the_fused_kernel_tells_the_same(kind: str, dtype: torch.dtype) -> None:
    q, k, v = tensors(dtype=dtype)
    seen = torch.rand(12, 20) < 0.5
    seen[0] = False
    mask = {"none": None, "added": torch.rand(12, 20).masked_fill(~seen, -math.inf)}.get(kind, seen)
    if kind == "tiles":
        q, k, v = (torch.stack([x, x.flip(2)], 2) for x in (q, k, v))
        mask = torch.stack([seen, ~seen])
    slow = attend(q.clone().requires_grad_(), k, v, 0.3, mask)
    for one, other in zip(attend(q, k, v, 0.3, mask), slow, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2 if dtype == torch.bfloat16 else 1e-5)
