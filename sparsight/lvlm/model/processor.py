"""Processors of image-text models, from a folder or the hub."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sparsight.common.errors import first_line
from sparsight.common.plain import setting
from sparsight.lvlm.model.load import check_folder, not_reached


@runtime_checkable
class Based(Protocol):
    """A module with a model whose processor can be loaded."""

    base: str
    """Folder or hub id of the model."""
    source: dict[str, Any]
    """Options to load anything of it with."""


def load_processor(
    source: str,
    *,
    chat_template: str | None = None,
    options: Mapping[str, Any] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The processor (tokenizer, image processor, chat template) that belongs to a model.

    Args:
        source: Folder or hub id.
        chat_template: Jinja template, or a file of one, in place of the processor's own.
        options: Options of processor and image processor in place of the saved ones.
        revision: Git revision on the hub.
        trust_remote_code: Run code that comes with the model.

    Raises:
        FileNotFoundError: ``source`` is no folder, and not reachable on the hub, or there is no such file of a chat
            template.
        ValueError: It holds no processor, or an option is unknown or has a value that it cannot have.
    """
    from transformers import AutoProcessor

    check_folder(source)
    options = dict(options or {})
    taken = sorted(options.keys() & {"revision", "trust_remote_code", "chat_template"})
    if taken:
        raise ValueError(f"chat.processor_options holds {', '.join(taken)}, for which data have an option of their own")
    hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        processor = AutoProcessor.from_pretrained(source, **hub, **options)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # of any kind, depending on which value of its files is wrong
        if isinstance(error, OSError) and not Path(source).exists():
            raise not_reached(source, error) from error
        remedy = "save the base model's there with AutoProcessor.save_pretrained"
        if options:
            remedy += f", or correct chat.processor_options {options}"
        raise ValueError(f"transformers loads no processor from {source}; {remedy}: {first_line(error)}") from error
    if options:
        _check_options(processor, options)
        _take_from_tokenizer(processor, options)
    if chat_template is not None:
        processor.chat_template = _read_template(chat_template)
    return processor


def check_template(given: str | None) -> None:
    """See that a chat template is one, or a file that is there.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if given is not None and "{" not in given and not Path(given).is_file():
        raise FileNotFoundError(f"chat.template is {given!r}, which is neither a Jinja template nor a file of one")


def _read_template(given: str) -> str:
    if "{" in given:
        return given
    check_template(given)
    return Path(given).read_text(encoding="utf-8")


@runtime_checkable
class TellsOptions(Protocol):
    """An image processor that declares its options."""

    valid_kwargs: Any
    """A class whose annotations they are."""


def _check_options(processor: Any, options: Iterable[str]) -> None:
    """Refuse what transformers would ignore.

    Raises:
        ValueError: An option is known to neither processor nor image processor; the message lists what is.
    """
    kind: Any = type(processor)
    images = setting(processor, "image_processor")
    if not isinstance(images, TellsOptions):
        return  # code of a hub model that does not tell
    known = set(inspect.signature(kind.__init__).parameters) | set(images.valid_kwargs.__annotations__)
    known -= {"self", "args", "kwargs", "chat_template", *kind.get_attributes()}
    for name in sorted(set(options) - known):
        close = get_close_matches(name, known)
        meant = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"chat.processor_options.{name} is no option of {kind.__name__} or {type(images).__name__}; {meant}There "
            f"are: {', '.join(sorted(known))}"
        )


def _take_from_tokenizer(processor: Any, options: Iterable[str]) -> None:
    """Undo that transformers gives options to the tokenizer, too: its copy would beat the image processor's for good.

    Where the processor's class has a value of its own (InternVL's ``crop_to_patches``), nothing but that copy beats it.
    """
    kind: Any = type(processor)
    own = setting(kind, "images_kwargs")
    if own is None:  # transformers before 5.23
        own = setting(setting(kind, "valid_processor_kwargs"), "_defaults", {}).get("images_kwargs", {})
    for name in set(options) - set(own):
        processor.tokenizer.init_kwargs.pop(name, None)
