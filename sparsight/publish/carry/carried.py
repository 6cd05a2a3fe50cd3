"""Runs the source files that an export carries, each as a module of its own.

This file's text begins the code of every export, so it imports the standard library alone.
"""

from __future__ import annotations

import ast
import hashlib
import linecache
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


class CarriedFiles(MetaPathFinder, Loader):
    """Finds and runs carried files, as modules of a package that has a hash of the export's code in its name.

    So exports of several versions live side by side, and beside an installation of what they were made from.

    Args:
        sources: Text of every file by its path, whose parts are those of the module's name.
        code: The file of code that they came in.

    Attributes:
        classes: What the file of code has made of them, by name: it is run at every load, but its classes stay.
    """

    def __init__(self, sources: Mapping[str, str], code: Path) -> None:
        self.code = (code.name, code.read_bytes())  # the file may be gone when a model is saved
        self.stem = code.stem
        self.package = f"sparsight_export_{hashlib.sha256(self.code[1]).hexdigest()[:12]}"
        self.texts = {f"{self.package}/{path}": text for path, text in sources.items()}
        self.paths = {_module_name(path): path for path in self.texts}
        self.tops = {path.split("/")[0].removesuffix(".py") for path in sources}
        self.classes: dict[str, type] = {}

    def get(self, name: str) -> Any:
        """What a carried module calls by the last part of a dotted name."""
        module, _, attribute = name.rpartition(".")
        return vars(import_module(f"{self.package}.{module}"))[attribute]

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        """A carried file, or a package that only holds such."""
        holds_others = any(name.startswith(f"{fullname}.") for name in self.paths)
        file = self.paths.get(fullname)
        if file is None and not holds_others:
            return None
        spec = ModuleSpec(fullname, self, origin=file, is_package=holds_others or str(file).endswith("/__init__.py"))
        spec.has_location = file is not None
        return spec

    def exec_module(self, module: ModuleType) -> None:
        """Run a file, with imports of carried modules led to these."""
        text = self.get_source(module.__name__)
        file = self.paths.get(module.__name__)
        if file is not None:
            linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
            tree = ast.fix_missing_locations(_LedToCarried(self).visit(ast.parse(text, file)))
            exec(compile(tree, file, "exec", dont_inherit=True), vars(module))

    def get_source(self, fullname: str) -> str:
        """Its text, which tracebacks, ``inspect`` and compilers ask for."""
        return self.texts.get(self.paths.get(fullname, ""), "")


class _LedToCarried(ast.NodeTransformer):
    """Imports by absolute names, of packages that are carried, get the carried package's name in front."""

    def __init__(self, files: CarriedFiles) -> None:
        self.files = files

    def _is_carried(self, name: str) -> bool:
        return name.split(".")[0] in self.files.tops

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if node.level == 0 and node.module and self._is_carried(node.module):
            node.module = f"{self.files.package}.{node.module}"
        return node

    def visit_Import(self, node: ast.Import) -> list[ast.stmt]:
        led: list[ast.stmt] = []
        for alias in node.names:
            if not self._is_carried(alias.name):
                led.append(ast.Import([alias]))
                continue
            led.append(ast.Import([ast.alias(f"{self.files.package}.{alias.name}", alias.asname)]))
            if alias.asname is None:  # binds the first part of the name
                led.append(ast.ImportFrom(self.files.package, [ast.alias(alias.name.split(".")[0])], 0))
        return [ast.copy_location(statement, node) for statement in led]


def _module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def carry(sources: Mapping[str, str], code: Path) -> CarriedFiles:
    """Make carried files importable, once in a process for each content of the file of code."""
    files = CarriedFiles(sources, code)
    if files.package not in sys.modules:
        sys.meta_path.append(files)
    spec = import_module(files.package).__spec__
    return spec.loader if spec is not None else files  # type: ignore[return-value]
