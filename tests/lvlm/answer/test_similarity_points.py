"""READ's points, against the equations token by token, on an image that is no square."""

from __future__ import annotations

import math

import pytest
import torch

from sparsight.lvlm.answer.similarity_points import SimilarityPoints, continuous
from tests.tiny_batches import wide_and_high
from tests.tiny_lvlm import tiny_lvlm
from tests.tiny_tokens import IMAGE


def test_points_are_where_the_last_token_and_the_image_are_alike() -> None:
    model = tiny_lvlm("qwen2_5_vl")
    inputs = wide_and_high()["inputs"]  # 2 x 4 tokens; then 4 x 2 and 2 x 2
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states[-1].float()
    found = SimilarityPoints(0.5).points(model, inputs)
    assert [[(each.image, tuple(each.similarity.shape)) for each in own] for own in found] == [
        [(0, (2, 4))],
        [(0, (4, 2)), (1, (2, 2))],
    ]
    for sample, own in enumerate(found):
        places = (inputs["input_ids"][sample] == IMAGE).nonzero()[:, 0]
        likeness = states[sample, places] @ states[sample, -1]
        for each in own:
            rows, columns = each.similarity.shape
            part, likeness = likeness[: rows * columns], likeness[rows * columns :]
            torch.testing.assert_close(each.similarity.flatten(), part, atol=1e-4, rtol=1e-4)
            mean, deviation = float(part.mean()), float((part - part.mean()).square().mean().sqrt())
            wanted = []
            for token, value in enumerate(part.tolist()):
                if abs(value - mean) >= 0.5 * deviation:
                    total = across = down = 0.0
                    for other, logit in enumerate(part.tolist()):
                        gap = math.dist(divmod(token, columns), divmod(other, columns))
                        weight = math.exp(logit - float(part.max())) * math.exp(-gap)
                        total += weight
                        across += weight * (other % columns)
                        down += weight * (other // columns)
                    wanted.append(((across / total + 0.5) / columns, (down / total + 0.5) / rows, value > mean))
            torch.testing.assert_close(
                each.places.detach(), torch.tensor([[x, y] for x, y, _ in wanted]), atol=1e-4, rtol=1e-3
            )
            assert each.is_object.tolist() == [is_object for _, _, is_object in wanted]


def test_a_loss_on_points_reaches_the_model() -> None:
    model = tiny_lvlm("llava")
    inputs = {"input_ids": torch.tensor([[5, 6, *[IMAGE] * 16, 9, 10]]), "pixel_values": torch.randn(1, 3, 16, 16)}
    (own,) = SimilarityPoints().points(model, inputs, asking=torch.tensor([18]))
    own[0].places.square().sum().backward()
    assert float(model.model.language_model.layers[2].mlp.down_proj.weight.grad.abs().max()) > 0


def test_a_point_of_one_peak_stands_there() -> None:
    cells = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))
    sharp = torch.zeros(9).index_fill(0, torch.tensor([4]), 50.0)
    torch.testing.assert_close(continuous(cells, sharp, torch.tensor([0, 4])), torch.ones(2, 2))
    with pytest.raises(ValueError, match="epsilon is from 0"):
        SimilarityPoints(-0.1)
