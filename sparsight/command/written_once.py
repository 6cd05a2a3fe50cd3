"""What a module says and its data need to know as well: written once, at the module."""

from __future__ import annotations

import inspect
from typing import Any

from sparsight.common.checkpoint.run_record import same_value
from sparsight.common.datamodule import Follower, check_wings
from sparsight.common.errors import ConfigurationError
from sparsight.common.names import named

WITH_NAME = ("revision", "variant", "trust_remote_code")  # that belong to the name of a model


def hand_over(config: Any) -> None:
    """Give data those options of the module that they follow and were not given themselves.

    Args:
        config: Of a verb, as parsed; it is changed.

    Raises:
        ConfigurationError: The data are for another kind of model.
    """
    data, module = config.get("data"), config.model.get("init_args") or {}
    kind = _kind(data)
    check_wings(named(config.model.class_path), kind)
    for option, source in kind.follows.items():
        if data.init_args.get(option) is None and module.get(source) is not None:
            data.init_args[option] = module[source]
            if option in kind.names:
                hand_over_source(module, data.init_args)


def hand_over_source(module: Any, data: Any) -> None:
    """Give data what belongs to the name of the module's model, unless they say it; ``data`` is changed."""
    for name in WITH_NAME:
        theirs, ours = _place(name, module), _place(name, data)
        if theirs in module and not data.get(ours, True):
            data[ours] = module[theirs]


def _place(name: str, options: Any) -> str:
    grouped = f"loading.{name}"
    return grouped if grouped in options else name  # classes of users may have it flat


def check_agreement(config: Any) -> None:
    """Refuse training data that say otherwise than the module in what must agree.

    Args:
        config: Of ``fit``, as parsed.

    Raises:
        ConfigurationError: An option differs; the message names both.
    """
    data, module = config.get("data"), config.model.get("init_args") or {}
    kind = _kind(data)
    for option in kind.agrees:
        source = kind.follows[option]
        given, wanted = data.init_args.get(option), module.get(source)
        if None not in (given, wanted) and not same_value(given, wanted):
            raise ConfigurationError(
                f"data.{option} is {given!r}, but model.{source} is {wanted!r}: leave data.{option} out, and it is "
                f"model.{source}"
            )


def _kind(data: Any) -> type[Follower]:
    """The class of data; one that follows nothing where there are none, or they do not say."""
    kind = named(data.class_path) if data else None
    return kind if inspect.isclass(kind) and issubclass(kind, Follower) else Follower
