"""Writes the one file of code that an export carries, from the text of the files that it was trained with.

Blocks, student and the export's own classes are put one after the other, with imports of this project taken away. The
file's name holds a hash of its text, because diffusers keeps all such files of a machine in one folder.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import symtable
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import blocks.base
import sparsight.diffusion.pixel_pipeline
import sparsight.export.remote
import sparsight.surgery.replace
import sparsight.surgery.student
from blocks.base import TokenMixer

ROOT = Path(__file__).parents[2]
OURS = ("blocks", "sparsight")


@dataclass(frozen=True)
class CodeFile:
    """A file of code that travels with an export.

    Args:
        stem: File name without its suffix.
        text: Its content.
        class_name: The class in it that diffusers is to load.
    """

    stem: str
    text: str
    class_name: str

    def write(self, folder: Path) -> Path:
        """Write it to ``folder``."""
        path = folder / f"{self.stem}.py"
        path.write_text(self.text, encoding="utf-8")
        return path


@dataclass(frozen=True)
class Piece:
    """Part of a code file: a source file, or some definitions of one.

    Args:
        path: The source file.
        names: The definitions to take; all of the file if empty.
        strict: Hold it to what a mixer's file may import, rather than to what this project's own files do.
    """

    path: Path
    names: tuple[str, ...] = ()
    strict: bool = False

    @property
    def title(self) -> str:
        """How the piece is called in the file: its path in this project, or its bare name."""
        return str(self.path.relative_to(ROOT)) if self.path.is_relative_to(ROOT) else self.path.name


def student_file(mixers: Collection[type[TokenMixer]], base: str) -> CodeFile:
    """The file of a student.

    Args:
        mixers: Classes of its mixers.
        base: Name of the diffusers class that it derives from.

    Raises:
        ValueError: A mixer's file imports something else than the standard library, torch and ``blocks.base``, two files
            give one name to different things, or a mixer is not defined at the top of a file.
    """
    ordered = sorted(mixers, key=class_path)
    sources = list(dict.fromkeys(source_of(mixer) for mixer in ordered))
    pieces = [
        Piece(_path(blocks.base)),
        *(Piece(source, strict=True) for source in sources),
        Piece(_path(sparsight.surgery.student)),
        Piece(_path(sparsight.surgery.replace), ("make_student", "put")),
        Piece(_path(sparsight.export.remote)),
    ]
    table = "".join(f"    {class_path(mixer)!r}: {mixer.__name__},\n" for mixer in ordered)
    name = f"Student{base}"
    tail = f'''\
MIXERS: dict[str, type[TokenMixer]] = {{
{table}}}


class {name}(ExportedStudent, {base}):
    """A {base} whose self-attentions are the mixers that the entry ``student`` of its configuration names."""

    __module__ = Path(__file__).stem

    def __init__(self, *args, student, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_to_config(student=student)
        place_students(self, student, MIXERS)

    __init__.__signature__ = signature_with_student({base}.__init__)
'''
    return _assemble("modeling", pieces, tail, name, [f"from diffusers import {base}"])


def pipeline_file() -> CodeFile:
    """The file of the pixel-space pipeline."""
    pieces = [
        Piece(_path(sparsight.diffusion.pixel_pipeline)),
        Piece(_path(sparsight.export.remote), ("SavedWithCode", "ExportedPipeline", "settle")),
    ]
    tail = '''\
class PixelDiTPipeline(ExportedPipeline, PixelDiTPipeline):
    """The pipeline above, which takes this file along when it is saved."""

    __module__ = Path(__file__).stem
'''
    return _assemble("pipeline", pieces, tail, "PixelDiTPipeline", [])


def load_class(code: CodeFile, folder: Path) -> type:
    """Write the file to ``folder``, run it, and answer with its class."""
    path = code.write(folder)
    spec = importlib.util.spec_from_file_location(code.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[code.stem] = module
    spec.loader.exec_module(module)
    return getattr(module, code.class_name)


def class_path(mixer: type[TokenMixer]) -> str:
    """How records name a mixer's class."""
    return f"{mixer.__module__}.{mixer.__qualname__}"


def source_of(mixer: type[TokenMixer]) -> Path:
    """The file that defines a mixer.

    Raises:
        ValueError: There is none, or the class is not at its top level.
    """
    try:
        path = Path(inspect.getsourcefile(mixer) or "")
    except TypeError:
        path = Path()
    if not path.is_file() or "." in mixer.__qualname__:
        raise ValueError(
            f"{class_path(mixer)} cannot travel in an export: define it at the top level of a file of its own, not in a "
            "function, class or notebook"
        )
    return path


