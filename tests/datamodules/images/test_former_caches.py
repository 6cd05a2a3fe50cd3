"""Caches that earlier versions made, whose settings tell weights by SHA-256, are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules import TeacherSamplesDataModule
from sparsight.common.disk.cache_options import CacheOptions
from sparsight.common.disk.cache_settings import has_former
from sparsight.common.disk.sample_cache import SampleCache
from sparsight.common.hashes import SHA256
from sparsight.diffusion.train.teacher_plan import TeacherPlan
from tests import tiny


def samples(teacher: Path, cache: Path) -> TeacherSamplesDataModule:
    folder = CacheOptions(str(cache))
    return TeacherSamplesDataModule(
        str(teacher),
        mode="samples",
        count=4,
        sampling={"steps": 2},
        batch_size=2,
        compute={"device": "cpu"},
        cache=folder,
    )


def test_samples_of_an_earlier_version_are_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = tiny.save_pixel_pipeline(tmp_path / "teacher")
    settings = TeacherPlan.settings
    with monkeypatch.context() as before:
        before.setattr(TeacherPlan, "settings", lambda plan, model, like=None: settings(plan, model, like=SHA256))
        samples(teacher, tmp_path / "cache").prepare_data()
    (folder,) = (tmp_path / "cache").iterdir()
    assert has_former(tmp_path / "cache") and has_former(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    for given in (tmp_path / "cache", folder):
        data = samples(teacher, given)
        data.prepare_data()
        assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [folder]
        assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    other = tiny.save_pixel_pipeline(tmp_path / "other", num_layers=1)
    samples(other, tmp_path / "cache").prepare_data()
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_settings_of_before_are_made_only_where_they_may_be_found(tmp_path: Path) -> None:
    def never() -> dict[str, Any]:
        raise AssertionError("hashing all weights once more takes time")

    cache = SampleCache(tmp_path, {"weights": "xxh3-128:1"}, former=never)
    cache.begin()
    assert SampleCache(tmp_path, {"weights": "xxh3-128:1"}, former=never).folder == cache.folder
    assert SampleCache(tmp_path, {"weights": "xxh3-128:2"}, former=never).folder != cache.folder
