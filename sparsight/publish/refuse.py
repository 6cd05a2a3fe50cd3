"""Run as a script: runs another one where some packages cannot be imported, though they may be installed.

    python refuse.py REFUSED SCRIPT ARGUMENT...

REFUSED are names of packages with commas between.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from typing import Any


class Refuse(MetaPathFinder):
    """Makes imports of the given packages fail."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Raise an ImportError for the packages, and leave others to the next finder."""
        if fullname.split(".")[0] in self.packages:
            raise ImportError(f"the export needs {fullname}, which is not part of it")


if __name__ == "__main__":
    sys.meta_path.insert(0, Refuse(sys.argv[1].split(",")))
    del sys.argv[:2]
    runpy.run_path(sys.argv[0], run_name="__main__")
