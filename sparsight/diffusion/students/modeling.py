"""Writes the one file of code that an export carries, from the text of the files that it was trained with.

Diffusers takes one file along: it does not look for others in the subfolder of a pipeline, and keeps the files of all
exports of a machine in one folder, by their names. So the sources stand in the file as texts, quoted line by line (it
searches the file for lines with imports), and ``carried`` makes modules of them. The file's name holds a hash of it.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import sparsight.diffusion.students.adapters
import sparsight.diffusion.students.carried
import sparsight.diffusion.students.remote
import sparsight.diffusion.students.saved
from blocks.base import TokenMixer
from sparsight.diffusion.families.known import FAMILIES
from sparsight.diffusion.students.closure import SourceFile, closure


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
        path.write_text(self.text, encoding="utf-8", newline="\n")
        return path


def student_file(mixers: Collection[type[TokenMixer]], base: str) -> CodeFile:
    """The file of a student.

    Args:
        mixers: Classes of its mixers.
        base: Name of the diffusers class that it derives from.

    Raises:
        ValueError: A mixer's file imports what cannot travel (see ``sparsight.diffusion.students.closure``), or a
            mixer is not defined at the top of a file.
    """
    family, name = FAMILIES[base], f"Student{base}"
    ordered = sorted(mixers, key=class_path)
    needed = [sparsight.diffusion.students.remote]
    bases = [_carried_name(sparsight.diffusion.students.remote.ExportedStudent), base]
    if family.loads_adapters:
        needed.append(sparsight.diffusion.students.adapters)
        bases.insert(1, _carried_name(sparsight.diffusion.students.adapters.AdapterGuard))
    sources = closure([*map(_file, needed), *(SourceFile(mixer.__module__, source_of(mixer)) for mixer in ordered)])
    table = "".join(f"            {class_path(mixer)!r}: {_carried_name(mixer)},\n" for mixer in ordered)
    remote = sparsight.diffusion.students.remote.__name__
    body = f'''\
    class {name}({", ".join(bases)}):
        """{base} with the mixers that ``student`` in its configuration names in place of self-attention."""

        __module__ = FILES.stem
        code = FILES.code
        stacks = frozenset({sorted(family.stacks)})
        mixers = {{
{table}        }}

        def __init__(self, *args, student, **kwargs):
            super().__init__(*args, **kwargs)
            self.register_to_config(student=student)
            FILES.get("{remote}.place_students")(self, student, self.mixers)

        __init__.__signature__ = FILES.get("{remote}.signature_with_student")({base}.__init__)
'''
    # diffusers looks for ModelMixin beside the class when a component is given by hand
    return _assemble("modeling", sources, f"from diffusers import ModelMixin, {base}", body, name)


def pipeline_file(kind: str) -> CodeFile:
    """The file of a pixel-space pipeline, whose class is called ``kind``."""
    from sparsight.diffusion.pipelines import pixel_pipeline

    saved = sparsight.diffusion.students.saved
    body = f'''\
    class {kind}({_carried_name(saved.ExportedPipeline)}, {_carried_name(vars(pixel_pipeline)[kind])}):
        """The pipeline of that name, which takes this file along when it is saved."""

        __module__ = FILES.stem
        code = FILES.code
'''
    return _assemble("pipeline", closure([_file(saved), _file(pixel_pipeline)]), "", body, kind)


def load_class(code: CodeFile, folder: Path) -> type:
    """Write the file to ``folder``, run it, and return its class."""
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
    return path.absolute()


def _assemble(kind: str, sources: Mapping[str, str], imports: str, body: str, name: str) -> CodeFile:
    listed = "".join(f"- {path}\n" for path in sources)
    quoted = "".join(f"    {path!r}: (\n{_quoted(text)}    ),\n" for path, text in sources.items())
    text = f'''\
"""{name}, with all that it needs besides torch and diffusers.

Put together by Sparsight from the files below, of which each is run as a module of its own, from its text further down;
Sparsight's own ones are under the Apache License, version 2.0.

{listed}"""

from __future__ import annotations

{_bootstrap()}

SOURCES = {{
{quoted}}}

{imports}

FILES = carry(SOURCES, Path(__file__))

if {name!r} not in FILES.classes:  # diffusers runs this file again at every load

{body}
    FILES.classes[{name!r}] = {name}

{name} = FILES.classes[{name!r}]
# exported classes go by the file's name, so that saved pipelines name a file and not a place in a cache
sys.modules[FILES.stem] = sys.modules[__name__]
'''
    return CodeFile(f"{kind}_{hashlib.sha256(text.encode()).hexdigest()[:12]}", text, name)


def _quoted(text: str) -> str:
    return "".join(f"        {line!r}\n" for line in text.splitlines(keepends=True)) or '        ""\n'


def _bootstrap() -> str:
    """What makes modules of the texts: a file's text after its docstring and its first import."""
    text = _file(sparsight.diffusion.students.carried).read()
    return "\n".join(text.split("\n")[ast.parse(text).body[1].end_lineno or 0 :]).strip()


def _carried_name(kind: type) -> str:
    """The expression for a class of a carried file."""
    return f'FILES.get("{kind.__module__}.{kind.__name__}")'


def _file(module: ModuleType) -> SourceFile:
    return SourceFile(module.__name__, Path(module.__file__ or "").absolute())
