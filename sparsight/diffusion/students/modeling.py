"""Writes the one file of code that an export carries, from the text of the files that it was trained with.

Blocks, student and the export's own classes are put one after the other, with imports of this project taken away. The
file's name holds a hash of its text, because diffusers keeps all such files of a machine in one folder.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import symtable
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import blocks.base
import sparsight.diffusion.students.adapters
import sparsight.diffusion.students.remote
import sparsight.diffusion.surgery.replace
import sparsight.diffusion.surgery.student
from blocks.base import TokenMixer
from sparsight.diffusion.families.known import FAMILIES

ROOT = Path(__file__).parents[3]
OURS = ("blocks", "sparsight")
Named = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


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
        folder.mkdir(parents=True, exist_ok=True)
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
        ValueError: A mixer's file imports more than the standard library, torch and ``blocks.base``, two files give one
            name to different things, or a mixer is not defined at the top of a file.
    """
    ordered = sorted(mixers, key=class_path)
    sources = list(dict.fromkeys(source_of(mixer) for mixer in ordered))
    pieces = [
        Piece(_path(blocks.base)),
        *(Piece(source, strict=True) for source in sources),
        Piece(_path(sparsight.diffusion.surgery.student)),
        Piece(_path(sparsight.diffusion.surgery.replace), ("make_student", "put")),
        Piece(_path(sparsight.diffusion.students.remote)),
    ]
    family = FAMILIES[base]
    guard = "AdapterGuard, " if family.loads_adapters else ""
    if guard:
        pieces.append(Piece(_path(sparsight.diffusion.students.adapters)))
    table = "".join(f"    {class_path(mixer)!r}: {mixer.__name__},\n" for mixer in ordered)
    name = f"Student{base}"
    tail = f'''\
MIXERS: dict[str, type[TokenMixer]] = {{
{table}}}


class {name}(ExportedStudent, {guard}{base}):
    """{base} with the mixers that ``student`` in its configuration names in place of self-attention."""

    __module__ = Path(__file__).stem
    stacks = frozenset({sorted(family.stacks)})

    def __init__(self, *args, student, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_to_config(student=student)
        place_students(self, student, MIXERS)

    __init__.__signature__ = signature_with_student({base}.__init__)
'''
    own = ("_EARLIER", "MIXERS", name, base)
    return _assemble("modeling", pieces, tail, name, imports=[f"from diffusers import {base}"], own=own)


def pipeline_file(kind: str) -> CodeFile:
    """The file of a pixel-space pipeline, whose class is called ``kind``."""
    from sparsight.diffusion.pipelines import pixel_pipeline

    pieces = [
        Piece(_path(pixel_pipeline)),
        Piece(_path(sparsight.diffusion.students.remote), ("SavedWithCode", "ExportedPipeline", "settle")),
    ]
    tail = f'''\
class {kind}(ExportedPipeline, {kind}):
    """The pipeline above, which takes this file along when it is saved."""

    __module__ = Path(__file__).stem
'''
    return _assemble("pipeline", pieces, tail, kind)


def load_class(code: CodeFile, folder: Path) -> type:
    """Write the file to ``folder``, run it, and return its class; what is saved of that class needs the file."""
    path = code.write(folder)
    module = ModuleType(code.stem)
    module.__file__ = str(path)
    sys.modules[code.stem] = module
    exec(compile(code.text, str(path), "exec"), module.__dict__)
    return module.__dict__[code.class_name]


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
            f"{class_path(mixer)} cannot travel in an export: define it at the top level of a file of its own, not in "
            "a function, class or notebook"
        )
    return path


def _assemble(
    kind: str,
    pieces: Sequence[Piece],
    tail: str,
    class_name: str,
    *,
    imports: Iterable[str] = (),
    own: Sequence[str] = (),
) -> CodeFile:
    statements, parts = set(imports), list[str]()
    owners = {name: ("every export", "its own") for name in own}
    for piece in pieces:
        body, piece_imports, names = _take(piece)
        for name, meaning in names.items():
            owner, known = owners.setdefault(name, (piece.title, meaning))
            if known != meaning:
                raise ValueError(
                    f"{owner} and {piece.title} both define {name!r}, and an export puts them in one file: rename it "
                    "in one of them"
                )
        statements |= piece_imports
        parts.append(f"# ---- {piece.title}\n\n{body.strip()}\n")
    header = (
        f'"""{class_name}, with all that it needs besides torch and diffusers.\n\n'
        "Put together by Sparsight from the files below; its own ones are under the Apache License, version 2.0.\n\n"
        + "".join(f"- {piece.title}\n" for piece in pieces)
        + '"""\n\nfrom __future__ import annotations\n\n'
        + "\n".join(sorted(statements, key=lambda line: (line.startswith("from"), line)))
        + '\n\n_EARLIER = dict(globals()) if "settle" in globals() else {}\n'
    )
    text = "\n\n".join([header, *parts, f"{tail}\n\nsettle(_EARLIER, globals())\n"])
    missing = owners.keys() - _globals(text, imports=True)
    assert not missing, f"lost on the way: {missing}"
    return CodeFile(f"{kind}_{hashlib.sha256(text.encode()).hexdigest()[:12]}", text, class_name)


def _take(piece: Piece) -> tuple[str, set[str], dict[str, str]]:
    """Text of a piece without its imports, the imports to keep, and what each of its names means."""
    text = piece.path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    _refuse_imports(piece, tree)
    lines = text.split("\n")
    if piece.names:
        wanted = [node for node in tree.body if isinstance(node, Named) and node.name in piece.names]
        assert len(wanted) == len(piece.names), f"{piece.title} lacks one of {piece.names}"
        body = "\n\n\n".join("\n".join(lines[_first_line(node) - 1 : node.end_lineno]) for node in wanted)
    else:
        imports_at = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        dropped = {number for node in imports_at for number in range(node.lineno, (node.end_lineno or 0) + 1)}
        body = "\n".join(line for number, line in enumerate(lines, 1) if number not in dropped)
    used = {node.id for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)}
    imports, meanings = set[str](), {name: str(piece.path) for name in _globals(body)}
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
                f"{piece.title} imports {name} (line {node.lineno}), so its mixers cannot travel in an export: the "
                "file may import the standard library, torch and, at its top and without 'as', names from blocks.base; "
                "put whatever else it needs into it"
            )


def _globals(text: str, *, imports: bool = False) -> set[str]:
    """Names that a file's text binds at its top level."""
    symbols = symtable.symtable(text, "export", "exec").get_symbols()
    return {
        symbol.get_name()
        for symbol in symbols
        if symbol.is_assigned() or symbol.is_namespace() or (imports and symbol.is_imported())
    }


def _first_line(node: ast.stmt) -> int:
    decorators = node.decorator_list if isinstance(node, Named) else []
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _package(node: ast.ImportFrom) -> str:
    return (node.module or "").split(".")[0]


def _path(module: ModuleType) -> Path:
    assert module.__file__ is not None
    return Path(module.__file__)
