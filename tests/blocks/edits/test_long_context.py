"""Attention functions for long prompts with parts of their own, against slow forms of the same mathematics."""

from __future__ import annotations

import math

import pytest
import torch

from blocks.edits import CoreContext, GatedBlocks
from blocks.tokens import Attending, Shape
from tests.tiny_maps import attending, edges, plain_kernel, token_map
from tests.tiny_methods import stirred

TEXT = "pp" + "s" * 5 + "i" * 8 + "q" * 7 + "aa"
PROMPT = range(2, 22)


@pytest.mark.parametrize("near", [1, 4, 7])
def test_far_groups_are_seen_as_their_cores(near: int) -> None:
    """Groups of 3 from the first token; the rest of the prompt, and answers, one by one."""
    given = attending(token_map(TEXT), heads=2, groups=2)
    value = torch.randn(1, 2, len(TEXT), 3)
    out = CoreContext(3, near).attend(plain_kernel, given, value, 2)
    for head in range(2):
        query, key, own = given.query[0, head], given.key[0, head], value[0, head]
        cores = []
        for start in range(2, 20, 3):  # six whole groups of twenty tokens
            members = [start, start + 1, start + 2]
            weight = (key[members] @ query[start + 2] / 2).softmax(0)
            cores.append((weight @ key[members], weight @ own[members], start + 2))
        for n in range(2, len(TEXT)):
            seen = [core for number, core in enumerate(cores) if number < max(n - 2 - near + 1, 0) // 3]
            first = 2 + 3 * len(seen)
            keys = torch.stack([core[0] for core in seen] + [key[k] for k in range(first, n + 1)])
            values = torch.stack([core[1] for core in seen] + [own[k] for k in range(first, n + 1)])
            wanted = (keys @ query[n] / math.sqrt(4)).softmax(0) @ values
            torch.testing.assert_close(out[0, n, head], wanted)


def test_cores_of_hidden_tokens_are_not_seen() -> None:
    given = attending(token_map(TEXT), heads=2, groups=1)
    hidden = given._replace(allowed=given.allowed & (torch.arange(len(TEXT)) != 3))
    value = torch.randn(1, 1, len(TEXT), 3)
    other = value.clone()
    other[:, :, 3] += 100.0
    found = [CoreContext(3, 2).attend(plain_kernel, hidden, part, 2)[:, 2:] for part in (value, other)]
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(CoreContext(3, 2).attend(plain_kernel, given, other, 2)[:, 2:], found[0])


def test_gradients_pass_through_the_weights_of_cores() -> None:
    given = attending(token_map(TEXT), heads=2, groups=1)
    key = given.key.clone().requires_grad_()
    CoreContext(3, 2).pooling(given._replace(key=key))[0][0, 4, 0].backward()
    assert key.grad is not None and key.grad[0, 0, 2:5].abs().min() > 0 and not key.grad[0, 0, 5:].any()
    for options, told in (({"group": 1}, "group is from 2"), ({"near": 0}, "near from 1")):
        with pytest.raises(ValueError, match=told):
            CoreContext(**options)


SHAPE = Shape(depth=3, channels=8, heads=2, key_heads=1, head_channels=4, inner=8)
BLOCKS = [list(range(start, min(start + 3, 22))) for start in range(2, 22, 3)]


def rotated(part: torch.Tensor, place: int, sign: float = 1.0) -> torch.Tensor:
    """Two channels turned by the position, and two by less."""
    angles = sign * place * torch.tensor([0.7, 0.3])
    one, other = part.chunk(2, -1)
    return torch.cat([one * angles.cos() - other * angles.sin(), other * angles.cos() + one * angles.sin()], -1)


def with_positions() -> tuple[Attending, Attending]:
    """An attention before and after positions are encoded."""
    plain = attending(token_map(TEXT), heads=2, groups=1, seed=3)
    angles = torch.outer(torch.arange(len(TEXT)).float(), torch.tensor([0.7, 0.3])).repeat(1, 2)
    moved = [torch.stack([rotated(part[:, :, n], n) for n in range(len(TEXT))], 2) for part in (plain.query, plain.key)]
    return plain, plain._replace(query=moved[0], key=moved[1], tables=(angles.cos()[None], angles.sin()[None]))


def wanted_gate(method: GatedBlocks, plain: Attending, head: int) -> list[list[float]]:
    """Shares of blocks by the equation."""
    query, key = plain.query[0, head], plain.key[0, 0]
    asks = [rotated(query[b].mean(0) @ method.held.query[2, head], b[0]) for b in BLOCKS]
    pooled = [torch.cat([key[b].amax(0), key[b].amin(0), key[b].mean(0)]) for b in BLOCKS]
    told = [rotated(part @ method.held.key[2, head], b[0]) for part, b in zip(pooled, BLOCKS, strict=True)]
    return [
        (torch.stack([ask @ each for each in told[: row + 1]]) / 2).softmax(0).tolist() for row, ask in enumerate(asks)
    ]


@pytest.mark.parametrize("options", [{"threshold": 0.2}, {"threshold": None, "blocks": 2}])
def test_rows_see_blocks_that_a_gate_gives_enough(options: dict[str, float]) -> None:
    method = GatedBlocks(block=3, **options)  # type: ignore[arg-type]
    stirred(method).fit(SHAPE)  # type: ignore[attr-defined]
    plain, given = with_positions()
    found = []

    def kernel(masked: Attending, value: torch.Tensor) -> torch.Tensor:
        found.append(masked.allowed)
        return plain_kernel(masked, value)

    method.attend(kernel, given, torch.randn(1, 1, len(TEXT), 3), 2)
    for head in range(2):
        gate, seen = wanted_gate(method, plain, head), edges(found[0], head=head)
        for query in range(2, len(TEXT)):
            row = (query - 2) // 3
            if query in PROMPT:
                best = sorted(range(row + 1), key=lambda n: -gate[row][n])[:2]
                chosen = (
                    [n for n in range(row + 1) if n in best]
                    if "blocks" in options
                    else ([n for n in range(row + 1) if gate[row][n] >= 0.2])
                )
                keys = {k for n in {*chosen, row} for k in BLOCKS[n]}
            else:
                keys = set(range(2, len(TEXT)))
            assert seen[query] == {k for k in keys if 2 <= k <= query}


def test_a_gate_learns_the_largest_weights_of_blocks() -> None:
    method = GatedBlocks(block=3)
    stirred(method).fit(SHAPE)  # type: ignore[attr-defined]
    plain, given = with_positions()
    value = torch.randn(1, 1, len(TEXT), 3)
    out = method.attend(plain_kernel, given._replace(learns=True), value, 2)
    torch.testing.assert_close(out, plain_kernel(given, value))
    weights, total = given.weights()[0], 0.0
    for head in range(2):
        gate = wanted_gate(method, plain, head)
        for row, queries in enumerate(BLOCKS):
            largest = [max(float(weights[head, q, k]) for q in queries for k in keys) for keys in BLOCKS[: row + 1]]
            target = [each / sum(largest) for each in largest]
            total += sum(t * math.log(t / g) for t, g in zip(target, gate[row], strict=True)) / len(BLOCKS) / 2
    loss = method.loss()
    assert loss is not None and float(loss.detach()) == pytest.approx(total, rel=1e-4)
    loss.backward()
    assert method.held.query.grad[2].abs().max() > 0 and not method.held.query.grad[:2].any()
    for options, told in (({"threshold": None}, "threshold or blocks"), ({"block": 0}, "from 1")):
        with pytest.raises(ValueError, match=told):
            GatedBlocks(**options)  # type: ignore[arg-type]
