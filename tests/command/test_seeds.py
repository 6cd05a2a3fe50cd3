"""Seeds that do not follow `seed_everything` are told."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonargparse import Namespace

from sparsight.command.checks.seeds import seeds_left
from sparsight.command.cli import main
from tests.tiny_distillation import distillation_config


def config(model: int | None = 0, data: int | None = 0, everything: int = 3) -> Namespace:
    parts = {"model": model, "data": data}
    options = {f"{part}.init_args.seed": seed for part, seed in parts.items() if seed is not None}
    found = Namespace(seed_everything=everything)
    for key, value in options.items():
        found[key] = value
    return found


def test_seeds_of_noise_and_order_that_stay_are_told_with_the_options() -> None:
    assert seeds_left(["fit", "--seed_everything", "3"], config()) == (
        "seed_everything 3 is for new weights: model.seed, which decides noise and timesteps, is 0; data.seed, which "
        "decides the order of records, and which of them val_share and limit leave out, is 0. To repeat a run with "
        "other chance give --model.seed 3 --data.seed 3 too"
    )
    told = seeds_left(["fit", "--seed_everything=3", "--model.seed", "3"], config(model=3))
    assert told is not None and told.endswith("give --data.seed 3 too") and "model.seed" not in told
    told = seeds_left(["fit", "--seed_everything=3"], config(model=None))
    assert told is not None and told.endswith("give --data.seed 3 too") and "model.seed" not in told


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {}),
        (["--seed_everything", "0"], {"everything": 0}),
        (["--seed_everything", "3", "--model.seed=4", "--data.seed", "0"], {"model": 4}),
        (["--seed_everything", "3"], {"model": None, "data": None}),
    ],
)
def test_what_was_meant_is_not_told(arguments: list[str], options: dict[str, int]) -> None:
    assert seeds_left(["fit", *arguments], config(**options)) is None


def test_a_run_tells_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", str(distillation_config(tmp_path)), "--seed_everything", "3", "--data.seed", "3"])
    told = capfd.readouterr()
    assert "give --model.seed 3 too" in told.out + told.err
