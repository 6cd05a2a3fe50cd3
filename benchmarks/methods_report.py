"""Tables of the methods study from its rows, of whatever was run.

    python -m benchmarks.methods_report                                    # Markdown, on standard output
    python -m benchmarks.methods_report --plot docs/methods_study.png      # score against time, of what was timed

Scores are means over tasks; kept is the share of the untouched model's score above chance, differences are in points,
with intervals of a paired bootstrap over items. Times are processor time of reading a prompt, beside the untouched
model in turn; the tower, which no method changes, is not in them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.methods_arms import PLAIN, RANDOM, SHARES, Arm, arms
from benchmarks.methods_data import CHANCE
from benchmarks.methods_study import FOLDER, UNTUNED
from benchmarks.region_rows import Row, Rows, above_chance, accuracy
from sparsight.common.bootstrap import Interval, compare, resampled_means, seed_of
from sparsight.common.tables import markdown_table

RESAMPLES = 4000


def main() -> None:
    """Print the tables of what was run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=FOLDER, help="folder of rows")
    parser.add_argument("--plot", type=Path, help="image to draw")
    options = parser.parse_args()
    rows = Rows(options.rows)
    print("\n\n".join(tables(rows)))
    if options.plot is not None:
        plot(rows.read("judge"), rows.read("time"), options.plot)


def tables(rows: Rows) -> list[str]:
    """The models, methods that drop tokens, and edits with compositions.

    Raises:
        SystemExit: The untouched model has no row, or rows are of models with other weights.
    """
    judged, timed = rows.read("judge"), rows.read("time")
    if PLAIN not in judged:
        raise SystemExit(f"{rows.folder} holds no row of the untouched model: run benchmarks.methods_study first")
    weights = {row["weights"] for row in (*judged.values(), *timed.values())}
    if len(weights) > 1:
        raise SystemExit(f"{rows.folder} holds rows of models with other weights ({', '.join(sorted(weights))})")
    found = [[model_line(judged[name], name) for name in (UNTUNED, PLAIN) if name in judged]]
    known = [arm for arm in arms() if arm.key in judged and arm.key != PLAIN]
    for share in SHARES:
        found.append([line(arm, judged, timed) for arm in known if arm.share == share and "+" not in arm.name])
    found.append([line(arm, judged, timed) for arm in known if arm.share is None or "+" in arm.name])
    return [markdown_table(lines) for lines in found if lines]


def plot(judged: Mapping[str, Row], timed: Mapping[str, Row], path: Path) -> None:
    """Draw what methods that drop tokens keep against the time that they leave, a line through the shares of each."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    names = dict.fromkeys(arm.name for arm in arms() if arm.share is not None and "+" not in arm.name)
    for number, name in enumerate(names):
        keys = [f"{name} {share:.0%}" for share in SHARES]
        found = [key for key in keys if key in judged and key in timed]
        times = [timed[key]["seconds_arm"] / timed[key]["seconds_plain"] for key in found]
        kept = [100 * above(judged[key]) / above(judged[PLAIN]) for key in found]
        random = name == RANDOM
        style: dict[str, Any] = (
            {"color": "black", "linewidth": 2.5} if random else {"color": f"C{number - 1}", "linewidth": 1}
        )
        axes.plot(
            times, kept, marker="oosv^D"[number % 6], markersize=5, label=name, zorder=3 if random else 2, **style
        )
    axes.plot([1], [100], "k*", markersize=11, label="untouched")
    axes.set_xlabel("processor time of reading a prompt, share of the untouched model's")
    axes.set_ylabel("score above chance that is kept, in %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2, frameon=False)
    figure.savefig(path, dpi=130)


def model_line(row: Row, name: str) -> dict[str, str]:
    """What a model without methods answers."""
    return {"model": name, **{task: f"{accuracy(right):.0%}" for task, right in row["right"].items()}}


def line(arm: Arm, judged: Mapping[str, Row], timed: Mapping[str, Row]) -> dict[str, str]:
    """One arm beside the untouched model, and beside the random reducer where tokens are dropped."""
    row, plain = judged[arm.key], judged[PLAIN]
    mine, theirs = draws(row), draws(plain)
    found = {
        "methods": arm.name,
        "share of tokens": "all" if arm.share is None else f"{arm.share:.0%}",
        "score": f"{score(row):.1%}",
        "kept above chance": f"{above(row) / above(plain):.0%}" if above(plain) > 0 else "",
        "points from untouched (95 %)": spanned(compare(mine, theirs).difference),
    }
    random = judged.get(f"{RANDOM} {arm.share:.0%}") if arm.share is not None and arm.name != RANDOM else None
    beside = "" if random is None else spanned(compare(mine, draws(random)).difference)
    found["points from random (95 %)"] = beside
    return found | cost(timed.get(arm.key))


def cost(row: Row | None) -> dict[str, str]:
    """What reading a prompt takes, as shares of the untouched model's."""
    if row is None:
        return dict.fromkeys(("prefill time", "FLOPs", "peak memory", "image tokens a layer"), "")
    shares = {"prefill time": "seconds", "FLOPs": "flops", "peak memory": "peak_bytes"}
    told = {name: f"{row[f'{key}_arm'] / row[f'{key}_plain']:.2f}" for name, key in shares.items()}
    return told | {"image tokens a layer": f"{row['image_tokens']:.0f}"}


def score(row: Row) -> float:
    """Mean accuracy of the tasks."""
    return float(np.mean([accuracy(right) for right in row["right"].values()]))


def above(row: Row) -> float:
    """Mean share of the way from chance to all right."""
    return above_chance(row["right"], CHANCE, row["right"])


def draws(row: Row) -> NDArray[Any]:
    """Scores of resamples; equal ones draw the same items, so that arms stay pairs."""
    tasks = []
    for task, right in row["right"].items():
        values = [[float(each)] for each in right]
        tasks.append(resampled_means(values, resamples=RESAMPLES, seed=seed_of(task))[:, 0])
    mean: NDArray[Any] = np.mean(tasks, axis=0)
    return mean


def spanned(interval: Interval) -> str:
    """An interval of points."""
    return f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}"


if __name__ == "__main__":
    main()
