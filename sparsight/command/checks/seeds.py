"""The seeds that a run has beside `seed_everything`, and that do not follow it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SEED = "seed_everything"
DECIDES = {  # seeds of their own, and what they decide
    "model": "noise and timesteps",
    "data": "the order of records, and which of them val_share and limit leave out",
}


def seeds_left(arguments: Sequence[str], config: Any) -> str | None:
    """What to tell of seeds that stay as they are where `seed_everything` alone is given.

    Args:
        arguments: Of the command.
        config: Of the verb, as parsed.
    """
    typed = {argument.partition("=")[0].removeprefix("--") for argument in arguments}
    wanted = config.get(SEED)
    keys = (f"{part}.init_args.seed" for part in DECIDES)
    left = {key.split(".")[0]: config[key] for key in keys if config.get(key) is not None}
    left = {part: seed for part, seed in left.items() if seed != wanted and f"{part}.seed" not in typed}
    if SEED not in typed or not left:
        return None
    told = "; ".join(f"{part}.seed, which decides {DECIDES[part]}, is {seed}" for part, seed in left.items())
    options = " ".join(f"--{part}.seed {wanted}" for part in left)
    return f"{SEED} {wanted} is for new weights: {told}. To repeat a run with other chance give {options} too"
