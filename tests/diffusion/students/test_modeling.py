"""The file of code that an export carries."""

from __future__ import annotations

import inspect
import pickle
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from blocks import (
    DeltaConvBlock,
    FeatureMixer,
    Grid,
    HeadSplit,
    LinearAttention,
    Merge,
    NeighborhoodAttention,
    PooledAttention,
    SoftmaxAttention,
    TokenMixer,
)
from sparsight.diffusion.export.standalone import standalone
from sparsight.diffusion.families.known import example_inputs
from sparsight.diffusion.pipelines.pixel_pipeline import PIXEL_PIPELINES
from sparsight.diffusion.students.modeling import load_class, pipeline_file, student_file
from sparsight.diffusion.surgery.record import record_of
from sparsight.diffusion.surgery.replace import finalize, replace
from sparsight.publish.carry.assemble import CodeFile
from sparsight.publish.carry.carried import CarriedFiles
from sparsight.testing import SITE
from tests import tiny

MIXER = '''
"""A mixer of a user."""

from __future__ import annotations

from torch import Tensor

from blocks.base import FeatureMixer, Grid


def helper(x: Tensor) -> Tensor:
    return 2 * x


class {name}(FeatureMixer):
    def flops(self, grid: Grid) -> int:
        return 0

    def forward(self, hidden_BNC: Tensor, grid: Grid) -> Tensor:
        return helper(hidden_BNC)
'''


def define(folder: Path, name: str, text: str) -> type[TokenMixer]:
    """A mixer class defined by a file of its own."""
    path = folder / f"{name.lower()}.py"
    path.write_text(text)
    return vars(define_module(path))[name]


def define_module(path: Path) -> Any:
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    sys.modules[path.stem] = module
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    return module


def carried(code: CodeFile, folder: Path) -> CarriedFiles:
    """The files of a code file that was run."""
    load_class(code, folder)
    return sys.modules[code.stem].FILES


def test_the_shipped_mixers_fit_in_one_file_that_needs_no_other(tmp_path: Path) -> None:
    mixers = [DeltaConvBlock, LinearAttention, NeighborhoodAttention, SoftmaxAttention]
    code = student_file(mixers, "UNet2DConditionModel")
    assert code == student_file(list(reversed(mixers)), "UNet2DConditionModel")
    assert code.stem != student_file(mixers[:2], "UNet2DConditionModel").stem
    found = [line for line in code.text.splitlines() if line.lstrip().startswith(("import ", "from "))]
    packages = {line.split()[1].split(".")[0] for line in found}
    assert packages <= sys.stdlib_module_names | {"diffusers"}, "diffusers asks for every package that it finds"
    assert found.count("from diffusers import ModelMixin, UNet2DConditionModel") == 1


@pytest.mark.parametrize("mixer", [NeighborhoodAttention, LinearAttention])
def test_the_travelling_class_answers_like_the_original(tmp_path: Path, mixer: type[TokenMixer]) -> None:
    options = {"kernel_size": 3} if mixer is NeighborhoodAttention else {}
    denoiser = tiny.pixart().eval()
    replace(denoiser, lambda site: mixer(site, **options))
    finalize(denoiser)
    model = load_class(student_file([mixer], "PixArtTransformer2DModel"), tmp_path)(
        **{key: value for key, value in denoiser.config.items() if key[0] != "_"}, student=record_of(denoiser)
    )
    model.load_state_dict(denoiser.state_dict())
    for size in ((8, 8), (6, 10)):
        inputs = example_inputs(denoiser, batch=2, size=size)
        torch.testing.assert_close(model.eval()(**inputs).sample, denoiser(**inputs).sample)


