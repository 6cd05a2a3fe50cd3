"""Block influence and angular distance against slow sums over tokens, and at known angles."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsight.lvlm.model.bypass import bypassed, replaced_forward
from sparsight.lvlm.model.tower import find_parts
from sparsight.lvlm.scores import AngularDistance, BlockInfluence, MultimodalBlockInfluence, score_layers
from sparsight.lvlm.scores.geometry import Directions
from tests.tiny_batches import FAMILIES, Batch, batch_of, one_by_one, padded_left, text_only
from tests.tiny_lvlm import tiny_lvlm
from tests.tiny_tokens import IMAGE

SHARED = [
    BlockInfluence(),
    MultimodalBlockInfluence(),
    *[AngularDistance(tokens) for tokens in ("last", "all", "image", "text")],  # type: ignore[arg-type]
    AngularDistance("all", window=3),
]
KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "all": lambda ids: torch.ones_like(ids, dtype=torch.bool),
    "image": lambda ids: ids == IMAGE,
    "text": lambda ids: ids != IMAGE,
    "last": lambda ids: torch.arange(len(ids)) == len(ids) - 1,
}


def states_of(model: Any, batch: Batch) -> list[tuple[Tensor, list[Tensor]]]:
    """Ids (T) of each sample without padding, and the states (T, C) in float64 before, between and after its layers.

    From transformers' ``hidden_states``, with the last state taken where the final norm reads it.
    """
    samples = []
    final_norm = model.get_decoder().norm
    for single in one_by_one(batch):
        seen: list[Tensor] = []
        hook = final_norm.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            states = model(**single["inputs"], output_hidden_states=True, use_cache=False).hidden_states
        hook.remove()
        samples.append((single["inputs"]["input_ids"][0], [s[0].double() for s in (*states[:-1], seen[0])]))
    return samples


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def mean(numbers: Any) -> float:
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


def slow_mean(samples: Any, layer: int, kind: str, measure: Callable[[float], float], window: int = 1) -> float:
    """Mean over samples of the mean over tokens, one token at a time."""
    return mean(
        mean(
            measure(cosine(states[layer][token], states[layer + window][token]))
            for token in KINDS[kind](ids).nonzero()[:, 0].tolist()
        )
        for ids, states in samples
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_slow_sums_over_hidden_states(family: str) -> None:
    model = tiny_lvlm(family)
    batch = batch_of(family, model)
    values = score_layers(model, [batch], SHARED).values
    samples = states_of(model, batch)

    def influence(cos: float) -> float:
        return 1 - cos

    def angle(cos: float) -> float:
        return math.acos(min(1.0, max(-1.0, cos))) / math.pi

    for layer in range(6):
        assert values["block_influence"][layer] == pytest.approx(slow_mean(samples, layer, "all", influence), abs=1e-6)
        halves = [slow_mean(samples, layer, kind, influence) for kind in ("image", "text")]
        assert values["multimodal_block_influence"][layer] == pytest.approx(mean(halves), abs=1e-6)
        for kind in KINDS:
            expected = slow_mean(samples, layer, kind, angle)
            assert values[f"angular_distance_{kind}"][layer] == pytest.approx(expected, abs=1e-6)
    windows = [slow_mean(samples, layer, "all", angle, window=3) for layer in range(4)]
    assert values["angular_distance_all_window3"] == [*[pytest.approx(w, abs=1e-6) for w in windows], None, None]


def test_block_influence_is_what_plain_hooks_see() -> None:
    """A second reference: inputs and outputs of the layers, in one padded batch."""
    model = tiny_lvlm("llava")
    batch = batch_of("llava", model)
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
        for layer in find_parts(model).layers
    ]
    with torch.no_grad():
        model(**batch["inputs"])
    for hook in hooks:
        hook.remove()
    mask = batch["inputs"]["attention_mask"]
    expected = [
        1 - float(((torch.cosine_similarity(a, b, dim=-1) * mask).sum(1) / mask.sum(1)).mean()) for a, b in seen
    ]
    assert score_layers(model, [batch], [BlockInfluence()]).values["block_influence"] == pytest.approx(
        expected, abs=1e-6
    )


def test_the_last_layer_is_not_read_through_the_final_norm() -> None:
    model = tiny_lvlm("llava")
    batch = batch_of("llava", model)
    before = score_layers(model, [batch], [BlockInfluence()]).values
    with torch.no_grad():
        model.get_decoder().norm.weight.copy_(torch.randn(32))
    assert score_layers(model, [batch], [BlockInfluence()]).values == before


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_side_and_batching_change_nothing(family: str) -> None:
    model = tiny_lvlm(family)
    batch = batch_of(family, model)
    right = score_layers(model, [batch], SHARED).values
    for batches in ([padded_left(batch)], one_by_one(batch)):
        other = score_layers(model, batches, SHARED).values
        for name, values in right.items():
            assert other[name] == pytest.approx(values, abs=1e-5), name


def test_a_layer_that_changes_nothing_scores_exactly_0() -> None:
    model = tiny_lvlm("llava")
    with bypassed(find_parts(model).layers, [2]):
        values = score_layers(model, [batch_of("llava", model)], SHARED).values
    for name, numbers in values.items():
        if "window" not in name:
            assert numbers[2] == 0, name
            assert all(number and number > 0.001 for layer, number in enumerate(numbers) if layer != 2), name


def test_a_layer_that_turns_everything_round_scores_1_in_angle_and_2_in_influence() -> None:
    model = tiny_lvlm("llava")
    with replaced_forward(find_parts(model).layers[5], lambda states, **_: -3 * states):
        values = score_layers(model, [batch_of("llava", model)], SHARED).values
    assert values["angular_distance_all"][5] == pytest.approx(1)
    assert values["block_influence"][5] == pytest.approx(2)


def test_multimodal_influence_is_the_plain_one_when_all_tokens_are_of_one_kind() -> None:
    model = tiny_lvlm("llava")
    batch = text_only(batch_of("llava", model))
    values = score_layers(model, [batch], [BlockInfluence(), MultimodalBlockInfluence()]).values
    assert values["multimodal_block_influence"] == values["block_influence"]


def test_samples_without_an_image_count_as_what_they_have() -> None:
    model = tiny_lvlm("llava")
    batch = batch_of("llava", model)
    scores = [MultimodalBlockInfluence(), AngularDistance("image"), AngularDistance("text")]
    both = score_layers(model, [batch, text_only(batch)], scores).values
    images, texts = (score_layers(model, [b], scores[::2]).values for b in (batch, text_only(batch)))
    for name in ("multimodal_block_influence", "angular_distance_text"):
        expected = [(a + b) / 2 for a, b in zip(images[name], texts[name], strict=True)]  # type: ignore[operator]
        assert both[name] == pytest.approx(expected, abs=1e-6)
    assert both["angular_distance_image"] == score_layers(model, [batch], scores).values["angular_distance_image"]
    with pytest.raises(ValueError, match="the calibration batches have no image tokens"):
        score_layers(model, [text_only(batch)], [AngularDistance("image")])


def test_half_precision_is_summed_in_single() -> None:
    """Equal to fp32 arithmetic on the very states that the bf16 model makes: 2000 tokens of one kind would drift."""
    model = tiny_lvlm("llava").to(torch.bfloat16)
    batch = batch_of("llava", model)
    batch["inputs"]["pixel_values"] = batch["inputs"]["pixel_values"].bfloat16()
    seen: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        for row, length in enumerate(batch["inputs"]["attention_mask"].sum(1).tolist()):
            a, b = args[0][row, :length].double(), output[row, :length].double()
            seen.append(1 - torch.cosine_similarity(a, b, dim=-1).mean())

    hook = find_parts(model).layers[3].register_forward_hook(note)
    values = score_layers(model, [batch], [BlockInfluence()]).values["block_influence"]
    hook.remove()
    assert values[3] == pytest.approx(float(torch.stack(seen).mean()), rel=1e-5)


@pytest.mark.parametrize("degrees", [0.0, 1e-3, 0.5, 60.0, 90.0, 179.999, 180.0])
def test_angles_keep_their_digits_in_single_precision(degrees: float) -> None:
    radians = math.radians(degrees)
    u = torch.tensor([[[7.0, 0.0]]])
    v = torch.tensor([[[0.2 * math.cos(radians), 0.2 * math.sin(radians)]]])
    between = Directions.between(u, v)
    assert float(between.angle_BT) == pytest.approx(degrees / 180, rel=1e-5, abs=1e-7)
    assert float(between.cosine_distance_BT) == pytest.approx(2 * math.sin(radians / 2) ** 2, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("channels", [2, 32, 960])
def test_rounding_leads_out_of_no_range(channels: int) -> None:
    u_BTC = torch.randn(4, 500, channels)
    for scale in (-3.0, 1.0):
        between = Directions.between(u_BTC, scale * u_BTC)
        assert 0 <= float(between.angle_BT.min()) <= float(between.angle_BT.max()) <= 1
        assert 0 <= float(between.cosine_distance_BT.min()) <= float(between.cosine_distance_BT.max()) <= 2


def test_options_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="tokens is one of last, all, image, text; got 'first'"):
        AngularDistance("first")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="window is a number of layers from 1; got 0"):
        AngularDistance(window=0)
    model = tiny_lvlm("llava")
    with pytest.raises(ValueError, match="window is 7, but the decoder has 6 layers"):
        score_layers(model, [batch_of("llava", model)], [AngularDistance(window=7)])
