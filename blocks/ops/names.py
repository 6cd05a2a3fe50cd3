"""Names for operations registered with ``torch.library``.

Registering a name again leaves the first operation in place without a word, so a name has to tell versions apart.
"""

from __future__ import annotations

import hashlib
import inspect
import sys


def op_name(module: str, name: str, *others: str) -> str:
    """A qualified name for an operation, which no other file and no other version of the files gives.

    Exports carry files as modules of other names, so the operations of each export are its own.

    Args:
        module: ``__name__`` of the file that registers the operation.
        name: The operation's own name.
        others: ``__name__`` of other files that the operation runs.

    Raises:
        OSError: A module has no source text.
    """
    text = "\n".join(inspect.getsource(sys.modules[each]) for each in (module, *others))
    return f"sparsight_{hashlib.sha256(f'{module} {text}'.encode()).hexdigest()[:12]}::{name}"
