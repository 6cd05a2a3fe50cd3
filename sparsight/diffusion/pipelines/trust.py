"""Which classes the index of a pipeline may name, so that loading it imports nothing but diffusers and transformers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

from sparsight.common.names import named

LIBRARIES = ("diffusers", "transformers")


def check_index(index: Mapping[str, Any], source: str, *, own: Collection[str | None] = ()) -> None:
    """Refuse an index that needs other code; diffusers would import it by its name from anywhere on the import path.

    Args:
        index: Content of ``model_index.json``.
        source: Where it is from, for the message.
        own: Entries whose code is this project's, whatever they name.

    Raises:
        ValueError: A part, or the pipeline, is of another library, or a part is a pipeline with an index of its own.
    """
    for part, address in index.items():
        if part in own or not isinstance(address, list) or (part.startswith("_") and part != "_class_name"):
            continue
        library, name = address if len(address) == 2 else (None, None)
        if address == [None, None] or (part != "_class_name" and _is_known(library, name)):
            continue
        raise ValueError(
            f"{source} names {'.'.join(map(str, address))} as its {part.lstrip('_')}, which is neither diffusers' nor "
            "transformers' own, so its code was not run: if you know that code, set trust_remote_code to true"
        )


def _is_known(library: Any, name: Any) -> bool:
    if not (isinstance(library, str) and isinstance(name, str)) or name.endswith("Pipeline"):
        return False
    kind = named(f"diffusers.pipelines.{library}") if library.isidentifier() else None
    return library in LIBRARIES or isinstance(kind, ModuleType)
