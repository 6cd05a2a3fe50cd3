"""The mixer study's samples: the same noise for every arm, one way of drawing for a folder."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from benchmarks.fashion_mnist_study import SUBJECT
from benchmarks.study_arms import ARMS, factory_of, name_of, plain_of, training_options
from benchmarks.study_runs import (
    draw,
    drawn,
    keep_protocol,
    read_rows,
    rmse_to_teacher,
    sample_file,
    train,
    training_of,
)
from blocks import Grid, Site
from sparsight.diffusion.export.standalone import reference_output
from sparsight.diffusion.model.load import load_pipeline
from sparsight.testing import apply_mixer, random_inputs
from tests import tiny
from tests.tiny_rows import few

HOW = {"samples": 5, "size_samples": 3, "steps": 2, "guidance": 2.0, "dtype": "float32"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A study of which one student is trained: a tiny DiT in place of the shipped one."""
    tiny.save_pixel_pipeline(tmp_path / "delta_conv_default" / "student")
    return tmp_path


def test_samples_are_drawn_once_and_compared_at_32_pixels(root: Path) -> None:
    how = Namespace(**HOW)
    draw(SUBJECT, "delta_conv_default", root, seed=0, size=8, protocol=how)
    path = sample_file(root, "delta_conv_default", seed=0, size=8)
    images, written = drawn(path, 32), path.stat().st_mtime_ns
    assert images.shape == (3, 1, 32, 32) and 0 <= float(images.min()) < float(images.max()) <= 1
    draw(SUBJECT, "delta_conv_default", root, seed=0, size=8, protocol=how)
    assert path.stat().st_mtime_ns == written
    teacher = sample_file(root, "teacher", seed=0, size=8)
    assert rmse_to_teacher(images, root, seed=0, size=8) is None
    teacher.parent.mkdir()
    teacher.write_bytes(path.read_bytes())
    assert rmse_to_teacher(images, root, seed=0, size=8) == 0
    assert rmse_to_teacher(1 - images, root, seed=0, size=8) == pytest.approx(
        float((1 - 2 * images).square().mean().sqrt()), rel=1e-5
    )
    draw(SUBJECT, "delta_conv_default", root, seed=1, size=8, protocol=how)
    assert not torch.equal(drawn(sample_file(root, "delta_conv_default", seed=1, size=8), 32), images)


def test_a_folder_has_samples_of_one_kind(root: Path) -> None:
    keep_protocol(root, Namespace(**HOW))
    keep_protocol(root, Namespace(**HOW, seeds=[1, 2]))
    with pytest.raises(SystemExit, match=r"drawn with steps 2 \(now 20\), guidance 2\.0 \(now 3\.0\): say the same"):
        keep_protocol(root, Namespace(**HOW | {"steps": 20, "guidance": 3.0}))
    assert read_rows(root) == []


@torch.no_grad()
@pytest.mark.parametrize("arm", few(ARMS, "focal_convolved", "inline"))
def test_an_arm_stands_at_the_sites_of_the_shipped_teacher(arm: str) -> None:
    torch.manual_seed(0)
    site = Site("transformer_blocks.0.attn1", channels=128, heads=4, head_dim=32, grid=Grid(16, 16))
    mixer = factory_of(plain_of(ARMS[arm]))(site)
    output = apply_mixer(mixer, random_inputs(mixer, site.grid, batch=1), site.grid)
    assert output.isfinite().all()


def test_a_run_is_named_by_what_differs_from_the_configuration() -> None:
    assert name_of("focal", None, 0) == "focal" and name_of("focal", "screen", 2) == "focal_screen_train2"
    options = training_options("focal", "screen", 2)
    stages = json.loads(options[options.index("--model.stages") + 1])
    assert [(each["objective"], each["steps"]) for each in stages] == [("layerwise", 200), ("end_to_end", 200)]
    assert options[options.index("--model.seed") + 1] == "2", "noise is drawn by it, whatever seed_everything says"
    guided = training_options("focal_cells_guided", "pairs", 0)
    assert [each["loss"]["guided"] for each in json.loads(guided[-1])] == [1.0, 1.0]
    assert not any("loss" in each for each in stages)


@pytest.mark.slow
def test_an_arm_without_parameters_is_exported_as_it_is(tmp_path: Path) -> None:
    train(SUBJECT, "focal_halo_4", tmp_path, budget=None, training_seed=0, precision="32-true")
    training = training_of(tmp_path, "focal_halo_4")
    assert training is not None and training["steps"] == 0 and training["validation"] == {}
    assert training["parameters"] == training["teacher_parameters"]
    student = load_pipeline(str(tmp_path / "focal_halo_4" / "student")).transformer
    teacher = load_pipeline("fashion_mnist_dit").transformer
    inputs, expected = reference_output(teacher)
    with torch.no_grad():
        torch.testing.assert_close(student(**inputs).sample, expected)
