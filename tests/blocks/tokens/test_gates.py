"""Policies with weights, against their equations, and what their weights are taught."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from blocks.tokens import DynamicExit, GammaMoD, Shape, Sight
from lightning_modules import SparseLayerTuning
from sparsight.lvlm.methods.recipe import Recipe
from sparsight.lvlm.model.answer_losses import answer_losses
from sparsight.lvlm.train.stages import TuningStage
from tests.tiny_batches import batch_of
from tests.tiny_lvlm import save_tiny_lvlm
from tests.tiny_maps import token_map
from tests.tiny_methods import stirred, tried

SHAPE = Shape(depth=6, channels=8, heads=2, key_heads=1, head_channels=4, inner=16)
TOKENS = token_map("psiiiiqqqaa", "ppsiiqqqqaa", "ppppssssqqq")


def sight(layer: int, *, learns: bool = False, seed: int = 0) -> Sight:
    torch.manual_seed(seed)
    hidden = torch.randn(*TOKENS.kind.shape, 8)
    begun = TOKENS.visual.sum(1)
    return Sight(layer, 6, TOKENS, hidden, None, hidden, begun, F.layer_norm(hidden, [8]), learns)


@pytest.mark.parametrize("seed", range(4))
def test_images_leave_where_a_gate_says_so(seed: int) -> None:
    method = DynamicExit(first_layer=2, width=5)
    stirred(method, 1.0)
    gates, _ = method.fit(SHAPE)
    seen = sight(3, seed=seed)
    first, _, last = gates["3"]  # type: ignore[index]
    keep = method.decide(seen).keep
    for sample, words in enumerate(([6, 7], [5, 6, 7], [])):  # the last word of the prompt is read by itself
        at = (8, 8, 10)[sample]
        mean = seen.hidden[sample, words].mean(0) if words else torch.zeros(8)
        read = torch.cat([mean, seen.hidden[sample, at]])
        said = last.weight @ F.gelu(first.weight @ read) + last.bias
        stays = not bool(said[1] > said[0])
        assert keep[sample].tolist() == [stays or letter != 2 for letter in TOKENS.kind[sample].tolist()]
    assert [layer for layer in range(6) if method.at(layer, 6)] == [2, 3, 4, 5] and set(gates._modules) == set("2345")
    for options, told in (({"first_layer": 0}, "from 1"), ({"tolerance": 0.5}, "tolerance from 1")):
        with pytest.raises(ValueError, match=told):
            DynamicExit(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="first gate before layer 9 of 6"):
        DynamicExit(9).fit(SHAPE)


@pytest.mark.parametrize(("agreement", "tolerance", "right"), [(0.0, 1e9, 1), (1.0, 1.0, 0)])
def test_a_gate_learns_whether_an_exit_before_its_layer_was_right(
    agreement: float, tolerance: float, right: int, tmp_path: Any
) -> None:
    """Where all is allowed every exit is right, and where nothing is none is; only the drawn gate learns."""
    base = save_tiny_lvlm(tmp_path / "base", "fast_vlm")
    method = (
        DynamicExit(2, 8, agreement=agreement - 1e-9 if right else 1.0, tolerance=tolerance)
        if not right
        else (DynamicExit(2, 8, agreement=agreement, tolerance=tolerance))
    )
    module = SparseLayerTuning(
        base=str(base), stages=[TuningStage(steps=1, train=["methods"], lr=0.1)], recipe=[stirred(method)]
    )
    batch: dict[str, Any] = {**batch_of("fast_vlm", module.model), "image_keys": [], "index": torch.arange(2)}
    logged: dict[str, Any] = {}
    module.log = lambda name, value, **_: logged.__setitem__(name, float(value))  # type: ignore[method-assign]
    module.training_step(batch, 0).backward()
    drawn = str(method._drawn)
    assert method._seen is not None
    target = torch.full((2,), right)
    wanted = F.cross_entropy(method.held[drawn](method._seen), target)
    assert logged["train/DynamicExit"] == pytest.approx(float(wanted), rel=1e-4)
    moved = {name for name, gate in method.held.items() if gate[0].weight.grad.abs().max() > 0}
    assert moved == {drawn}
    assert module.recipe is not None and method._leaves is None


def test_an_exit_that_is_taught_leaves_out_images_from_its_layer_on() -> None:
    """The passes of a lesson are those of a model that loses its images there, and of one that does not."""
    model, _ = tried("llava")
    method = DynamicExit(2, 8)
    batch = batch_of("llava", model)
    losses = {}
    with torch.no_grad(), Recipe([stirred(method)]).on(model):
        for leaves in (-1, 3, 5):
            method._leaves = leaves
            losses[leaves] = answer_losses(model, batch["inputs"], batch["labels"])[0]
    with torch.no_grad():
        torch.testing.assert_close(losses[-1], answer_losses(model, batch["inputs"], batch["labels"])[0])
    assert float((losses[3] - losses[-1]).abs().max()) > float((losses[5] - losses[-1]).abs().max()) > 1e-5


def test_a_router_chooses_a_share_while_it_trains_and_by_chance_when_it_answers() -> None:
    method = GammaMoD([2, 4], ratio=0.4, balance=0.5)
    stirred(method, 2.0)
    router: Any = method.fit(SHAPE)[0]
    seen = sight(2, learns=True)
    chance = (seen.normed @ router.weight.T).softmax(-1)[..., 1]  # type: ignore[operator]
    decision = method.decide(seen)
    for sample in range(3):
        images = [n for n, kind in enumerate(TOKENS.kind[sample].tolist()) if kind == 2]
        best = set(sorted(images, key=lambda n: -float(chance[sample, n]))[: -(-len(images) * 4 // 10)])
        text = {n for n, kind in enumerate(TOKENS.kind[sample].tolist()) if kind not in (0, 2)}
        assert set(decision.keep[sample].nonzero()[:, 0].tolist()) == best | text
    assert decision.returns and decision.scale is not None and method.feeds
    torch.testing.assert_close(decision.scale, chance)
    logits = seen.normed @ router.weight.T  # type: ignore[operator]
    present = TOKENS.present
    wanted = 0.5 * F.cross_entropy(logits[present], decision.keep[present].long())
    loss = method.loss()
    assert loss is not None and method.loss() is None
    torch.testing.assert_close(loss, wanted)
    router.weight.data *= 10  # so that some are below 0.005
    seen = sight(4)
    chance = (seen.normed @ router.weight.T).softmax(-1)[..., 1]  # type: ignore[operator]
    keep = method.decide(seen).keep
    for sample, kinds in enumerate(TOKENS.kind.tolist()):
        end = (8, 8, 10)[sample]
        for n, kind in enumerate(kinds):
            least = 0.5 if kind == 4 else 0.005
            if kind:
                assert bool(keep[sample, n]) == (n == end or float(chance[sample, n]) > least)
    assert int((chance <= 0.005).sum()) > 0 and method.loss() is None
    computes, scale = method.answers(4, seen.hidden[:, -2:], seen.normed[:, -2:])  # type: ignore[index,misc]
    torch.testing.assert_close(scale, chance[:, -2:])
    assert torch.equal(computes, chance[:, -2:] >= 0.5)


def test_what_a_router_cannot_do_is_named() -> None:
    for options, told in (({}, "layers or an artefact"), ({"layers": [1], "balance": -1}, "balance is from 0")):
        with pytest.raises(ValueError, match=told):
            GammaMoD(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"GammaMoD names layers \[7\]"):
        GammaMoD([7]).at(1, 6)
