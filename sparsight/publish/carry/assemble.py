"""Writes the one file of code that an export carries, from the text of the files that it was made with.

Libraries take one file along: diffusers does not look for others in the subfolder of a pipeline, and keeps the files of
all exports of a machine in one folder, by their names. So the sources stand in the file as texts, quoted line by line
(libraries search the file for lines with imports), and ``carried`` makes modules of them. The file's name holds a hash.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import sparsight.publish.carry.carried
from sparsight.common.errors import ConfigurationError
from sparsight.publish.carry.closure import SourceFile


@dataclass(frozen=True)
class CodeFile:
    """A file of code that travels with an export.

    Args:
        stem: File name without its suffix.
        text: Its content.
        class_name: The class in it that a library is to load.
    """

    stem: str
    text: str
    class_name: str

    def write(self, folder: Path) -> Path:
        """Write it to ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.stem}.py"
        path.write_text(self.text, encoding="utf-8", newline="\n")
        return path


def class_path(kind: type) -> str:
    """How records name a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def source_of(kind: type) -> Path:
    """The file that defines a class.

    Raises:
        ValueError: There is none, or the class is not at its top level.
    """
    try:
        path = Path(inspect.getsourcefile(kind) or "")
    except TypeError:
        path = Path()
    if not path.is_file() or "." in kind.__qualname__:
        raise ConfigurationError(
            f"{class_path(kind)} cannot travel in an export: define it at the top level of a file of its own, not in "
            "a function, class or notebook"
        )
    return path.absolute()


def assemble(
    kind: str, sources: Mapping[str, str], imports: str, body: str, name: str, *, library: str = "diffusers"
) -> CodeFile:
    """The file of code.

    Args:
        kind: How its name begins.
        sources: Texts of the files that it carries, by their titles.
        imports: Lines that import what the body needs besides.
        body: Lines, indented once, that define the class; they see ``FILES``.
        name: Of the class.
        library: What it needs beside torch.
    """
    listed = "".join(f"- {path}\n" for path in sources)
    quoted = "".join(f"    {path!r}: (\n{_quoted(text)}    ),\n" for path, text in sources.items())
    text = f'''\
"""{name}, with all that it needs besides torch and {library}.

Put together by Sparsight from the files below, of which each is run as a module of its own, from its text further down;
Sparsight's own ones are under the Apache License, version 2.0.

{listed}"""

from __future__ import annotations

{_bootstrap()}

SOURCES = {{
{quoted}}}

{imports}

FILES = carry(SOURCES, Path(__file__))

if {name!r} not in FILES.classes:  # this file may be run again at every load

{body}
    FILES.classes[{name!r}] = {name}

{name} = FILES.classes[{name!r}]
# exported classes go by the file's name, so that saved pipelines name a file and not a place in a cache
sys.modules[FILES.stem] = sys.modules[__name__]
'''
    return CodeFile(f"{kind}_{hashlib.sha256(text.encode()).hexdigest()[:12]}", text, name)


def carried_name(kind: type) -> str:
    """The expression for a class of a carried file."""
    return f'FILES.get("{kind.__module__}.{kind.__name__}")'


def file_of(module: ModuleType) -> SourceFile:
    """A module's file."""
    return SourceFile(module.__name__, Path(module.__file__ or "").absolute())


def _quoted(text: str) -> str:
    return "".join(f"        {line!r}\n" for line in text.splitlines(keepends=True)) or '        ""\n'


def _bootstrap() -> str:
    """What makes modules of the texts: a file's text after its docstring and its first import."""
    text = file_of(sparsight.publish.carry.carried).read()
    return "\n".join(text.split("\n")[ast.parse(text).body[1].end_lineno or 0 :]).strip()
