"""Methods that work together in a model, which is left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any, Protocol, runtime_checkable
from weakref import WeakSet

from torch import nn

from blocks.edits.base import (
    AttentionEdit,
    BranchDecoder,
    ComparedHeadEdit,
    FeedForwardEdit,
    HeadEdit,
    LayerEdit,
    MaskProgram,
    PositionEdit,
)
from blocks.tokens.artefact import Artefact, check_artefact
from blocks.tokens.base import Edit, FeatureReducer, LayerPolicy
from blocks.tokens.tower import TowerEdit
from sparsight.lvlm.methods.conflicts import check_generation, check_model, check_together, feed_forward, name_of
from sparsight.lvlm.methods.facts import facts_of
from sparsight.lvlm.methods.families import family_of
from sparsight.lvlm.methods.installed import Installed
from sparsight.lvlm.methods.kernels import around_kernel
from sparsight.lvlm.methods.learned.encoder import as_encoder
from sparsight.lvlm.methods.learned.tower import Tower, check_tower
from sparsight.lvlm.methods.learned.weights import fit_weights, weighted
from sparsight.lvlm.model.bypass import replaced_forward
from sparsight.lvlm.model.tower import find_parts

ORDER = (
    *(
        TowerEdit,
        FeatureReducer,
        PositionEdit,
        MaskProgram,
        LayerPolicy,
        AttentionEdit,
        HeadEdit,
        FeedForwardEdit,
        LayerEdit,
    ),
    BranchDecoder,
)
_BUSY: WeakSet[nn.Module] = WeakSet()  # models with a recipe


@runtime_checkable
class Calibrated(Protocol):
    """A method that uses an artefact of calibration."""

    artefact: Artefact | None


class Recipe:
    """A list of methods, which work in the order of ``ORDER`` whatever their order in the list.

    Images are changed in the vision tower and reduced at the decoder's entrance; each layer then gets its mask, loses
    tokens, attends, and has its heads and its feed-forward part changed. Several of a kind work in the order of the
    list.

    Args:
        methods: Of ``blocks.tokens`` and ``blocks.edits``, or of your own.

    Attributes:
        weighted: Those with weights of their own, by name.

    Raises:
        ValueError: Two exclude each other.
    """

    def __init__(self, methods: Sequence[Edit]) -> None:
        for method in methods:
            if not isinstance(method, ORDER):
                raise ValueError(f"{name_of(method)} is of none of the kinds {', '.join(k.__name__ for k in ORDER)}")
        check_together(methods)
        self.methods = sorted(methods, key=lambda method: next(n for n, k in enumerate(ORDER) if isinstance(method, k)))
        self.weighted = weighted(self.methods)

    @property
    def dropping(self) -> list[str]:
        """Names of methods that drop tokens somewhere, or add passes."""
        kinds = (FeatureReducer, LayerPolicy, BranchDecoder, ComparedHeadEdit)
        return [name_of(method) for method in self.methods if isinstance(method, kinds)]

    @property
    def using_layers_elsewhere(self) -> list[str]:
        """Names of methods that compute with a decoder layer where the decoder does not."""
        found = [each for each in self.methods if isinstance(each, FeatureReducer) and each.encoder_layer is not None]
        return [name_of(method) for method in found]

    @property
    def in_tower(self) -> list[TowerEdit]:
        """Methods that work inside the vision tower."""
        return [method for method in self.methods if isinstance(method, TowerEdit)]

    @property
    def is_calibrated(self) -> bool:
        """Whether any method uses an artefact of calibration."""
        return any(isinstance(method, Calibrated) and method.artefact is not None for method in self.methods)

    def check(self, model: Any, template: str | None = None) -> None:
        """See that the methods can work in a model.

        Args:
            model: The model.
            template: Its chat template, with which artefacts must have been made; not compared if it is not given.

        Raises:
            ValueError: Its family or attention kernel is not served, a method needs what it does not have, or an
                artefact was made with another model.
        """
        family_of(model.config)
        parts = find_parts(model)
        for method in self.methods:
            if isinstance(method, Calibrated) and method.artefact is not None:
                check_artefact(method.artefact, facts_of(model, template=template), method=name_of(method))
        check_tower(self.in_tower, model, parts)
        check_model(self.methods, model.config.get_text_config(decoder=True), parts.layers)
        for method in self.methods:
            if isinstance(method, FeatureReducer) and method.encoder_layer is not None:
                as_encoder(parts, method.encoder_layer, method=name_of(method))

    def record(self) -> list[dict[str, Any]]:
        """Methods and their options in their order, as plain data."""
        return [method.record() for method in self.methods]

    def fit(self, model: Any) -> None:
        """Give methods their weights for a model where they have none: afresh, or from their files.

        Raises:
            ValueError: A file does not fit, or they have weights for another model.
        """
        fit_weights(self.weighted, model)

    @contextmanager
    def on(self, model: Any, *, learns: bool = False) -> Iterator[None]:
        """Let a model work with the methods inside: forward, backward, and ``generate`` with a cache.

        Labels, given to the model or to ``sparsight.lvlm.model.answer_losses.answer_losses``, tell where the answer
        begins; without them the whole text is the prompt. Outputs have the shape that they have without the methods.

        Args:
            model: The model; methods are given their weights for it where they have none.
            learns: Whether methods do what they do in training alone; they do so in a model in train mode anyway.

        Raises:
            ValueError: As ``check`` and ``fit``, or the model has a recipe already.
        """
        if model in _BUSY:
            raise ValueError("the model has a recipe already: put all methods into one")
        self.check(model)
        parts = find_parts(model)
        self.fit(model)
        work = Installed(self.methods, model, parts, learns=learns)
        kernels = {config._attn_implementation for config in (work.config, *work.tower_configs)}
        with ExitStack() as stack:
            _BUSY.add(model)
            stack.callback(_BUSY.discard, model)
            if self.in_tower:
                stack.enter_context(Tower(self.in_tower, model, parts, work.pictures).installed())
            stack.enter_context(work.pictures.watched())
            stack.enter_context(_careful_generation(model))
            stack.enter_context(_around(model, work.model))
            stack.enter_context(_around(parts.decoder, work.decoder))
            for number, layer in enumerate(parts.layers):
                stack.enter_context(_around(layer, partial(work.layer, number)))
                if work.feeds:
                    part = feed_forward(layer)
                    stack.enter_context(_around(part, partial(work.feed, number, part)))
            for kernel in kernels:
                stack.enter_context(around_kernel(kernel, work.attend))
            yield


@contextmanager
def _around(module: nn.Module, work: Callable[..., Any]) -> Iterator[None]:
    """Let ``work(forward, ...)`` stand in for a module's forward."""
    forward = module.forward
    with replaced_forward(module, wraps(forward)(partial(work, forward))):
        yield


@contextmanager
def _careful_generation(model: Any) -> Iterator[None]:
    generate = model.generate

    @wraps(generate)
    def careful(*args: Any, **options: Any) -> Any:
        check_generation(options, options.get("generation_config") or model.generation_config)
        return generate(*args, **options)

    vars(model)["generate"] = careful
    try:
        yield
    finally:
        del vars(model)["generate"]
