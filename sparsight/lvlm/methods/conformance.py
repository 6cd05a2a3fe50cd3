"""What every method must keep, whatever it changes: run on a model of yours by ``check_methods``.

Shape legend: B samples, T tokens, G generated tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from blocks.tokens.base import Edit
from sparsight.lvlm.methods.recipe import Recipe
from sparsight.lvlm.model.answer_losses import IGNORED, answer_losses
from sparsight.lvlm.model.tower import find_parts

BY_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
CHANGED = {"forward", "generate", "get_image_features"}  # methods that a recipe stands around
Sample = Mapping[str, Any]


def check_methods(
    methods: Callable[[], Sequence[Edit]],
    model: Any,
    samples: Sequence[Sample],
    *,
    changes: bool | None = True,
    tolerance: float = 2e-5,
    new_tokens: int = 4,
    trains: bool = True,
    **options: Any,
) -> dict[str, float]:
    """Check that a list of methods is right where published code often is not.

    What is decoded behind a cache, in a batch of samples of other lengths padded on the left, is what each sample alone
    says in one pass without a cache; a pass under labels gives gradients that are finite; the model is left as it was.

    Args:
        methods: Makes the list.
        model: In eval mode.
        samples: Inputs of single samples without padding, of different lengths.
        changes: Whether answers must change by more than the tolerance; ``False`` says that they must not, and ``None``
            that they may.
        tolerance: Largest difference of logits that counts as none.
        new_tokens: How many tokens are generated.
        trains: Whether a backward pass is tried.
        options: Of ``generate``, such as ``cache_implementation``.

    Returns:
        Largest differences of logits: ``decoded`` from one pass, and ``changed`` from the model without methods.

    Raises:
        AssertionError: A promise is broken; the message names it.
    """
    batch = left_padded(samples)
    kernels = dict(ALL_ATTENTION_FUNCTIONS)
    _forget(model)
    with torch.no_grad():
        before = model(**batch).logits
    recipe = Recipe(methods())
    with torch.no_grad(), recipe.on(model):
        said, logits_BGV = _generated(model, batch, new_tokens, options)
        decoded = max(
            _difference(_whole(model, sample, ids), logits_GV)
            for sample, ids, logits_GV in zip(samples, said, logits_BGV, strict=True)
        )
    assert decoded <= tolerance, f"decoded in a padded batch behind a cache, logits differ by {decoded:.2g}"
    changed = _difference(logits_BGV[:, 0], before[:, -1])
    if changes:
        assert changed > 20 * tolerance, f"the methods change logits by {changed:.2g} only"
    elif changes is False:
        assert changed <= tolerance, f"nothing should change, but logits differ by {changed:.2g}"
    if trains:
        _check_gradients(recipe, model, samples)
    _forget(model)
    with torch.no_grad():
        after = model(**batch).logits
    assert torch.equal(before, after), "the model is not what it was before"
    left = [name for name, module in model.named_modules() if CHANGED & set(vars(module))]
    assert not left and dict(ALL_ATTENTION_FUNCTIONS) == kernels, (
        f"something of the recipe is left: {left or 'kernels'}"
    )
    return {"decoded": decoded, "changed": changed}


def left_padded(samples: Sequence[Sample]) -> dict[str, Any]:
    """One batch of single samples."""
    width = max(sample["input_ids"].shape[1] for sample in samples)
    batch = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if name in BY_TOKEN:
            values = [torch.nn.functional.pad(value, (width - value.shape[1], 0)) for value in values]
        batch[name] = torch.cat(values)
    return batch


def _generated(model: Any, batch: Sample, count: int, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Tokens (B, G) and their logits (B, G, V), without tokens of images, which no pass could read without images."""
    _forget(model)
    made = model.generate(
        **batch,
        max_new_tokens=count,
        do_sample=False,
        suppress_tokens=[find_parts(model).image_token_id],
        pad_token_id=0,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return made.sequences[:, batch["input_ids"].shape[1] :], torch.stack(made.logits, 1)


def _continued(sample: Sample, ids: Tensor) -> dict[str, Any]:
    """A sample with an answer (G), and labels that say so."""
    longer = dict(sample)
    answer = ids[None]
    longer["input_ids"] = torch.cat([sample["input_ids"], answer], 1)
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    if "mm_token_type_ids" in sample:
        longer["mm_token_type_ids"] = torch.cat([sample["mm_token_type_ids"], torch.zeros_like(answer)], 1)
    if "token_type_ids" in sample:  # PaliGemma's answers are of the kind of its last token
        last = sample["token_type_ids"][:, -1:].expand_as(answer)
        longer["token_type_ids"] = torch.cat([sample["token_type_ids"], last], 1)
    longer["labels"] = torch.cat([torch.full_like(sample["input_ids"], IGNORED), answer], 1)
    return longer


def _whole(model: Any, sample: Sample, ids: Tensor) -> Tensor:
    _forget(model)
    return model(**_continued(sample, ids), use_cache=False).logits[0, -len(ids) - 1 : -1]


def _check_gradients(recipe: Recipe, model: Any, samples: Sequence[Sample]) -> None:
    parts = find_parts(model)
    with recipe.on(model):
        for sample in samples:
            longer = _continued(sample, sample["input_ids"][0, -2:])
            _forget(model)
            answer_losses(model, longer, longer.pop("labels"))[0].sum().backward()
    for number, layer in enumerate(parts.layers):
        norms = [parameter.grad.norm() for parameter in layer.parameters() if parameter.grad is not None]
        assert norms and bool(torch.stack(norms).isfinite().all()), f"gradients of layer {number} are not finite"
        assert any(float(norm) > 0 for norm in norms), f"layer {number} gets no gradient"
    model.zero_grad(set_to_none=True)


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _forget(model: Any) -> None:
    """Drop what Qwen-VL remembers of the positions of an earlier batch."""
    if "rope_deltas" in vars(model.base_model):
        model.base_model.rope_deltas = None
