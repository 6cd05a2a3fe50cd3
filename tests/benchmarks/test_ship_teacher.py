"""A teacher to ship: half the bytes, the text encoder from its package, and the same pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file

from benchmarks.ship_teacher import ENCODER, ship
from sparsight.diffusion.export.folder import write_pipeline
from sparsight.diffusion.families.known import family_of
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.load import load_pipeline
from sparsight.diffusion.pipelines.text_encoders import LEFT_OUT, PACKAGED, package_folder
from sparsight.diffusion.surgery.sites import find_sites
from tests import tiny

pytest.importorskip(PACKAGED[ENCODER], reason="needs the demo extra")
CARD = """from diffusers import AutoModel, DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("teacher", trust_remote_code=True)
denoiser = AutoModel.from_pretrained("teacher", subfolder="transformer")

This needs nothing but what the pipeline needs anyway. `trust_remote_code` runs Python files.

Samples of the teacher. Weights are in fp32. Loaded in a fresh process, it is the same. With the \
weights rounded to half precision (`variant="fp16"`) and fp32 arithmetic it differs by 2.8e-04. Prefer bfloat16.
"""


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    denoiser = tiny.sd3(joint_attention_dim=384, pooled_projection_dim=384)
    options = {"class_names": None, "text_encoder": ENCODER, "text_tokens": 16}
    pipeline = family_of(denoiser).begin(denoiser, FlowMatchEulerDiscreteScheduler(), **options)
    for parameter in pipeline.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # as made it predicts nothing
    write_pipeline(DiffusionModel(pipeline), folder / "teacher", fp16=True)
    (folder / "teacher" / "README.md").write_text(CARD)
    assert 0 < ship(folder / "teacher", folder / "tiny_sd3") < 2e-3
    return folder / "tiny_sd3"


def test_it_holds_half_precision_and_no_text_encoder(shipped: Path) -> None:
    weights = load_file(shipped / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert {path.name for path in shipped.iterdir() if path.is_dir()} == {"scheduler", "transformer"}
    assert len([*shipped.rglob("*.safetensors")]) == 1
    assert str(shipped.parent) not in (shipped / "transformer" / "config.json").read_text()


def test_it_loads_in_single_precision_with_the_package_s_text_encoder(shipped: Path) -> None:
    pipeline = load_pipeline(str(shipped))
    assert {parameter.dtype for parameter in pipeline.transformer.parameters()} == {torch.float32}
    assert pipeline.tokenizer.model_max_length == 16
    assert pipeline("red apple", num_inference_steps=1).images[0].size == (16, 16)
    half = load_pipeline(str(shipped), dtype=torch.bfloat16)
    assert {p.dtype for part in (half.transformer, half.text_encoder) for p in part.parameters()} == {torch.bfloat16}


def test_plain_diffusers_loads_it_as_the_card_says(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    card = (shipped / "README.md").read_text()
    assert "Samples of the teacher. Weights are in fp16, and loaded in fp32" in card
    assert "it is the same. Prefer bfloat16." in card
    code = card.partition("\n\nThe text encoder is not repeated")[0].replace('"tiny_sd3"', "FOLDER")
    code = code.replace('"sentence-transformers/all-MiniLM-L6-v2"', "ENCODER")
    names = {"FOLDER": str(shipped), "ENCODER": str(package_folder(PACKAGED[ENCODER]))}
    exec(compile(code, "card", "exec"), names)
    assert names["parts"].keys() == {"tokenizer", "text_encoder"}
    pipeline = names["pipeline"]
    own = load_pipeline(str(shipped)).conditions(["red apple", ""])
    for name, value in pipeline.conditions(["red apple", ""]).items():
        assert torch.equal(own[name], value), name


@pytest.mark.parametrize("entry", [{"name": "some/encoder", "tokens": 16}, {"name": ENCODER}, "all-MiniLM-L6-v2"])
def test_an_index_may_name_packaged_text_encoders_alone(shipped: Path, tmp_path: Path, entry: object) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in shipped.iterdir():
        (folder / path.name).symlink_to(path)
    index = json.loads((shipped / "model_index.json").read_text()) | {LEFT_OUT: entry}
    (folder / "model_index.json").unlink()
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model_index.json is damaged: its _text_encoder is .*copy the folder again"):
        load_pipeline(str(folder))


def test_what_draws_otherwise_is_not_kept(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.ship_teacher.ROUNDING", 1e-9)
    (tmp_path / "README.md").write_text(CARD)
    with pytest.raises(RuntimeError, match="nothing was kept"):
        ship(shipped.parent / "teacher", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_shipped_teacher_draws_what_is_asked_for() -> None:
    pipeline = load_pipeline("emoji_sd3")
    pipeline.set_progress_bar_config(disable=True)
    assert [site.grid.tokens for site in find_sites(pipeline.transformer)] == [256] * 6
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 8, "generator": generator, "output_type": "pt"}
    red, _, blue = pipeline(["red heart", "blue heart"], **options).images.mean((2, 3)).T
    assert red[0] > blue[0] and blue[1] > red[1]
