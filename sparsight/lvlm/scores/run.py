"""All scores of a model over one calibration set: what can share a forward pass does."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sparsight.common.errors import ConfigurationError
from sparsight.lvlm.model.bypass import entering, leaving
from sparsight.lvlm.model.tower import Parts, find_parts
from sparsight.lvlm.scores.base import LayerPass, LayerScore, SeparateScore, StreamingScore
from sparsight.lvlm.scores.table import ScoreTable
from sparsight.lvlm.scores.tokens import CalibrationFacts, CalibrationSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def score_layers(
    model: PreTrainedModel, batches: Iterable[Mapping[str, Any]], scores: Sequence[LayerScore], **facts: Any
) -> ScoreTable:
    """Score the decoder layers of an image-text model.

    The model is left as it was: no hook, no changed mode, no changed attention.

    Args:
        model: Any model that ``sparsight.lvlm.model.tower.find_parts`` knows.
        batches: Batches of the instruction datamodule: ``inputs`` for the model, ``labels`` where a score needs them.
        scores: With different names.
        **facts: What else the table is to say about where it comes from.

    Raises:
        ConfigurationError: There are no scores or batches, two scores have one name, a score does not fit model or
            batches, or a number is not finite.
    """
    names = [score.name for score in scores]
    if not names or len(set(names)) < len(names):
        raise ConfigurationError(f"scores need different names, and at least one; got {names}")
    parts = find_parts(model)
    streaming = [score for score in scores if isinstance(score, StreamingScore)]
    separate = [score for score in scores if isinstance(score, SeparateScore)]
    calibration = CalibrationSet(list(batches) if separate else batches, parts)
    values: dict[str, list[float | None]] = {}
    with in_eval_mode(model):
        measured_on = shared_pass(model, parts, calibration, streaming)
        for score in separate:
            values[score.name] = [*score.measure(model, parts, calibration)]
    values |= {score.name: score.values() for score in streaming}
    _check_finite(values)
    about = {"model": model.config._name_or_path, "class": type(model).__name__, "layers": parts.layers_name}
    return ScoreTable(
        {name: values[name] for name in names},
        facts={**about, **measured_on.as_dict(), **facts},
        details={score.name: found for score in scores if (found := score.details())},
    )


def shared_pass(
    model: PreTrainedModel, parts: Parts, batches: CalibrationSet, scores: Sequence[StreamingScore]
) -> CalibrationFacts:
    """Let every batch pass once while the scores look on; without scores, the batches are only counted.

    Raises:
        ConfigurationError: There are no batches.
    """
    seen = CalibrationFacts()
    few_logits = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}

    def look_on(step: LayerPass) -> None:
        for score in scores:
            score.observe(step)

    for score in scores:
        score.start(len(parts.layers))
    with ExitStack() as stack:
        for score in scores:
            stack.enter_context(score.attached(parts))
        stack.enter_context(watched(parts.layers, look_on))
        for batch in batches:
            seen.note(batch)
            for score in scores:
                score.begin(batch.tokens)
            if scores:
                model(**batch.inputs, use_cache=False, **few_logits)
    if not seen.samples:
        raise ConfigurationError("there are no calibration batches")
    return seen


@contextmanager
def watched(layers: nn.ModuleList, look_on: Callable[[LayerPass], None]) -> Iterator[None]:
    """Call ``look_on`` whenever a layer has returned."""

    def hook_of(index: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            look_on(LayerPass(index, entering(args, kwargs), leaving(output)))

        return hook

    hooks = [layer.register_forward_hook(hook_of(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for the whole model; afterwards every module has its own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check_finite(values: Mapping[str, Sequence[float | None]]) -> None:
    for name, numbers in values.items():
        wrong = [layer for layer, number in enumerate(numbers) if number is not None and not math.isfinite(number)]
        if wrong:
            raise ConfigurationError(
                f"{name} of layers {wrong[:5]} is not a finite number: does the model overflow? bfloat16 and float32 "
                "reach further than float16"
            )
