"""Starts lmms-eval; run as a file by the Python of its own environment, where this project need not be.

With transformers 5, two things of lmms-eval 0.7.3's ``huggingface`` backend stop every image-text model: it
gives ``audios``, which is called ``audio`` now, and it takes models without a head, as it finds none of theirs.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from typing import Any

from transformers import AutoModelForImageTextToText
from transformers.processing_utils import ProcessorMixin

_own = ProcessorMixin.__call__


def _renamed(self: Any, *arguments: Any, audios: Any = None, **options: Any) -> Any:
    return _own(self, *arguments, **options, **({"audio": audios} if audios else {}))


if __name__ == "__main__":
    sys.path.pop(0)  # this folder
    sys.argv[0] = "lmms-eval"
    if "huggingface" in sys.argv:
        ProcessorMixin.__call__ = _renamed
        backend: Any = importlib.import_module("lmms_eval.models.chat.huggingface")
        backend.AutoModel = AutoModelForImageTextToText
    runpy.run_module("lmms_eval", run_name="__main__")
