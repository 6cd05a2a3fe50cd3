"""Image-text models and their processors, from a folder or the hub."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Dtype = Literal["float32", "bfloat16", "float16"]


def load_lvlm(
    source: str,
    *,
    dtype: Dtype = "float32",
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a model of ``AutoModelForImageTextToText`` in eval mode.

    Args:
        source: Folder or hub id.
        dtype: Precision of all weights.
        attn_implementation: transformers' name of the attention kernel, e.g. ``sdpa``; its own choice if not given.
        revision: Git revision on the hub.
        trust_remote_code: Run code that comes with the model.

    Raises:
        FileNotFoundError: ``source`` looks like a folder and is none.
        ValueError: It is no image-text model, or weights are missing, left over or of other shapes; transformers would
            only log that.
    """
    check_folder(source)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            source, dtype=DTYPES[dtype], output_loading_info=True, **options
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"transformers loads no image-text model from {source}: {_first_line(error)}") from error
    problems = {kind.replace("_", " "): sorted(map(str, keys)) for kind, keys in report.items() if keys}
    if problems:
        listed = "; ".join(f"{kind}: {', '.join(keys[:5])} ({len(keys)} in all)" for kind, keys in problems.items())
        raise ValueError(
            f"the weights of {source} do not fit its configuration: {listed}. transformers fills such gaps with random "
            "numbers; was a layer removed without changing config.json, or saved by another version?"
        )
    return model.eval()


def load_processor(
    source: str,
    *,
    options: Mapping[str, Any] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The processor (tokenizer, image processor, chat template) that belongs to a model.

    Args:
        source: Folder or hub id.
        options: Options of processor and image processor in place of the saved ones.
        revision: Git revision on the hub.
        trust_remote_code: Run code that comes with the model.

    Raises:
        FileNotFoundError: ``source`` looks like a folder and is none.
        ValueError: It holds no processor, or an option is unknown or has a value that it cannot have.
    """
    check_folder(source)
    options = dict(options or {})
    taken = sorted(options.keys() & {"revision", "trust_remote_code", "chat_template"})
    if taken:
        raise ValueError(f"processor_options holds {', '.join(taken)}, which is an option of the datamodule itself")
    hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        processor = AutoProcessor.from_pretrained(source, **hub, **options)
    except (OSError, ValueError, TypeError) as error:
        remedy = "save the base model's there with AutoProcessor.save_pretrained"
        if options:
            remedy += f", or correct processor_options {options}"
        raise ValueError(f"transformers loads no processor from {source}; {remedy}: {_first_line(error)}") from error
    if options:
        _check_options(processor, options)
        _take_from_tokenizer(processor, options)
    return processor


def _check_options(processor: Any, options: Iterable[str]) -> None:
    """Refuse what transformers would ignore.

    Raises:
        ValueError: An option is known to neither processor nor image processor; the message lists what is.
    """
    kind: Any = type(processor)
    images: Any = getattr(processor, "image_processor", None)
    if not hasattr(images, "valid_kwargs"):
        return  # code of a hub model that does not tell
    known = set(inspect.signature(kind.__init__).parameters) | set(images.valid_kwargs.__annotations__)
    known -= {"self", "args", "kwargs", "chat_template", *kind.get_attributes()}
    for name in sorted(set(options) - known):
        close = get_close_matches(name, known)
        meant = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"processor_options.{name} is no option of {kind.__name__} or {type(images).__name__}; {meant}There are: "
            f"{', '.join(sorted(known))}"
        )


def _take_from_tokenizer(processor: Any, options: Iterable[str]) -> None:
    """Undo that transformers gives options to the tokenizer, too: its copy would beat the image processor's for good.

    Where the processor's class has a value of its own (InternVL's ``crop_to_patches``), nothing but that copy beats it.
    """
    for name in set(options) - set(getattr(processor, "images_kwargs", {})):
        processor.tokenizer.init_kwargs.pop(name, None)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def check_folder(source: str) -> None:
    """Tell a missing folder from a hub id.

    Raises:
        FileNotFoundError: ``source`` can only be a folder, and there is none.
    """
    path = Path(source).expanduser()
    if not path.exists() and (source.count("/") != 1 or source.startswith((".", "/", "~", "runs/"))):
        raise FileNotFoundError(f"there is no model folder {source}; give a folder or a hub id such as owner/name")