def _assemble(kind: str, pieces: Sequence[Piece], tail: str, class_name: str, imports: Iterable[str]) -> CodeFile:
    statements, owners, parts = set(imports), dict[str, tuple[str, str]](), []
    for piece in pieces:
        body, piece_imports, names = _take(piece)
        for name, meaning in names.items():
            owner, known = owners.setdefault(name, (piece.title, meaning))
            if known != meaning:
                raise ValueError(
                    f"{owner} and {piece.title} both define {name!r}, and an export puts them in one file: rename it in "
                    "one of them"
                )
        statements |= piece_imports
        parts.append(f"# ---- {piece.title}\n\n{body.strip()}\n")
    header = (
        f'"""{class_name}, with all that it needs besides torch and diffusers. Written by Sparsight from:\n\n'
        + "".join(f"- {piece.title}\n" for piece in pieces)
        + '"""\n\nfrom __future__ import annotations\n\n'
        + "\n".join(sorted(statements, key=lambda line: (line.split()[1].split(".")[0], line)))
        + '\n\n_EARLIER = dict(globals()) if "settle" in globals() else {}\n'
    )
    text = "\n\n".join([header, *parts, f"{tail}\n\nsettle(_EARLIER, globals())\n"])
    missing = owners.keys() - set(_globals(text))
    assert not missing, f"lost on the way: {missing}"
    return CodeFile(f"{kind}_{hashlib.sha256(text.encode()).hexdigest()[:12]}", text, class_name)


def _take(piece: Piece) -> tuple[str, set[str], dict[str, str]]:
    """Text of a piece without its imports, the imports to keep, and what each of its names means."""
    text = piece.path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    _refuse_imports(piece, tree)
    lines = text.splitlines()
    if piece.names:
        wanted = [node for node in tree.body if getattr(node, "name", None) in piece.names]
        assert len(wanted) == len(piece.names), f"{piece.title} lacks one of {piece.names}"
        body = "\n\n\n".join("\n".join(lines[_first_line(node) - 1 : node.end_lineno]) for node in wanted)
    else:
        dropped = {
            number
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        body = "\n".join(line for number, line in enumerate(lines, 1) if number not in dropped)
    used = {node.id for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)} | _annotated(body)
    imports, meanings = set(), {name: piece.title for name in _globals(body)}
    for node in tree.body:
        for statement, name, meaning in _bindings(node):
            if not piece.names or name in used:
                imports.add(statement)
                meanings[name] = meaning
    return body, imports, meanings


def _bindings(node: ast.stmt) -> Iterable[tuple[str, str, str]]:
    """(statement, name, meaning) of everything that an import of others' code binds."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            meaning = alias.name if alias.asname else alias.name.split(".")[0]
            yield f"import {ast.unparse(alias)}", alias.asname or meaning, f"module {meaning}"
    elif isinstance(node, ast.ImportFrom) and node.module != "__future__" and _package(node) not in OURS:
        for alias in node.names:
            statement = f"from {node.module} import {ast.unparse(alias)}"
            yield statement, alias.asname or alias.name, f"{node.module}.{alias.name}"


def _refuse_imports(piece: Piece, tree: ast.Module) -> None:
    """Raise a ValueError that names an import which cannot travel."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
        else:
            continue
        base = isinstance(node, ast.ImportFrom) and node in tree.body and not any(a.asname for a in node.names)
        for name in names:
            package = name.split(".")[0]
            if package in sys.stdlib_module_names or package == "torch":
                continue
            if base and (name == "blocks.base" or (not piece.strict and package in (*OURS, "diffusers"))):
                continue
            raise ValueError(
                f"{piece.title} imports {name} (line {node.lineno}), so its mixers cannot travel in an export: the file "
                "may import the standard library, torch and, at its top and without 'as', names from blocks.base; put "
                "whatever else it needs into it"
            )


def _globals(text: str) -> list[str]:
    """Names that a file's text binds at its top level, other than by imports."""
    symbols = symtable.symtable(text, "export", "exec").get_symbols()
    return [s.get_name() for s in symbols if (s.is_assigned() or s.is_namespace()) and not s.is_imported()]


def _annotated(text: str) -> set[str]:
    """Names in annotations that are written as strings."""
    strings = (node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
    return {word for value in strings if isinstance(value, str) and value.isidentifier() for word in [value]}


def _first_line(node: ast.stmt) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _package(node: ast.ImportFrom) -> str:
    return (node.module or "").split(".")[0]


def _path(module: ModuleType) -> Path:
    assert module.__file__ is not None
    return Path(module.__file__)
