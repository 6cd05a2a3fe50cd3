"""Classes as their source tells them, without importing it: bases, what is abstract, constants, constructors."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """A file of Python.

    Attributes:
        name: Dotted.
        tree: Its content.
        is_package: Whether it is an ``__init__.py``.
    """

    name: str
    tree: ast.Module
    is_package: bool

    @cached_property
    def names(self) -> dict[str, str]:
        """Full names of what it imports outside of functions, by the names that it uses."""
        found: dict[str, str] = {}
        package = self.name if self.is_package else self.name.rpartition(".")[0]
        for node in _statements(self.tree.body):
            if isinstance(node, ast.Import):
                found |= {each.asname or each.name.partition(".")[0]: _bound(each) for each in node.names}
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                origin = ".".join([*above, *filter(None, [node.module])])
                found |= {each.asname or each.name: f"{origin}.{each.name}" for each in node.names}
        return found

    @cached_property
    def exported(self) -> set[str] | None:
        """What ``__all__`` names; none where there is no such list."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                return set(ast.literal_eval(node.value))
        return None


def read_modules(files: Iterable[Path], home: Path) -> Iterator[tuple[str, Module]]:
    """Files below ``home`` by the names under which they are imported; those that are no Python are passed over."""
    for file in sorted(files):
        parts = list(file.relative_to(home).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        try:
            text = file.read_bytes()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a user's strings, which are not ours to judge
                tree = ast.parse(text)
        except (OSError, SyntaxError, ValueError, RecursionError):
            continue
        yield name, Module(name, tree, is_package)


class Sources:
    """Classes of several modules, and what they inherit from each other.

    Args:
        modules: By dotted name.
    """

    def __init__(self, modules: Mapping[str, Module]) -> None:
        self.modules = modules
        self.classes: dict[str, ast.ClassDef] = {}
        self._orders: dict[str, list[str]] = {}  # of ancestors, which every group of plug-ins asks for again
        for name, module in modules.items():
            self.classes |= {
                f"{name}.{node.name}": node for node in _statements(module.tree.body) if isinstance(node, ast.ClassDef)
            }

    def module_of(self, path: str) -> Module:
        """The module of a class."""
        return self.modules[path.rpartition(".")[0]]

    def ancestors(self, path: str) -> list[str]:
        """Full names of a class and of what it derives from, in the order in which they are looked up."""
        if path not in self._orders:
            self._orders[path] = self._lookup_order(path, frozenset())
        return self._orders[path]

    def ours(self, path: str) -> list[str]:
        """Those of the ancestors whose source is known."""
        return [each for each in self.ancestors(path) if each in self.classes]

    def is_abstract(self, path: str) -> bool:
        """Whether a method that must be written is still missing."""
        decided: dict[str, bool] = {}
        for each in self.ours(path):
            for name, node in _members(self.classes[each]):
                decided.setdefault(name, isinstance(node, Function) and _is_marked(node, "abstractmethod"))
        return any(decided.values())

    def is_exported(self, path: str) -> bool:
        """Whether the outermost package of a class that has ``__all__`` names it; true where none has."""
        parts = path.split(".")
        for length in range(1, len(parts)):
            module = self.modules.get(".".join(parts[:length]))
            names = module.exported if module is not None and module.is_package else None
            if module is not None and names is not None and module.name != "sparsight":
                return parts[-1] in names
        return True

    def constant(self, path: str, name: str) -> str | None:
        """The text that a class, or the nearest of its ancestors, has under a name; none where it is computed."""
        node = self._member(path, name)
        value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
        return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None

    def table(self, path: str, name: str) -> dict[str, str]:
        """Texts by name, as a class or the nearest of its ancestors has them; none where they are computed."""
        node = self._member(path, name)
        value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
        try:
            found = ast.literal_eval(value) if isinstance(value, ast.Dict) else {}
        except ValueError:
            return {}
        return {str(key): str(text) for key, text in found.items()}

    def method(self, path: str, name: str) -> Function | None:
        """A method of a class, or of the nearest of its ancestors."""
        node = self._member(path, name)
        return node if isinstance(node, Function) else None

    def options(self, path: str) -> list[str]:
        """Arguments of the constructor; those with a default as ``name=default``."""
        for each in self.ours(path):
            node = self.classes[each]
            if _is_marked(node, "dataclass"):
                kinds = [self.classes[one] for one in reversed(self.ours(each))]
                members = [member for kind in kinds if _is_marked(kind, "dataclass") for member in _members(kind)]
                return [_option(n, v.value) for n, v in members if isinstance(v, ast.AnnAssign)]
            method = dict(_members(node)).get("__init__")
            if isinstance(method, Function):
                return list(_arguments(method.args))
        return []

    def tells_all_options(self, path: str) -> bool:
        """Whether a class's own source says all that its constructor takes."""
        node = self.classes[path]
        if _is_marked(node, "dataclass"):
            return all(each in self.classes and self.is_dataclass(each) for each in self.ancestors(path))
        method = dict(_members(node)).get("__init__")
        return isinstance(method, Function) and method.args.kwarg is None

    def is_dataclass(self, path: str) -> bool:
        """Whether it is made by that decorator."""
        return _is_marked(self.classes[path], "dataclass")

    def annotated(self, path: str, option: str) -> str | None:
        """The full name of the one class that an option of a class is, or is a sequence of; it may be null, too."""
        found = self._annotation(path, option)
        kinds = [each for each in _alternatives(found) if ast.unparse(each) != "None"] if found is not None else []
        if len(kinds) != 1:
            return None
        kind = kinds[0]
        if isinstance(kind, ast.Subscript) and ast.unparse(kind.value).rpartition(".")[2] in ("Sequence", "list"):
            kind = kind.slice
        return self._resolved(self.module_of(path), kind) if isinstance(kind, (ast.Name, ast.Attribute)) else None

    def _annotation(self, path: str, option: str) -> ast.expr | None:
        if self.is_dataclass(path):
            field = self._member(path, option)
            return field.annotation if isinstance(field, ast.AnnAssign) else None
        method = self.method(path, "__init__")
        listed = (*method.args.args, *method.args.kwonlyargs) if method is not None else ()
        return next((each.annotation for each in listed if each.arg == option), None)

    def _member(self, path: str, name: str) -> ast.stmt | None:
        for each in self.ours(path):
            members = dict(_members(self.classes[each]))
            if name in members:
                return members[name]
        return None

    def _lookup_order(self, path: str, seen: frozenset[str]) -> list[str]:
        if path not in self.classes or path in seen:
            return [path]
        names = [self._resolved(self.module_of(path), base) for base in self.classes[path].bases]
        found = [each for name in names for each in self._lookup_order(name, seen | {path})]
        # a base that several share comes after all of them
        return [path, *(each for at, each in enumerate(found) if each not in found[at + 1 :])]

    def _resolved(self, module: Module, base: ast.expr) -> str:
        written = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
        return self._followed(f"{module.name}.{written}", set())

    def _followed(self, name: str, seen: set[str]) -> str:
        """The full name of what ``module.name`` is, through the modules that import it from each other."""
        if name in self.classes or name in seen:
            return name
        parts = name.split(".")
        for length in range(len(parts) - 1, 0, -1):
            module = self.modules.get(".".join(parts[:length]))
            if module is not None:
                first, rest = parts[length], parts[length + 1 :]
                if first not in module.names:
                    return name
                return self._followed(".".join([module.names[first], *rest]), seen | {name})
        return name


def _bound(alias: ast.alias) -> str:
    return alias.name if alias.asname else alias.name.partition(".")[0]


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements at the top of a module, also those that stand under a condition."""
    for node in body:
        if isinstance(node, (ast.If, ast.Try)):
            handlers = node.handlers if isinstance(node, ast.Try) else []
            yield from _statements([*node.body, *(each for one in handlers for each in one.body), *node.orelse])
        else:
            yield node


def _alternatives(annotation: ast.expr) -> Iterator[ast.expr]:
    if isinstance(annotation, ast.BinOp):
        yield from (*_alternatives(annotation.left), *_alternatives(annotation.right))
    else:
        yield annotation


def _members(node: ast.ClassDef) -> Iterator[tuple[str, ast.stmt]]:
    for each in node.body:
        if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield each.name, each
        elif isinstance(each, ast.Assign):
            yield from ((target.id, each) for target in each.targets if isinstance(target, ast.Name))
        elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            yield each.target.id, each


def _is_marked(node: ast.ClassDef | Function, decorator: str) -> bool:
    written = (ast.unparse(each.func if isinstance(each, ast.Call) else each) for each in node.decorator_list)
    return any(each.rpartition(".")[2] == decorator for each in written)


def _arguments(arguments: ast.arguments) -> Iterator[str]:
    listed = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(listed) - len(arguments.defaults)) + [*arguments.defaults]
    for argument, default in [*zip(listed, defaults, strict=True)][1:]:  # without self
        yield _option(argument.arg, default)
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _option(argument.arg, default)


def _option(name: str, default: ast.expr | None) -> str:
    return name if default is None else f"{name}={ast.unparse(default)}"