def test_parts_travel_with_the_mixer_that_is_made_of_them(tmp_path: Path) -> None:
    own = define(
        tmp_path, "OwnTiles", "from blocks import TileAttention\n\n\nclass OwnTiles(TileAttention):\n    pass\n"
    )
    merged = partial(
        Merge, parts=[partial(own, tile=2), partial(PooledAttention, tile=2, without_own=True)], learned_balance=True
    )
    denoiser = tiny.dit().eval()
    for shell in replace(denoiser, partial(HeadSplit, parts=[merged, SoftmaxAttention])).values():
        nn.init.normal_(shell.mixer.mixers[0].balance)
    finalize(denoiser)
    model = standalone(denoiser, tmp_path / "code")
    kinds = {type(module).__name__: type(module) for module in model.modules()}
    for name in ("HeadSplit", "Merge", "OwnTiles", "PooledAttention", "SoftmaxAttention"):
        assert kinds[name].__module__.startswith("sparsight_export_"), f"{name} is the exported one"
    assert model.config["student"] == record_of(denoiser)
    for size in ((8, 8), (12, 12)):
        inputs = example_inputs(denoiser, batch=2, size=size)
        torch.testing.assert_close(model.eval()(**inputs).sample, denoiser(**inputs).sample)


def test_a_student_is_saved_with_its_code_after_the_file_is_gone(tmp_path: Path) -> None:
    denoiser = tiny.dit().eval()
    replace(denoiser, NeighborhoodAttention)
    model = standalone(denoiser, tmp_path / "cache")
    (code,) = (tmp_path / "cache").iterdir()
    text = code.read_bytes()
    code.unlink()
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / code.name).read_bytes() == text


@pytest.mark.parametrize("kind", PIXEL_PIPELINES)
def test_running_the_file_again_leaves_what_exists_alone(tmp_path: Path, kind: str) -> None:
    code = pipeline_file(kind)
    first = load_class(code, tmp_path)
    module = sys.modules[code.stem]
    for _ in range(2):
        exec(compile(code.text, str(tmp_path), "exec"), module.__dict__)
    assert getattr(module, kind) is first
    assert first.__module__ == code.stem


def test_a_users_mixer_travels(tmp_path: Path) -> None:
    mixer = define(tmp_path, "Wave", MIXER.format(name="Wave"))
    code = student_file([mixer], "DiTTransformer2DModel")
    assert "'wave.Wave': FILES" in code.text and str(tmp_path) not in code.text
    travelled = carried(code, tmp_path / "out").get("wave.Wave")
    assert torch.equal(travelled(SITE)(torch.ones(1, 64, 16), Grid(8, 8)), torch.full((1, 64, 16), 2.0))


def test_carried_files_are_modules_that_can_be_read_and_pickled(tmp_path: Path) -> None:
    files = carried(student_file([NeighborhoodAttention], "DiTTransformer2DModel"), tmp_path)
    travelled = files.get("blocks.neighborhood_attention.NeighborhoodAttention")
    assert travelled is not NeighborhoodAttention and not issubclass(travelled, TokenMixer)
    assert inspect.getsource(travelled.mix) == inspect.getsource(NeighborhoodAttention.mix)
    site = files.get("blocks.base.Site")("", 16, 2, 8, files.get("blocks.base.Grid")(8, 8))
    assert type(pickle.loads(pickle.dumps(travelled(site)))) is travelled
    with pytest.raises(ValueError, match="kernel_size") as error:
        travelled(site, kernel_size=0)
    assert "raise ValueError" in str(error.traceback[-1].statement)


