"""Values of options that lie below an option of a class, such as ``--model.trained.lora null``.

jsonargparse 4 reads such a value as YAML, writes it as Python does, and reads that as YAML once more: ``null`` becomes
the text "None", which is a name or a path to whoever asks for one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from jsonargparse import Namespace, _typehints


def keep_nulls() -> None:
    """From now on parsers take ``null`` for nothing, however deep the option lies, alone and in lists."""
    if not isinstance(_typehints.adapt_class_type, _KeepingNulls):
        _typehints.adapt_class_type = _KeepingNulls(_typehints.adapt_class_type)


class _KeepingNulls:
    """What takes options of a class, also where that was changed before."""

    def __init__(self, adapted: Callable[..., Any]) -> None:
        self.adapted = adapted

    def __call__(self, value: Any, *args: Any, **options: Any) -> Any:
        given = value.get("init_args") if isinstance(value, Namespace) else None
        if isinstance(given, _typehints.NestedArg) and (given.val is None or isinstance(given.val, (list, dict))):
            value["init_args"] = given._replace(val=json.dumps(given.val, ensure_ascii=False))
        return self.adapted(value, *args, **options)
