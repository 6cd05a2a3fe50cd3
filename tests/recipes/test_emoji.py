"""The offline text-to-image recipe, teacher and student, walked through by the command with a tiny font and encoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sparsight.command.arguments import read_config
from sparsight.command.cli import main
from sparsight.diffusion.model.load import load_pipeline
from sparsight.diffusion.surgery.sites import find_sites
from tests import tiny
from tests.tiny_font import save_emoji_font
from tests.tiny_recipes import check_plain_diffusers_draws, walk

pytestmark = pytest.mark.usefixtures("reload_here")
COLOURS = {chr(0x1F400 + number): (40 * number, 20, 90) for number in range(6)}  # rat to tiger
CAPTIONS = ["rat", "ox"]


def shrunk(name: str, folder: Path, **model: Any) -> Path:
    """What is laid over a recipe: another font and smaller numbers; nothing else is changed."""
    callbacks = read_config(f"experiment/{name}")["trainer"]["callbacks"]
    for callback in callbacks:
        options = callback.get("init_args", {})
        fewer: dict[str, Any] = {"every_n_steps": 4, "every_n_train_steps": 2, "captions": CAPTIONS}
        options |= {key: value for key, value in fewer.items() if key in options}
        if callback["class_path"] == "callbacks.ExportAtEnd":
            options["output"] = str(folder / name / "export")
    font = save_emoji_font(folder / "font.ttf", COLOURS)
    records = {"class_path": "datamodules.EmojiRecords", "init_args": {"font": str(font)}}
    small = {
        "trainer": {
            "accelerator": "cpu",
            "precision": "32-true",  # convolutions in bfloat16 take seconds on a CPU
            "default_root_dir": str(folder / name),
            "enable_progress_bar": False,
            "val_check_interval": 2,
            "callbacks": callbacks,
        },
        "model": {"init_args": {"sampling": {"steps": 2}, **model}},
        "data": {
            "init_args": {"train": records, "test": records, "val_share": 0.34, "batch_size": 2, "image_size": 16}
        },
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(small))
    return path


def teacher(folder: Path, _: Callable[[str], Path]) -> Path:
    """Trained from nothing."""
    encoder = str(tiny.save_text_encoder(folder / "bert"))
    fewer = {"sample_size": 16, "block_out_channels": [16, 16, 16], "norm_num_groups": 8, "cross_attention_dim": 32}
    options = {"conditions": {"text_encoder": encoder, "text_tokens": 8}, "schedule": {"warmup_steps": 1}}
    small = shrunk("emoji_teacher", folder, denoiser={"init_args": fewer}, **options)
    return walk("emoji_teacher", small, "--trainer.max_steps", "4")


def joint(folder: Path, _: Callable[[str], Path]) -> Path:
    """A joint transformer trained from nothing."""
    widths = dict.fromkeys(["joint_attention_dim", "caption_projection_dim", "pooled_projection_dim"], 32)
    fewer = {"sample_size": 16, "num_layers": 2, "num_attention_heads": 1, "pos_embed_max_size": 8, **widths}
    encoder = str(tiny.save_text_encoder(folder / "bert"))
    options = {"conditions": {"text_encoder": encoder, "text_tokens": 8}, "schedule": {"warmup_steps": 1}}
    small = shrunk("emoji_joint_teacher", folder, denoiser={"init_args": fewer}, **options)
    return walk("emoji_joint_teacher", small, "--trainer.max_steps", "4")


def student(folder: Path, exported: Callable[[str], Path], of: str = "teacher") -> Path:
    """Distilled from a teacher."""
    stages = read_config("experiment/emoji_student")["model"]["init_args"]["stages"]
    fewer = [stage | {"steps": 2, "warmup_steps": 1} for stage in stages]
    options = {"stages": fewer, "trained": {"init_samples": 2}, "mixer": {"init_args": {"kernel_size": 3}}}
    small = shrunk("emoji_student", folder, teacher=str(exported(of)), **options)
    return walk("emoji_student", small)


WALKS = {"teacher": teacher, "joint": joint, "student": student}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Walks a recipe, once for all tests of this file; its export."""

    @cache
    def walked(name: str) -> Path:
        return WALKS[name](tmp_path_factory.mktemp("emoji"), walked)

    return walked


@pytest.mark.slow  # the joint transformer goes the same way in half the time
def test_the_teacher_is_trained_from_nothing(exported: Callable[[str], Path], tmp_path: Path) -> None:
    export = exported("teacher")
    pipeline = load_pipeline(str(export))
    assert [site.grid.tokens for site in find_sites(pipeline.unet)] == [64, 16, 16, 16, 64, 64, 16]
    last = export.parent / "lightning_logs" / "version_1" / "checkpoints" / "last.ckpt"
    recipe = ["--config", "experiment/emoji_teacher", "--config", str(export.parent.with_suffix(".yaml"))]
    main(["export", *recipe, "--ckpt_path", str(last), "--output", str(tmp_path / "again")])
    again = load_pipeline(str(tmp_path / "again"))
    assert again.tokenizer.model_max_length == 8
    for name, value in pipeline.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[name], value), name


@pytest.mark.slow
def test_a_joint_transformer_is_trained_from_nothing(exported: Callable[[str], Path]) -> None:
    assert [*load_pipeline(str(exported("joint"))).components] == [
        "tokenizer",
        "text_encoder",
        "transformer",
        "scheduler",
    ]


@pytest.mark.slow
def test_a_student_is_distilled_from_it(exported: Callable[[str], Path]) -> None:
    unet = load_pipeline(str(exported("student"))).unet
    assert [type(module).__name__ for module in unet.modules()].count("DeltaConvBlock") == 7


@pytest.mark.slow
def test_a_student_of_the_joint_transformer_is_drawn_with(exported: Callable[[str], Path], tmp_path: Path) -> None:
    export = student(tmp_path, exported, of="joint")
    transformer = load_pipeline(str(export)).transformer
    assert [type(module).__name__ for module in transformer.modules()].count("DeltaConvBlock") == 2
    check_plain_diffusers_draws({"student": export}, tmp_path / "drawn")


@pytest.mark.slow
def test_plain_diffusers_draws_with_all_of_them(exported: Callable[[str], Path], tmp_path: Path) -> None:
    """A process that cannot import this project loads each export and answers with the same image."""
    check_plain_diffusers_draws({name: exported(name) for name in WALKS}, tmp_path)
