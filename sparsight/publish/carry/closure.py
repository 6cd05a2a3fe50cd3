"""The source files that an export must carry: those of its mixers, and what these import of ``blocks`` or beside them.

A file may import the standard library, torch, ``blocks`` and plain files beside it, and anything else only where that
may fail: in a function, under ``except ImportError`` or ``if TYPE_CHECKING``.
"""

from __future__ import annotations

import ast
import site
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from sparsight.common.errors import ConfigurationError

ROOT = Path(__file__).absolute().parents[3]
NEVER = ("sparsight", "callbacks", "datamodules", "lightning_modules")
"""Packages of this project that mixers cannot take along."""
REGISTERS = {"custom_op": "::", "triton_op": "::", "define": "::", "Library": ""}
"""Functions of ``torch.library`` that take the name of an operation or a namespace, and what is in such a name."""
MAY_FAIL = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}


@dataclass(frozen=True)
class Import:
    """An import of one name.

    Args:
        module: Absolute name of the module.
        name: What is taken from it; the module itself if none.
        line: Where.
        may_fail: The file can be run where the module is not.
    """

    module: str
    name: str | None
    line: int
    may_fail: bool


@dataclass(frozen=True)
class SourceFile:
    """A module's file.

    Args:
        module: The module's name.
        path: The file.
    """

    module: str
    path: Path

    @property
    def home(self) -> Path:
        """The folder that the module's name starts in."""
        return self.path.parents[self.module.count(".") + (self.path.name == "__init__.py")]

    @property
    def title(self) -> str:
        """How it is called in an export: its path from there."""
        parts = self.module.split(".") + (["__init__"] if self.path.name == "__init__.py" else [])
        return "/".join(parts) + ".py"

    @property
    def is_ours(self) -> bool:
        """Whether it belongs to this project."""
        return self.home == ROOT and self.module.split(".")[0] in (*NEVER, "blocks")

    def read(self) -> str:
        """Its text, decoded as Python does."""
        with tokenize.open(self.path) as file:
            return file.read()


def closure(files: Iterable[SourceFile]) -> dict[str, str]:
    """Texts of files and of what they need, by their titles, in order of those.

    Raises:
        ValueError: A file imports what cannot travel or registers operations under fixed names, or two modules have
            one name.
    """
    known: dict[str, SourceFile] = {}
    texts: dict[str, str] = {}
    waiting = list(files)
    while waiting:
        file = waiting.pop()
        earlier = known.setdefault(file.module, file)
        if earlier != file:
            raise ConfigurationError(
                f"{earlier.path} and {file.path} are both the module {file.module}: rename one of them"
            )
        if file.title in texts:
            continue
        texts[file.title] = file.read()
        tree = ast.parse(texts[file.title], str(file.path))
        _refuse_fixed_names(file, tree)
        waiting += needed_by(file, tree)
    return dict(sorted(texts.items()))


def needed_by(file: SourceFile, tree: ast.Module) -> Iterator[SourceFile]:
    """Files that a file imports and that must travel with it.

    Raises:
        ValueError: It imports something else, which may not be there where the export is loaded.
    """
    allowed = sys.stdlib_module_names | {"torch"} | ({"diffusers", "transformers"} if file.is_ours else set())
    for found in _imports(file, tree.body, may_fail=False):
        top = found.module.split(".")[0]
        if top in allowed:
            continue
        target = None if top in NEVER and not file.is_ours else _locate(file, found)
        if target is not None:
            yield target
        elif top in NEVER or not found.may_fail:
            raise ConfigurationError(
                f"{file.title} imports {found.module} (line {found.line}), so its mixers cannot travel in an export: "
                "the file may import the standard library, torch, blocks and plain files beside it; import others "
                "in the functions that use them, or where 'except ImportError' does without them"
            )


def _imports(file: SourceFile, body: Iterable[ast.AST], *, may_fail: bool) -> Iterator[Import]:
    """Imports at any depth."""
    for node in body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, None, node.lineno, may_fail)
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(file, node)
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, may_fail)
        elif isinstance(node, ast.Try) and _catches(node):
            yield from _imports(file, node.body, may_fail=True)
            yield from _imports(file, [*node.handlers, *node.orelse, *node.finalbody], may_fail=may_fail)
        elif isinstance(node, ast.If) and ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING":
            yield from _imports(file, node.body, may_fail=True)
            yield from _imports(file, node.orelse, may_fail=may_fail)
        else:
            in_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from _imports(file, ast.iter_child_nodes(node), may_fail=may_fail or in_function)


def _catches(node: ast.Try) -> bool:
    """Whether a missing module would be caught."""
    types = [handler.type for handler in node.handlers]
    return None in types or bool(
        {ast.unparse(n) for t in types if t for n in ast.walk(t) if isinstance(n, ast.Name)} & MAY_FAIL
    )


def _absolute(file: SourceFile, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    parts = file.module.split(".") if file.path.name == "__init__.py" else file.module.split(".")[:-1]
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def _locate(file: SourceFile, found: Import) -> SourceFile | None:
    """The file that an import leads to, if it is of ``blocks`` or beside the importing one."""
    top = found.module.split(".")[0]
    home = ROOT if top == "blocks" else file.home
    if top not in ("blocks", file.module.split(".")[0]) and _is_installed(home):
        return None
    module = _at(home, found.module)
    if found.name is None or (module is not None and module.path.name != "__init__.py"):
        return module
    part = _at(home, f"{found.module}.{found.name}")
    return part if part is not None and _is_submodule(found.module, found.name) else module


def _at(home: Path, module: str) -> SourceFile | None:
    path = home.joinpath(*module.split("."))
    files = (path / "__init__.py", path.with_name(f"{path.name}.py"))
    return next((SourceFile(module, file) for file in files if file.is_file()), None)


def _is_submodule(package: str, name: str) -> bool:
    """Whether a package's attribute is its module of that name, rather than something that its own file defines."""
    attribute = vars(sys.modules[package]).get(name) if package in sys.modules else None
    return attribute is None or isinstance(attribute, ModuleType)


def _is_installed(folder: Path) -> bool:
    """Whether a folder holds the packages of an installation, which are not beside each other on purpose."""
    return folder.name in ("site-packages", "dist-packages") or str(folder) in site.getsitepackages()


def _refuse_fixed_names(file: SourceFile, tree: ast.Module) -> None:
    """Refuse operations whose names are not seen to come from ``op_name``, by themselves or by a name bound to one."""
    bound = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and _calls_op_name(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        owner, _, function = ast.unparse(node.func).rpartition(".")
        if function not in REGISTERS or (function == "define" and owner and owner.split(".")[-1] != "library"):
            continue  # define of a Library names operations inside of its namespace
        given = [*node.args[:1], *(word.value for word in node.keywords if word.arg in ("name", "qualname", "ns"))]
        if not given or _calls_op_name(given[0]) or (isinstance(given[0], ast.Name) and given[0].id in bound):
            continue
        fixed = given[0].value if isinstance(given[0], ast.Constant) else None
        if fixed is None or (isinstance(fixed, str) and REGISTERS[function] in fixed):
            raise ConfigurationError(
                f"{file.title} registers {ast.unparse(given[0])} (line {node.lineno}): another version of the file "
                "would get this one's operations; name them with op_name(__name__, ...) of blocks.ops.names"
            )


def _calls_op_name(expression: ast.expr) -> bool:
    calls = (node for node in ast.walk(expression) if isinstance(node, ast.Call))
    return any(ast.unparse(call.func).rpartition(".")[2] == "op_name" for call in calls)
