"""Files of a teacher that are damaged, of another kind, or do not belong together, named in one line each."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from sparsight.diffusion.model.load import load_pipeline
from sparsight.lvlm.model.load import load_lvlm
from tests import tiny
from tests.tiny_lvlm import save_tiny_lvlm

INDEX, PART, SCHEDULER = "model_index.json", "transformer/config.json", "scheduler/scheduler_config.json"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny.save_pixel_pipeline(tmp_path_factory.mktemp("kept") / "teacher"))


def change(path: Path, content: str | dict[str, Any] | None) -> None:
    if content is None:
        path.unlink()
    elif isinstance(content, str):
        path.write_text(content)
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | content))


DAMAGE: list[tuple[str, str | dict[str, Any] | None, str]] = [
    *[(file, '{"_class', rf"{file} is not JSON") for file in (INDEX, PART, SCHEDULER)],
    *[(file, "", rf"{file} is not JSON") for file in (INDEX, PART, SCHEDULER)],
    (INDEX, "[1]", rf"{INDEX} is damaged: it has no _class_name"),
    (INDEX, {"_class_name": 5}, rf"{INDEX} is damaged: it has no _class_name"),
    (
        INDEX,
        {"_class_name": "PixelDitPipelin"},
        rf"{INDEX} says that it is a PixelDitPipelin, which diffusers",
    ),
    (INDEX, {"transformer": "x"}, rf"{INDEX} is damaged: its transformer is 'x', not a library and a class"),
    (INDEX, {"transformer": {"a": 1}}, rf"{INDEX} is damaged: its transformer is"),
    (
        INDEX,
        {"transformer": ["diffusers", "DiTTransformr2DModel"]},
        rf"{INDEX} says that its transformer is a DiTTransformr2DModel, .*; did you mean DiTTransformer2DModel",
    ),
    (
        INDEX,
        {"scheduler": ["diffusers", "DDPMSchedulr"]},
        rf"{INDEX} says that its scheduler .*did you mean DDPMSch",
    ),
    *[(file, "[1]", rf"{file} is damaged: it holds a list") for file in (PART, SCHEDULER)],
    *[(file, '"x"', rf"{file} is damaged: it holds a str") for file in (PART, SCHEDULER)],
    *[(file, {"_class_name": "Nope"}, rf"{file} says that it is a Nope") for file in (PART, SCHEDULER)],
    (PART, {"num_layers": "two"}, rf"{PART}: transformer cannot be built from it: TypeError"),
    (PART, {"sample_size": "8"}, rf"{PART}: transformer cannot be built from it: TypeError"),
    (PART, {"patch_size": 0}, rf"{PART}: transformer cannot be built from it: ZeroDivisionError"),
    (PART, {"num_layers": 7}, rf"{PART} does not describe the weights beside it: missing"),
    (PART, {"num_layers": 1}, rf"{PART} does not describe the weights beside it: .*left over"),
    (SCHEDULER, {"num_train_timesteps": "many"}, rf"{SCHEDULER}: scheduler cannot be built from it: TypeError"),
    (WEIGHTS, None, "transformer holds no weights, such as diffusion_pytorch_model.safetensors: copy the folder again"),
    (WEIGHTS, "x" * 500, rf"{WEIGHTS}.*: copy it again"),
]


@pytest.mark.parametrize(("file", "content", "message"), DAMAGE)
def test_the_file_of_a_teacher_and_its_fault_are_named(
    kept: Path, tmp_path: Path, file: str, content: str | dict[str, Any] | None, message: str
) -> None:
    folder = Path(shutil.copytree(kept, tmp_path / "teacher"))
    change(folder / file, content)
    with pytest.raises((ValueError, OSError), match=f"{re.escape(str(folder))}.*{message}") as refused:
        load_pipeline(str(folder))
    assert "neither a local" not in str(refused.value) and "\n" not in str(refused.value)


def test_a_part_that_is_not_there_is_named(kept: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(kept, tmp_path / "teacher"))
    shutil.rmtree(folder / "scheduler")
    with pytest.raises(ValueError, match=r"model_index\.json names scheduler, but there is no folder"):
        load_pipeline(str(folder))


@pytest.mark.parametrize("content", ['{"a', "[1]", {"text_config": 5}, {"model_type": "nothing"}, {"model_type": None}])
def test_the_file_of_an_image_text_model_is_named(tmp_path: Path, content: str | dict[str, Any]) -> None:
    save_tiny_lvlm(tmp_path / "base", "llava")
    change(tmp_path / "base" / "config.json", content)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "base")) + r".*config\.json"):
        load_lvlm(str(tmp_path / "base"))
