"""Keep sets and mixtures of reducers by tower, text and first layers, against their equations, written out slowly."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from blocks.tokens import ClusterMerge, Crop, FoPru, FrameBudgets, GemFilter, LayerEnsemble, TextRouter
from blocks.tokens.reducers.frame_budgets import budgets


def crop(number: int = 12, *, seed: int = 0, **more: object) -> Crop:
    torch.manual_seed(seed)
    ensemble = torch.rand(4, 3, number)
    return Crop(
        torch.randn(number, 5),
        ensemble[-1],
        torch.randn(3, number, 4),
        seed,
        ensemble,
        torch.arange(number) // 4,
        torch.arange(number) % 4,
        torch.randn(3, 5),
        torch.randn(2, number),
    )._replace(**more)  # type: ignore[arg-type]


def best(scores: list[float], count: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda n: -scores[n])[:count])


def test_an_ensemble_adds_layers_up() -> None:
    tokens = crop()
    assert tokens.ensemble is not None
    scores = [sum(float(tokens.ensemble[layer, :, n].mean()) for layer in range(4)) for n in range(12)]
    assert LayerEnsemble(0.25).reduce(tokens).keep.tolist() == best(scores, 3)


def test_single_patches_or_whole_rows_stay() -> None:
    tokens = crop()
    assert tokens.attention is not None
    scores = tokens.attention.mean(0).tolist()
    assert FoPru(0.25).reduce(tokens).keep.tolist() == best(scores, 3)
    (row,) = best([sum(scores[4 * r : 4 * r + 4]) for r in range(3)], 1)
    assert FoPru(0.4, group="row").reduce(tokens).keep.tolist() == list(range(4 * row, 4 * row + 4))
    with pytest.raises(ValueError, match="allowed are rank, row"):
        FoPru(group="column")  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(4))
def test_clusters_become_their_means_in_the_place_of_the_nearest(seed: int) -> None:
    tokens = crop(seed=seed)
    assert tokens.attention is not None
    found = ClusterMerge(0.25, 0.25).reduce(tokens)
    assert found.weights is not None
    primary = best(tokens.attention.mean(0).tolist(), 3)
    merged = {int(place): row.nonzero()[:, 0].tolist() for place, row in zip(found.keep, found.weights, strict=True)}
    assert all(merged.pop(n) == [n] for n in primary) and len(merged) <= 3
    assert sorted(n for members in merged.values() for n in members) == [n for n in range(12) if n not in primary]
    means = {place: tokens.features[members].mean(0) for place, members in merged.items()}
    for place, members in merged.items():
        apart = {n: float((tokens.features[n] - means[place]).norm()) for n in members}
        assert place == min(members, key=lambda n: apart[n])
        for n in members:  # k-means has settled
            nearest = min(means, key=lambda other: float((tokens.features[n] - means[other]).norm()))
            assert nearest == place
    mixed = found.weights @ tokens.features
    for place, mean in means.items():
        torch.testing.assert_close(mixed[found.keep.tolist().index(place)], mean)


def test_the_router_keeps_the_smallest_set_of_a_share() -> None:
    tokens = crop(number=6)
    assert tokens.text is not None
    cosine = torch.nn.functional.cosine_similarity
    likeness = [sum(float(cosine(tokens.features[n], t, dim=0)) for t in tokens.text) for n in range(6)]
    weights = (torch.tensor(likeness) / 0.5).softmax(0).tolist()
    order = sorted(range(6), key=lambda n: -weights[n])
    count = next(k for k in range(1, 7) if sum(weights[n] for n in order[:k]) >= 0.6)
    router = TextRouter(0.6, temperature=0.5)
    assert router.reduce(tokens).keep.tolist() == sorted(order[:count])
    whole, local = router.reduce_sample([tokens, tokens._replace(number=1)])
    assert whole.keep.tolist() == list(range(6)) and local.keep.tolist() == sorted(order[:count])
    assert router.reduce_sample([tokens])[0].keep.tolist() == sorted(order[:count])  # nothing but the whole image


def test_smoothed_logits_of_all_crops_compete() -> None:
    crops = [crop(seed=1), crop(seed=2)]
    smooth: list[float] = []
    for each in crops:
        assert each.asked is not None
        total = each.asked.sum(0).tolist()
        smooth += [sum(total[max(n - 1, 0) : n + 2]) / len(total[max(n - 1, 0) : n + 2]) for n in range(12)]
    wanted = best(smooth, 6)
    found = GemFilter(3, 0.25, smooth=3).reduce_sample(crops)
    assert found[0].keep.tolist() == [n for n in wanted if n < 12]
    assert found[1].keep.tolist() == [n - 12 for n in wanted if n >= 12]
    with pytest.raises(ValueError, match="smooth is odd"):
        GemFilter(3, smooth=4)


def test_frames_get_tokens_by_their_squared_scores() -> None:
    crops = [crop(seed=n, image=n) for n in range(3)]
    found = FrameBudgets(0.5, scores=[0.9, 0.3, 0.1]).reduce_sample(crops)
    assert [len(each.keep) for each in found] == [12, 5, 1]  # 0.81 : 0.09 : 0.01 of 18, of which the first takes 12
    assert all(torch.equal(each.keep, each.keep.unique()) for each in found)
    with pytest.raises(ValueError, match="1 scores; a prompt has 2 images"):
        FrameBudgets(0.5, scores=[0.9]).reduce_sample(crops[:2])
    liked = crops[1]._replace(features=crops[1].text.repeat(4, 1))  # type: ignore[union-attr]
    alone = [len(each.keep) for each in FrameBudgets(0.5).reduce_sample([crops[0], liked])]
    assert sum(alone) == 12 and alone[1] > alone[0]


@pytest.mark.parametrize("scores", [[1.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.2, 0.5, 0.9], [0.0, 0.0, 0.0]])
@pytest.mark.parametrize("total", [3, 10, 30, 36])
def test_budgets_add_up(scores: list[float], total: int) -> None:
    found = budgets(torch.tensor(scores), [12, 12, 12], total)
    assert sum(found) == total and all(0 <= count <= 12 for count in found)
    order = sorted(range(3), key=lambda n: scores[n])
    assert all(found[a] <= found[b] + 1 for a, b in pairwise(order))
