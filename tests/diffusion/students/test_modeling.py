"""The file of code that an export carries."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from blocks import (
    DeltaConvBlock,
    FeatureMixer,
    Grid,
    LinearAttention,
    NeighborhoodAttention,
    SoftmaxAttention,
    TokenMixer,
)
from sparsight.diffusion.families.known import example_inputs
from sparsight.diffusion.pipelines.pixel_pipeline import PIXEL_PIPELINES
from sparsight.diffusion.students.modeling import load_class, pipeline_file, student_file
from sparsight.diffusion.surgery.record import record_of
from sparsight.diffusion.surgery.replace import finalize, replace
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
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    sys.modules[path.stem] = module
    exec(compile(text, str(path), "exec"), module.__dict__)
    return getattr(module, name)


def test_the_shipped_mixers_fit_in_one_file_that_needs_no_other(tmp_path: Path) -> None:
    mixers = [DeltaConvBlock, LinearAttention, NeighborhoodAttention, SoftmaxAttention]
    code = student_file(mixers, "UNet2DConditionModel")
    assert code == student_file(list(reversed(mixers)), "UNet2DConditionModel")
    assert code.stem != student_file(mixers[:2], "UNet2DConditionModel").stem
    found = [line for line in code.text.splitlines() if line.startswith(("import ", "from "))]
    packages = {line.split()[1].split(".")[0] for line in found}
    assert packages <= sys.stdlib_module_names | {"torch", "diffusers"}
    assert found.count("from diffusers import UNet2DConditionModel") == 1


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
    assert "'wave.Wave': Wave" in code.text and str(tmp_path) not in code.text
    load_class(code, tmp_path / "out")
    travelled = sys.modules[code.stem].Wave(SITE)
    assert torch.equal(travelled(torch.ones(1, 64, 16), Grid(8, 8)), torch.full((1, 64, 16), 2.0))


@pytest.mark.parametrize(
    "line",
    [
        "import numpy as np",
        "from torchvision.ops import nms",
        "from blocks import DeltaConvBlock",
        "from blocks.softmax_attention import SoftmaxAttention",
        "from blocks.base import Site as Place",
        "from .helpers import something",
        "import blocks.base",
    ],
)
def test_other_imports_are_refused_by_name(tmp_path: Path, line: str) -> None:
    good = MIXER.format(name="Carrier")
    mixer = define(tmp_path, "Carrier", good)
    (tmp_path / "carrier.py").write_text(f"{good}\n\ndef late() -> None:\n    {line}\n")
    with pytest.raises(ValueError, match=rf"carrier\.py imports {line.split()[1]} .*may import the standard library"):
        student_file([mixer], "DiTTransformer2DModel")


def test_equal_names_in_two_files_are_refused(tmp_path: Path) -> None:
    first, second = (define(tmp_path, name, MIXER.format(name=name)) for name in ("First", "Second"))
    with pytest.raises(ValueError, match=r"first\.py and second\.py both define 'helper'"):
        student_file([first, second], "DiTTransformer2DModel")
    shadowing = define(tmp_path, "Place", MIXER.format(name="Place") + "\n\ndef put() -> None: ...\n")
    with pytest.raises(ValueError, match=r"place\.py and sparsight/diffusion/surgery/replace\.py both define 'put'"):
        student_file([shadowing], "DiTTransformer2DModel")


def test_classes_without_a_file_of_their_own_are_refused() -> None:
    class Local(FeatureMixer):
        def flops(self, grid: Grid) -> int:
            return 0

        def forward(self, hidden_BNC: torch.Tensor, grid: Grid) -> torch.Tensor:
            return hidden_BNC

    with pytest.raises(ValueError, match="Local cannot travel"):
        student_file([Local], "DiTTransformer2DModel")