@pytest.mark.parametrize(
    "line",
    [
        "from blocks.neighborhood_attention import NeighborhoodAttention as Other",
        "import blocks.neighborhood_attention",
        "import blocks.neighborhood_attention as other",
        "from blocks import neighborhood_attention",
        "from blocks import NeighborhoodAttention",
        "from blocks.base import *",
        "import helpers_of_late",
        "from helpers_of_late import double",
        "from package_of_late import part",
        "from package_of_late.part import triple",
        "import package_of_late.part as p",
    ],
)
def test_what_a_file_imports_of_blocks_and_beside_it_travels(tmp_path: Path, line: str) -> None:
    (tmp_path / "helpers_of_late.py").write_text(
        "from package_of_late.part import triple\ndef double(x): return 2 * x\n"
    )
    (tmp_path / "package_of_late").mkdir()
    (tmp_path / "package_of_late" / "__init__.py").write_text("raise RuntimeError('not needed')\n")
    (tmp_path / "package_of_late" / "part.py").write_text("from .other import *\ndef triple(x): return 3 * x\n")
    (tmp_path / "package_of_late" / "other.py").write_text("import blocks.base\nbase = blocks.base.Grid\n")
    late, top = ("pass", line) if "*" in line else (line, "")  # stars are for the top of a file
    text = f"{MIXER.format(name='Late')}\n\ndef late():\n    {late}\n    return locals()\n\n\n{top}\n"
    mixer = define(tmp_path, "Late", text)
    files = carried(student_file([mixer], "DiTTransformer2DModel"), tmp_path / "out")
    for found in files.get("late.late")().values():
        name = found.__name__ if inspect.ismodule(found) else found.__module__
        assert f"{name}.".startswith(f"{files.package}."), f"{name} is the installed one"


def test_files_of_one_name_and_other_content_live_side_by_side(tmp_path: Path) -> None:
    """Versions of a helper that registers an operation, as this process knows it and as exports carry it."""
    text = """
import torch
from torch import Tensor
from blocks.ops.names import op_name

NAME = op_name(__name__, "times")

@torch.library.custom_op(NAME, mutates_args=())
def times(x: Tensor) -> Tensor:
    return x * {factor}
"""
    use = "from factor_op import times\n" + MIXER.format(name="Scaled").replace("2 * x", "times(x)")
    use = use.replace("from factor_op import times\n", "", 1).replace(
        "from torch", "from factor_op import times\nfrom torch", 1
    )
    answers, names = [], []
    for factor in (3, 5, 3):
        folder = tmp_path / f"of_{factor}_{len(answers)}"
        folder.mkdir()
        (folder / "factor_op.py").write_text(text.format(factor=factor))
        own = define_module(folder / "factor_op.py")
        mixer = define(folder, "Scaled", use)
        files = carried(student_file([mixer], "DiTTransformer2DModel"), folder / "out")
        travelled, grid = files.get("scaled.Scaled"), Grid(8, 8)
        answers.append((float(mixer(SITE)(torch.ones(1), grid)), float(travelled(SITE)(torch.ones(1), grid))))
        names.append((own.NAME, files.get("factor_op.NAME")))
        if len(names) == 1:
            first = travelled
    assert answers == [(3, 3), (5, 5), (3, 3)]
    assert float(first(SITE)(torch.ones(1), grid)) == 3
    assert len({*names[0], *names[1]}) == 4 and names[2] == names[0]


@pytest.mark.parametrize(
    "line",
    [
        'torch.library.custom_op("mine::scan", mutates_args=())(helper)',
        'torch.library.define("mine::scan", "(Tensor x) -> Tensor")',
        'torch.library.Library("mine", "DEF")',
        'name = "mine::scan"\n    torch.library.custom_op(name, mutates_args=())(helper)',
        'torch.library.custom_op(f"mine::{1}", mutates_args=())(helper)',
        'torch.library.custom_op("mine" + "::scan", mutates_args=())(helper)',
        'space = "mine"\n    torch.library.Library(space, "DEF")',
        'torch.library.define(qualname="mine" "::scan", schema="(Tensor x) -> Tensor")',
    ],
)
def test_operations_under_fixed_names_are_refused(tmp_path: Path, line: str) -> None:
    mixer = define(tmp_path, "Fixed", good := MIXER.format(name="Fixed"))
    (tmp_path / "fixed.py").write_text(f"import torch\n{good}\n\ndef register():\n    {line}\n")
    with pytest.raises(ValueError, match=r"fixed\.py registers .*\(line \d+\).*op_name"):
        student_file([mixer], "DiTTransformer2DModel")


