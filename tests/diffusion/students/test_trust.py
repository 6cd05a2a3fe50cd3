"""What comes from elsewhere (exports, deltas, pipeline folders) causes no import that nobody here asked for."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blocks import DeltaConvBlock
from lightning_modules import DenoiserTraining
from sparsight.diffusion.export.delta import mount
from sparsight.diffusion.model.load import load_pipeline
from sparsight.diffusion.surgery.known_mixers import mixer_class
from tests import tiny

FIXTURES = Path(__file__).parents[2] / "fixtures" / "format_1"
SURPRISE = """
from pathlib import Path
from blocks.base import FeatureMixer

Path(__file__).with_name("ran").touch()


class Mixer(FeatureMixer):
    def flops(self, grid):
        return 0

    def forward(self, hidden, grid):
        return hidden
"""


@pytest.fixture
def surprise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module in the current folder, which is on the import path, that leaves a trace when it is run."""
    (tmp_path / "surprise.py").write_text(SURPRISE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "ran"
    sys.modules.pop("surprise", None)


def edited(source: Path, target: Path, change: Any) -> Path:
    """A copy of a JSON file's folder in which ``change`` was made."""
    folder = shutil.copytree(source.parent, target)
    content = json.loads(source.read_text())
    change(content)
    (folder / source.name).write_text(json.dumps(content))
    return folder


def renamed(sites: dict[str, Any], name: str, options: dict[str, Any] | None = None) -> None:
    for entry in sites.values():
        entry["class_path"] = name
        entry["options"] = entry["options"] if options is None else options


@pytest.mark.parametrize(
    "name", ["surprise.Mixer", "surprise.sub.Mixer", "surprise..Mixer", "Mixer", ".surprise.Mixer"]
)
def test_a_student_or_delta_that_names_a_module_does_not_run_it(surprise: Path, tmp_path: Path, name: str) -> None:
    student = shutil.copytree(FIXTURES / "student", tmp_path / "student")
    config = student / "transformer" / "config.json"
    content = json.loads(config.read_text())
    renamed(content["student"]["sites"], name)
    config.write_text(json.dumps(content))
    delta = edited(
        FIXTURES / "delta" / "plan.json", tmp_path / "delta", lambda plan: renamed(plan["record"]["sites"], name)
    )
    for attempt in (
        lambda: load_pipeline(str(student)),
        lambda: DenoiserTraining(pretrained=str(student)),
        lambda: mount(load_pipeline(str(FIXTURES / "teacher")), delta),
    ):
        with pytest.raises(ValueError, match=r"trust_remote_code|no module and class"):
            attempt()
    assert not surprise.exists()


def test_a_mixer_that_the_program_knows_or_trusts_is_used(surprise: Path) -> None:
    assert mixer_class("blocks.delta_conv.DeltaConvBlock") is DeltaConvBlock
    with pytest.raises(ValueError, match="trust_remote_code"):
        mixer_class("surprise.Mixer")
    assert not surprise.exists()
    trusted = mixer_class("surprise.Mixer", trust_remote_code=True)
    assert surprise.exists() and mixer_class("surprise.Mixer") is trusted, "it is known from now on"


@pytest.mark.parametrize("name", ["torch.nn.Linear", "os.system", "blocks.base.Grid", "transformers.Trainer"])
def test_what_is_no_mixer_is_not_made(name: str) -> None:
    with pytest.raises(ValueError, match="is no TokenMixer"):
        mixer_class(name)


def test_a_file_called_blocks_elsewhere_is_not_ours(surprise: Path, tmp_path: Path) -> None:
    (tmp_path / "blocks").mkdir()
    shutil.copy(tmp_path / "surprise.py", tmp_path / "blocks" / "surprise.py")
    for name in ("blocks.surprise.Mixer", "blocks.sub.surprise.Mixer"):
        with pytest.raises(ValueError, match="trust_remote_code"):
            mixer_class(name)
    assert not (tmp_path / "blocks" / "ran").exists() and not surprise.exists()


@pytest.mark.parametrize(
    ("part", "address"),
    [
        ("scheduler", ["surprise", "Mixer"]),
        ("vae", ["surprise", "Mixer"]),
        ("transformer", ["surprise", "Mixer"]),
        ("unet", ["surprise", "Mixer"]),
        ("_class_name", ["surprise", "Mixer"]),
        ("scheduler", ["diffusers", "DiffusionPipeline"]),  # its own index would be read without being looked at
        ("scheduler", ["surprise"]),
    ],
)
@pytest.mark.parametrize("kind", ["pixel", "stable"])
def test_an_index_that_names_a_module_does_not_run_it(
    surprise: Path, tmp_path: Path, part: str, address: list[str], kind: str
) -> None:
    save = tiny.save_pixel_pipeline if kind == "pixel" else tiny.save_sd_pipeline
    folder = save(tmp_path / "teacher")
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {part: address}))
    with pytest.raises(ValueError, match="so its code was not run"):
        load_pipeline(str(folder))
    assert not surprise.exists()
