"""The files of code that exported denoisers and their pipelines carry."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

import sparsight.diffusion.students.adapters
import sparsight.diffusion.students.remote
import sparsight.diffusion.students.saved
from blocks.base import TokenMixer
from sparsight.diffusion.families.known import FAMILIES
from sparsight.publish.carry.assemble import CodeFile, assemble, carried_name, class_path, file_of, source_of
from sparsight.publish.carry.closure import SourceFile, closure


def student_file(mixers: Collection[type[TokenMixer]], base: str) -> CodeFile:
    """The file of a student.

    Args:
        mixers: Classes of its mixers.
        base: Name of the diffusers class that it derives from.

    Raises:
        ValueError: A mixer's file imports what cannot travel (see ``sparsight.publish.carry.closure``), or a
            mixer is not defined at the top of a file.
    """
    family, name = FAMILIES[base], f"Student{base}"
    ordered = sorted(mixers, key=class_path)
    needed = [sparsight.diffusion.students.remote]
    bases = [carried_name(sparsight.diffusion.students.remote.ExportedStudent), base]
    if family.loads_adapters:
        needed.append(sparsight.diffusion.students.adapters)
        bases.insert(1, carried_name(sparsight.diffusion.students.adapters.AdapterGuard))
    sources = closure([*map(file_of, needed), *(SourceFile(mixer.__module__, source_of(mixer)) for mixer in ordered)])
    table = "".join(f"            {class_path(mixer)!r}: {carried_name(mixer)},\n" for mixer in ordered)
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
    return assemble("modeling", sources, f"from diffusers import ModelMixin, {base}", body, name)


def pipeline_file(kind: str) -> CodeFile:
    """The file of a pixel-space pipeline, whose class is called ``kind``."""
    from sparsight.diffusion.pipelines import pixel_pipeline

    saved = sparsight.diffusion.students.saved
    body = f'''\
    class {kind}({carried_name(saved.ExportedPipeline)}, {carried_name(vars(pixel_pipeline)[kind])}):
        """The pipeline of that name, which takes this file along when it is saved."""

        __module__ = FILES.stem
        code = FILES.code
'''
    return assemble("pipeline", closure([file_of(saved), file_of(pixel_pipeline)]), "", body, kind)


def load_class(code: CodeFile, folder: Path) -> type:
    """Write the file to ``folder``, run it, and return its class."""
    path = code.write(folder)
    module = ModuleType(code.stem)
    module.__file__ = str(path)
    sys.modules[code.stem] = module
    exec(compile(code.text, str(path), "exec"), module.__dict__)
    return module.__dict__[code.class_name]
