"""Families: what differs between denoisers stands on their records, and class names of diffusers nowhere else."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch

from sparsight.diffusion.families.known import FAMILIES, example_inputs, family_of, plain_class
from tests import tiny
from tests.tiny_flux import flux
from tests.tiny_sd3 import sd35

ROOT = Path(__file__).parents[3]
PACKAGES = ("sparsight", "datamodules", "callbacks", "lightning_modules")
HOME = ROOT / "sparsight" / "diffusion" / "families"
CLASSES = re.compile(
    r"\b(UNet\w*Model|\w*Transformer[23]DModel|\w*TransformerBlock|ResnetBlock2D|LabelEmbedding|\w+LabelEmbeddings"
    r"|StableDiffusion\w*|PixArt\w*Pipeline|DiTPipeline|Flux\w+|Wan[A-Z]\w+)\b"
)
FILES = [
    path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if HOME not in path.parents and "assets" not in path.parts
]


def without_docstrings(source: str) -> str:
    """The code of a file: users are told names of diffusers' classes, but nothing may depend on them."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [n for n in node.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
            node.body = node.body or [ast.Pass()]
    return ast.unparse(tree)


def test_class_names_are_found_in_code_but_not_in_docstrings() -> None:
    assert CLASSES.findall(without_docstrings('"""A DiTTransformer2DModel."""\nx = "BasicTransformerBlock"')) == [
        "BasicTransformerBlock"
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_class_names_of_diffusers_stand_with_the_families_alone(path: Path) -> None:
    assert not CLASSES.findall(without_docstrings(path.read_text()))


MADE = tiny.FAMILIES | {"sd3": sd35, "flux": flux}


@pytest.mark.parametrize("name", MADE)
def test_a_denoiser_answers_to_the_inputs_of_its_family(name: str) -> None:
    denoiser = MADE[name]().eval()
    family = family_of(denoiser)
    assert FAMILIES[family.name] is family
    assert plain_class(denoiser).__name__ == family.name
    inputs = example_inputs(denoiser, batch=2, size=(8, 8) if name == "flux" else None)
    with torch.no_grad():
        output = denoiser(**inputs, return_dict=False)[0]
    assert output.shape[0] == 2
    assert any(type(module).__name__ in family.blocks for module in denoiser.modules())
    assert any(type(module).__name__ in family.shard_units for module in denoiser.modules())


def test_other_models_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="Linear is not supported: use one of UNet2DConditionModel"):
        family_of(torch.nn.Linear(1, 1))
