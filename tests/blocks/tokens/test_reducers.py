"""Keep sets and mixtures of reducers against their equations, written out slowly."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from blocks.tokens import Crop, DivPrune, FasterVLM, RandomTokens, UniformTokens, VisionZip, VisPruner


def crop(number: int = 12, *, seed: int = 0, heads: int = 3) -> Crop:
    torch.manual_seed(seed)
    attention = torch.rand(heads, number)
    return Crop(torch.randn(number, 5), attention, torch.randn(heads, number, 4), seed)


def test_random_tokens_depend_on_prompt_and_seed_alone() -> None:
    one, other = crop(40, seed=1), crop(40, seed=2)
    drawn = RandomTokens(0.25).reduce(one).keep.tolist()
    assert len(drawn) == 10 and drawn == sorted(set(drawn)) and max(drawn) < 40
    assert RandomTokens(0.25).reduce(one._replace(features=torch.zeros(40, 5))).keep.tolist() == drawn
    assert RandomTokens(0.25).reduce(other).keep.tolist() != drawn
    assert RandomTokens(0.25, seed=1).reduce(one).keep.tolist() != drawn


@pytest.mark.parametrize("number", [1, 2, 7, 16, 49])
@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.5, 1.0])
def test_uniform_tokens_are_evenly_spaced(number: int, ratio: float) -> None:
    kept = UniformTokens(ratio).reduce(crop(number)).keep.tolist()
    assert len(kept) == max(int(number * ratio), 1)
    gaps = {after - before for before, after in itertools.pairwise(kept)}
    assert len(set(kept)) == len(kept) and max(gaps, default=0) - min(gaps, default=0) <= 1
    assert abs(kept[0] - (number - 1 - kept[-1])) <= 1  # as far from one end as from the other


def test_faster_vlm_keeps_the_largest_mean_over_heads() -> None:
    tokens = crop()
    assert tokens.attention is not None
    scores = [sum(float(head[n]) for head in tokens.attention) / 3 for n in range(12)]
    wanted = sorted(sorted(range(12), key=lambda n: -scores[n])[:3])
    assert FasterVLM(0.25).reduce(tokens).keep.tolist() == wanted


def slow_div_prune(features: Tensor, count: int) -> set[int]:
    """Greedy max-min by cosine distance, from its definition."""

    def distance(a: int, b: int) -> float:
        return 1 - float(torch.nn.functional.cosine_similarity(features[a], features[b], dim=0))

    everything = range(len(features))
    chosen = [max(everything, key=lambda n: min(distance(n, m) for m in everything if m != n))]
    while len(chosen) < count:
        rest = [n for n in everything if n not in chosen]
        chosen.append(max(rest, key=lambda n: min(distance(n, m) for m in chosen)))
    return set(chosen)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_div_prune_is_the_greedy_max_min_subset(seed: int, ratio: float) -> None:
    tokens = crop(seed=seed)
    kept = DivPrune(ratio).reduce(tokens).keep.tolist()
    assert kept == sorted(kept) and set(kept) == slow_div_prune(tokens.features, max(int(12 * ratio), 1))


def test_div_prune_takes_copies_once_each() -> None:
    same = crop()._replace(features=torch.ones(12, 5))
    assert len(set(DivPrune(0.5).reduce(same).keep.tolist())) == 6
    assert DivPrune(0.5).reduce(crop(1)).keep.tolist() == [0]


@pytest.mark.parametrize("seed", range(3))
def test_vision_zip_keeps_the_dominant_and_merges_the_rest_by_keys(seed: int) -> None:
    tokens = crop(seed=seed)
    assert tokens.attention is not None and tokens.keys is not None
    found = VisionZip(dominant=0.25, contextual=0.25).reduce(tokens)
    score = tokens.attention.sum(0)
    dominant = sorted(score.argsort(descending=True)[:3].tolist())
    rest = [n for n in range(12) if n not in dominant]
    targets = [rest[0], rest[3], rest[6]]
    keys = tokens.keys.mean(0)
    mixed = {n: tokens.features[n] for n in dominant}
    others: dict[int, list[Tensor]] = {target: [] for target in targets}
    for n in (n for n in rest if n not in targets):
        nearest = max(targets, key=lambda t: float(torch.nn.functional.cosine_similarity(keys[n], keys[t], dim=0)))
        others[nearest].append(tokens.features[n])
    for target, merged in others.items():
        mixed[target] = tokens.features[target] + (torch.stack(merged).mean(0) if merged else 0)
    assert found.keep.tolist() == sorted(mixed) and found.weights is not None
    torch.testing.assert_close(found.weights @ tokens.features, torch.stack([mixed[n] for n in sorted(mixed)]))


def test_vision_zip_merges_nothing_where_nothing_is_left() -> None:
    whole = VisionZip(dominant=1.0, contextual=0.5).reduce(crop())
    assert whole.keep.tolist() == list(range(12)) and torch.equal(whole.weights, torch.eye(12))  # type: ignore[arg-type]
    assert len(VisionZip(dominant=0.5, contextual=0).reduce(crop()).keep) == 6


def slow_vis_pruner(tokens: Crop, count: int, important: int) -> list[int]:
    """The most attended, and the rest thinned out pair by pair as the paper's algorithm says."""
    assert tokens.attention is not None
    score = tokens.attention.mean(0)
    order = sorted(range(len(score)), key=lambda n: -float(score[n]))
    pool = sorted(order[important:]) if count > important else []
    while len(pool) > count - important:
        even, odd = pool[::2], pool[1::2]
        alike = {
            n: max(float(torch.nn.functional.cosine_similarity(*tokens.features[[n, m]], dim=0)) for m in odd)
            for n in even
        }
        leaving = sorted(even, key=lambda n: -alike[n])[: min(8, len(pool) - (count - important))]
        pool = [n for n in pool if n not in leaving]
    return sorted([*order[:important], *pool])


@pytest.mark.parametrize(("ratio", "important"), [(0.25, 0.5), (0.5, 0.75), (0.1, 0.5), (1.0, 0.5), (0.5, 1.0)])
def test_vis_pruner_keeps_what_is_important_or_different(ratio: float, important: float) -> None:
    tokens = crop(40)
    count = int(40 * ratio)
    wanted = slow_vis_pruner(tokens, count, int(count * important))
    assert VisPruner(ratio, important).reduce(tokens).keep.tolist() == wanted and len(wanted) == count


@pytest.mark.parametrize("ratio", [0.0, 1.5, float("nan")])
@pytest.mark.parametrize("method", [RandomTokens, UniformTokens, DivPrune, FasterVLM, VisPruner, VisionZip])
def test_shares_are_between_nothing_and_all(method: type, ratio: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        method(ratio)
    with pytest.raises(ValueError, match="allowed are keep, renumber"):
        method(0.5, positions="drop")
