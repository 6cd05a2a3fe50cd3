"""Image-text models, from a folder or the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from sparsight.common.disk.folders import put_back
from sparsight.common.errors import ConfigurationError, first_line
from sparsight.common.finite import check_finite
from sparsight.common.near import beside, suggestion
from sparsight.common.quantised.loading import DTYPES, Dtype, FrozenLoading
from sparsight.common.text import read_options

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class ModelLoading(FrozenLoading):
    """How an image-text model is read.

    Args:
        dtype: Precision of its weights; of those alone that are never trained, where some are.
        attn_implementation: transformers' name of the attention kernel; its own choice if not given.
        quantization: ``int8`` holds linear layers of the decoder that are never trained in 8 bits (torchao); exports
            have the base's own weights.
        revision: Git revision on the hub.
        trust_remote_code: Run code that comes with the model.
    """

    attn_implementation: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Those of ``load_lvlm``, which reads weights as they are stored."""
        return {"dtype": self.dtype, "attn_implementation": self.attn_implementation, **self.source}


def _damaged(folder: str) -> list[str]:
    """Files of weights in a folder that cannot be opened."""
    damaged = []
    for path in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError:
            damaged.append(str(path))
    return damaged


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
        FileNotFoundError: ``source`` is no folder, and the hub does not know it or is not reached.
        ValueError: It is no image-text model, or weights are missing, left over or of other shapes; transformers would
            only log that.
        NonFiniteError: A weight is not finite.
    """
    from transformers import AutoModelForImageTextToText

    check_folder(source)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            source, dtype=DTYPES[dtype], output_loading_info=True, **options
        )
    except (ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except SafetensorError as error:
        told = ", ".join(_damaged(source)) or f"a file of weights of {source}"
        raise ConfigurationError(f"{told} is cut off or damaged ({first_line(error)}): copy it again") from error
    except Exception as error:  # of any kind, depending on which value of its files is wrong
        if isinstance(error, OSError) and not Path(source).exists():
            raise not_reached(source, error) from error
        raise ConfigurationError(
            f"transformers loads no image-text model from {source}, see its config.json: {first_line(error)}"
        ) from error
    problems = {kind.replace("_", " "): sorted(map(str, keys)) for kind, keys in report.items() if keys}
    if problems:
        listed = "; ".join(f"{kind}: {', '.join(keys[:5])} ({len(keys)} in all)" for kind, keys in problems.items())
        raise ValueError(
            f"the weights of {source} do not fit its configuration: {listed}. transformers fills such gaps with random "
            "numbers; was a layer removed without changing config.json, or saved by another version?"
        )
    check_finite(dict(model.named_parameters()), f"the weights of {source}")
    return model.eval()


def not_reached(source: str, error: OSError) -> FileNotFoundError:
    """The refusal of a name that is no folder, and that the hub did not give."""
    return FileNotFoundError(
        f"{source!r} is neither a model folder nor reachable on the hub ({first_line(error)})"
        f"{suggestion(beside(Path(source).expanduser()))}"
    )


def check_folder(source: str) -> None:
    """Tell a missing folder from a hub id.

    Raises:
        FileNotFoundError: ``source`` can only be a folder, and there is none.
        ValueError: A configuration in it is no JSON, or no object.
    """
    path = Path(source).expanduser()
    put_back(path)
    read_options(path)
    if not path.exists() and (source.count("/") != 1 or source.startswith((".", "/", "~", "runs/"))):
        near = suggestion(beside(path))
        raise FileNotFoundError(
            f"there is no model folder {source}; give a folder or a hub id such as owner/name{near}"
        )
