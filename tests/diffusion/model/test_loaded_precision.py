"""Weights come into memory once, in the wished precision, and are known by the hash of what is stored."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparsight.common.hashes import state_hash
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.identity import stored_hash, stored_weights_of
from sparsight.diffusion.model.load import denoiser_name, load_pipeline
from tests import tiny
from tests.tiny_distillation import distillation
from tests.tiny_flux import save_flux_pipeline
from tests.tiny_processes import server
from tests.tiny_rows import few
from tests.tiny_wan import save_wan_pipeline

SAVE: dict[str, Callable[[Path], Path]] = {
    "sd": tiny.save_sd_pipeline,
    "pixel_dit": tiny.save_pixel_pipeline,
    "flux": save_flux_pipeline,
    "wan": save_wan_pipeline,
}
MB = 1 << 20


def never() -> dict[str, torch.Tensor]:
    raise AssertionError("the weights were loaded twice")


def base_hash(denoiser: torch.nn.Module) -> str:
    return stored_hash(denoiser, stored_weights_of(denoiser, variant=None), never)


@pytest.mark.parametrize("family", few(SAVE, "sd", "pixel_dit"))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_what_is_loaded_is_what_is_stored_in_the_wished_precision(
    tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    folder = str(SAVE[family](tmp_path / "stored"))
    stored, loaded = load_pipeline(folder, dtype=torch.float32), load_pipeline(folder, dtype=dtype)
    for name, part in stored.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        found = loaded.components[name].state_dict()
        kept = [key for key, value in found.items() if value.dtype == torch.float32]
        assert len(kept) == len(found) if name == "vae" else len(kept) < len(found)
        for key, value in part.state_dict().items():
            torch.testing.assert_close(found[key], value.to(found[key].dtype), rtol=0, atol=0)
    name = denoiser_name(stored)
    wanted = state_hash(stored.components[name].state_dict())
    assert base_hash(loaded.components[name]) == wanted


def test_a_variant_and_a_student_are_known_by_their_weights_in_fp32(tmp_path: Path) -> None:
    folder = tiny.save_sd_pipeline(tmp_path / "base")
    load_pipeline(str(folder)).to(torch.float16).save_pretrained(folder, variant="fp16")
    modules = [
        distillation(str(folder), loading={"variant": "fp16", "dtype": dtype})
        for dtype in ("float32", "bfloat16", "float16")
    ]
    assert len({module.teacher_hash for module in modules}) == 1
    assert modules[0].teacher_hash != distillation(str(folder)).teacher_hash


def load_and_measure(folder: Path, answer: Path) -> None:
    """Write the most private memory that loading took beyond what was there, in bytes."""

    def private() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    before, most, done = private(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            most[0] = max(most[0], private())

    watching = threading.Thread(target=watch)
    watching.start()
    model = DiffusionModel.from_pretrained(str(folder), dtype=torch.bfloat16)
    base_hash(model.denoiser)
    done.set()
    watching.join()
    answer.write_text(str(most[0] - before))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of a process")
def test_no_second_copy_of_the_weights_is_ever_in_memory(tmp_path: Path) -> None:
    folder = tiny.save_pixel_pipeline(tmp_path / "base", attention_head_dim=256, num_layers=10)
    size = sum(path.stat().st_size for path in (folder / "transformer").glob("*.safetensors")) // 2
    assert size > 90 * MB
    child = server().Process(target=load_and_measure, args=(folder, tmp_path / "bytes"))
    child.start()
    child.join(120)
    assert int((tmp_path / "bytes").read_text()) < 1.3 * size


def test_weights_in_several_files_are_hashed_as_one(tmp_path: Path) -> None:
    whole = load_pipeline(str(tiny.save_pixel_pipeline(tmp_path / "whole")))
    whole.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts" / "transformer").glob("*.safetensors"))) > 1
    loaded = load_pipeline(str(tmp_path / "parts"), dtype=torch.bfloat16)
    wanted = state_hash(whole.transformer.state_dict())
    assert base_hash(loaded.transformer) == wanted
