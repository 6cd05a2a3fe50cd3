"""Methods of recipes on tiny models of all families: which serve them, whether they keep their promises, their cost.

Run ``python -m benchmarks.methods`` in the repository; ``--families llava,gemma3`` and ``--methods fast_v,aki`` take
some. The exit status is 1 if a method breaks a promise of ``sparsight.lvlm.methods.conformance`` anywhere. Timed is the
prompt of a tiny model, where the methods' own work is nearly all there is: an upper bound of their cost, and no gain.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch

from blocks.tokens import Edit
from sparsight.common.measure.latency import Timing, time_in_turn
from sparsight.common.tables import format_table
from sparsight.lvlm.methods.conformance import check_methods, left_padded
from sparsight.lvlm.methods.recipe import Recipe

Methods = Callable[[], Sequence[Edit]]
TIMED = "llava"  # family whose prompts are timed


def row(name: str, methods: Methods, families: Sequence[str], tiny: Any) -> tuple[dict[str, str], bool]:
    """One line of the table, and whether every promise was kept."""
    served, broken, worst = [], [], 0.0
    for family in families:
        if not tiny.is_served(family, name):
            continue
        model, samples = tiny.tried(family)
        try:
            asked = {"tolerance": tiny.NEAR[family], "changes": tiny.changes(family, name)}
            found = check_methods(methods, model, samples, **asked)
        except AssertionError as error:
            broken.append(f"{family}: {error}")
            continue
        served.append(family)
        worst = max(worst, found["decoded"])
    timed = f"{slowdown(methods, tiny):.2f}" if TIMED in served else "-"
    told = "; ".join(broken) or f"kept, logits within {worst:.0e}"
    shown = {"methods": name, "families": str(len(served)), "conformance": told, "prompt, times plain": timed}
    return shown, not broken


def slowdown(methods: Methods, tiny: Any) -> float:
    """How many times as long a tiny model takes for a prompt."""
    model, samples = tiny.tried(TIMED)
    batch, recipe = left_padded(samples), Recipe(methods())

    @torch.no_grad()
    def plain() -> None:
        model(**batch)

    @torch.no_grad()
    def edited() -> None:
        with recipe.on(model):
            model(**batch)

    times = time_in_turn({"plain": plain, "edited": edited}, device=torch.device("cpu"))
    medians = {name: time.median if isinstance(time, Timing) else time.seconds for name, time in times.items()}
    return medians["edited"] / medians["plain"]


def chosen(known: Mapping[str, Any] | Sequence[str], wanted: str | None, kind: str) -> list[str]:
    """Names of a list with commas, all if there is none.

    Raises:
        SystemExit: One is not known.
    """
    names = list(known) if wanted is None else wanted.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"{kind}: there is no {', '.join(unknown)}; known are {', '.join(known)}")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 0 if all promises were kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families")
    parser.add_argument("--methods")
    options = parser.parse_args(arguments)
    tiny = import_module("tests.tiny_methods")
    families = chosen(tiny.SERVED, options.families, "--families")
    names = chosen(tiny.METHODS, options.methods, "--methods")
    rows = [row(name, tiny.METHODS[name], families, tiny) for name in names]
    print(format_table([shown for shown, _ in rows]))
    return 0 if all(kept for _, kept in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