@pytest.mark.parametrize(
    "line",
    [
        'torch.library.custom_op(op_name(__name__, "scan"), mutates_args=())(helper)',
        'name = op_name(__name__, "scan")\n    torch.library.custom_op(name, mutates_args=())(helper)',
        'library = torch.library.Library(op_name(__name__, "scan").partition("::")[0], "DEF")\n'
        '    library.define("scan(Tensor x) -> Tensor")',
    ],
)
def test_operations_named_by_their_text_travel(tmp_path: Path, line: str) -> None:
    mixer = define(tmp_path, "Named", good := MIXER.format(name="Named"))
    text = f"import torch\nfrom blocks.ops.names import op_name\n{good}\n\ndef register():\n    {line}\n"
    (tmp_path / "named.py").write_text(text)
    assert student_file([mixer], "DiTTransformer2DModel")


def test_an_optional_kernel_travels_and_falls_back_with_one_warning(tmp_path: Path) -> None:
    text = """
from blocks.ops.optional import optional_package

try:
    import kernel_that_nobody_has
except ImportError:
    kernel_that_nobody_has = None
""" + MIXER.format(name="Fast").replace(
        "2 * x", "2 * x if optional_package('kernel_of_nobody') is None else x"
    ).replace("from __future__ import annotations", "")
    mixer = define(tmp_path, "Fast", text + "\n\ndef fast(x):\n    import numpy, kernel_of_nobody\n")
    travelled = carried(student_file([mixer], "DiTTransformer2DModel"), tmp_path / "out").get("fast.Fast")(SITE)
    with pytest.warns(UserWarning, match="without kernel_of_nobody the slower form") as warned:
        for _ in range(2):
            assert float(travelled(torch.ones(1), Grid(8, 8))) == 2
    assert len(warned) == 1


@pytest.mark.parametrize(
    "line",
    [
        "import numpy as np",
        "from torchvision.ops import nms",
        "from .nothing_there import something",
        "import sparsight.testing",
        "from callbacks import ExportAtEnd",
        "if True: import numpy",
        "try: import numpy\nexcept ValueError: pass",
        "try: pass\nexcept ImportError: import numpy",
        "class Inner:\n    import numpy",
        "def late():\n    import sparsight.testing",
    ],
)
def test_other_imports_are_refused_by_name(tmp_path: Path, line: str) -> None:
    good = MIXER.format(name="Carrier")
    mixer = define(tmp_path, "Carrier", good)
    (tmp_path / "carrier.py").write_text(f"{good}\n\n{line}\n")
    with pytest.raises(
        ValueError, match=r"carrier\.py imports (numpy|torchvision|nothing|sparsight|callbacks).*may import"
    ):
        student_file([mixer], "DiTTransformer2DModel")


def test_equal_names_in_two_files_are_two_things(tmp_path: Path) -> None:
    first, second = (
        define(tmp_path, name, MIXER.format(name=name).replace("2 * x", f"{factor} * x"))
        for name, factor in (("First", 4), ("Second", 7))
    )
    files = carried(student_file([first, second], "DiTTransformer2DModel"), tmp_path / "out")
    for name, factor in (("first.First", 4), ("second.Second", 7)):
        assert float(files.get(name)(SITE)(torch.ones(1), Grid(8, 8))) == factor


def test_two_files_for_one_module_are_refused(tmp_path: Path) -> None:
    mixers = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        (folder / "shared_helper.py").write_text("")
        mixers.append(
            define(folder, folder.name.upper(), "import shared_helper\n" * 0 + MIXER.format(name=folder.name.upper()))
        )
        file = folder / f"{folder.name}.py"
        file.write_text(file.read_text() + "\n\ndef late():\n    import shared_helper\n")
    with pytest.raises(ValueError, match="both the module shared_helper"):
        student_file(mixers, "DiTTransformer2DModel")


def test_classes_without_a_file_of_their_own_are_refused() -> None:
    class Local(FeatureMixer):
        def flops(self, grid: Grid) -> int:
            return 0

        def forward(self, hidden_BNC: torch.Tensor, grid: Grid) -> torch.Tensor:
            return hidden_BNC

    with pytest.raises(ValueError, match="Local cannot travel"):
        student_file([Local], "DiTTransformer2DModel")
