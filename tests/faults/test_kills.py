"""Killed at any moment, a run that is given again ends as if nothing had happened, and leaves nothing broken behind.

``make test-faults`` kills every kind of run at many moments, by its changes of files and by time; one fixed moment is
tried by ``make test`` too, others by ``make test-slow``. SPARSIGHT_KILLS and SPARSIGHT_SEED choose how many moments of
a kind, and which.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_kills import Ended, Moment, Runs
from tests.tiny_reload import read_back_here
from tests.tiny_rows import few
from tests.tiny_runs import SCENARIOS

KILLS = int(os.environ.get("SPARSIGHT_KILLS", "10"))
SEED = int(os.environ.get("SPARSIGHT_SEED", "0"))


class Kind:
    """One kind of run: its inputs, and how it ends undisturbed."""

    def __init__(self, name: str, folder: Path, runs: Runs) -> None:
        self.scenario, self.runs = SCENARIOS[name], runs
        self.inputs = folder / "inputs"
        self.inputs.mkdir()
        self.scenario.prepare(self.inputs)
        whole = shutil.copytree(self.inputs, folder / "whole")
        self.undisturbed = self.run(whole)
        assert self.undisturbed.code == 0, self.undisturbed.text[-3000:]
        self.wanted = self.scenario.outcome(whole)

    def run(self, folder: Path, killed: Moment | None = None) -> Ended:
        elsewhere = {"TMPDIR": "/dev/shm"}  # another file system, from which nothing can be renamed into the folder
        return self.runs.run(
            self.scenario.arguments, folder, killed=killed, before=read_back_here, environment=elsewhere
        )

    def moments(self, count: int) -> list[Moment]:
        """Half of them by changes of files, half by time."""
        draw = random.Random(SEED)
        changes = [Moment(change=draw.randint(1, self.undisturbed.changes)) for _ in range((count + 1) // 2)]
        return changes + [Moment(seconds=draw.uniform(0, self.undisturbed.seconds)) for _ in range(count // 2)]

    def survive(self, folder: Path, *killed: Moment) -> None:
        """Kill a run at each of the moments, one after the other, then let it end and compare."""
        shutil.copytree(self.inputs, folder)
        for moment in killed:
            self.run(folder, moment)
            check_nothing_is_broken(folder)
        ended = self.run(folder)
        story = f"killed at {', '.join(map(str, killed))}"
        assert ended.code == 0, f"{story}: {ended.text[-3000:]}"
        check_equal(self.scenario.outcome(folder), self.wanted, story)
        left = [path for path in folder.rglob(".*") if any(end in path.name for end in (".part", ".earlier"))]
        assert not left, f"{story}: left {left}"


def check_nothing_is_broken(folder: Path) -> None:
    """What has its final name is whole."""
    for path in folder.rglob("*.ckpt"):
        if not path.name.startswith("."):
            torch.load(path, weights_only=True)
    for path in (folder / "student").rglob("*.safetensors"):
        from safetensors.torch import load_file

        load_file(path)


def check_equal(found: Any, wanted: Any, story: str, at: str = "") -> None:
    if isinstance(wanted, torch.Tensor):
        assert torch.equal(found, wanted), f"{story}: {at} differs"
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), f"{story}: {at} has {found.keys() ^ wanted.keys()}"
        for key, value in wanted.items():
            check_equal(found[key], value, story, f"{at}.{key}")
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted), f"{story}: {at} has another length"
        for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
            check_equal(one, other, story, f"{at}.{number}")
    else:
        assert found == wanted, f"{story}: {at} is {found!r}, not {wanted!r}"


@pytest.fixture(scope="module")
def runs() -> Runs:
    return Runs()


@pytest.mark.faults
@pytest.mark.parametrize("name", SCENARIOS)
def test_runs_of_every_kind_survive_kills_at_many_moments(name: str, tmp_path: Path, runs: Runs) -> None:
    kind = Kind(name, tmp_path, runs)
    for number, moment in enumerate(kind.moments(KILLS)):
        kind.survive(tmp_path / str(number), moment)
        shutil.rmtree(tmp_path / str(number))
    first, second, *_ = kind.moments(4)
    kind.survive(tmp_path / "twice", first, second)


@pytest.fixture(scope="module")
def distillation(tmp_path_factory: pytest.TempPathFactory, runs: Runs) -> Kind:
    return Kind("distillation", tmp_path_factory.mktemp("distillation"), runs)


@pytest.mark.parametrize("share", few((0.3, 0.75, 0.97), 0.75))  # of its changes: a checkpoint, a later one, the export
def test_a_distillation_survives_kills_while_it_writes(share: float, distillation: Kind, tmp_path: Path) -> None:
    distillation.survive(tmp_path / "killed", Moment(change=int(share * distillation.undisturbed.changes)))
