"""What a run has left in its log folder."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sparsight.common.disk.yaml_files import read_yaml
from sparsight.common.errors import ConfigurationError
from sparsight.common.text import read_json
from sparsight.diffusion.measure.report import COSTS
from sparsight.evaluation.reform_eval.report import FILE, read_report, score_lines
from sparsight.lvlm.chat.show import CONVERSATIONS
from sparsight.lvlm.surgery.layer_record import LAYERS
from sparsight.publish.facts import Metric, read_metrics
from sparsight.publish.geneval import FOLDER, RESULTS

CONFIG = "config.yaml"
Curve = list[tuple[int, float]]
_STEP = re.compile(r"step_(\d+)")
_LEFT = (CONFIG, "metrics.csv", "events.out.tfevents.*", FILE)  # by runs; those of Python have no configuration
_NOT_CURVES = ("epoch", "step", "hp_metric")


@dataclass(frozen=True)
class RunFolder:
    """What is known of a run.

    Attributes:
        name: What it is called beside others.
        folder: Its log folder.
        config: Its configuration; empty if the folder has none.
        text: The configuration as it was written.
        curves: What was logged, by name: steps and values in order.
        grids: Images of samples by step.
        metrics: Values with their protocols, by stage and step.
        costs: Parameters and FLOPs of sites and whole, as ``ReplacementReport.as_dict`` gives them.
        checkpoint: The newest checkpoint.
        conversations: Records as an image-text model saw them, with what carried the loss.
        layers: Decoder layers of an image-text model: ``depth``, those ``tuned``, and ``removals`` in order.
        scores: Lines of a suite's table, with equal columns.
        begun_in: Folder of the run that it goes on with, whose curves and images come first in its own.
    """

    name: str
    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    grids: Mapping[int, Path] = field(default_factory=dict)
    metrics: Mapping[str, list[Metric]] = field(default_factory=dict)
    costs: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    conversations: Sequence[Mapping[str, Any]] = ()
    layers: Mapping[str, Any] = field(default_factory=dict)
    scores: Sequence[Mapping[str, str]] = ()
    begun_in: Path | None = None

    @property
    def trained(self) -> bool:
        """Whether something was trained, not only measured."""
        return trained_here(self.folder) or any(name.startswith("train/") for name in self.curves)

    @property
    def last(self) -> dict[str, float]:
        """The last value of every curve."""
        return {name: curve[-1][1] for name, curve in self.curves.items()}

    @property
    def steps(self) -> int:
        """Steps that were taken when the last value was logged (Lightning counts from 0) or the last samples drawn."""
        return max((*(curve[-1][0] + 1 for curve in self.curves.values()), *self.grids), default=0)


def read_run(place: str | Path, *, name: str | None = None) -> RunFolder:
    """Read the log folder of a run.

    Args:
        place: The folder of a run, or one above it: ``find_run``.
        name: What the run is called; the folder's own name, with those above it that say more, if not given.

    Raises:
        ConfigurationError: There is no such folder, or no run in it.
    """
    run = _read(find_run(Path(place)), name=name)
    earlier = _before(run)
    return run if earlier is None else _joined(read_run(earlier), run)


def _read(folder: Path, *, name: str | None) -> RunFolder:
    text = (folder / CONFIG).read_text(encoding="utf-8") if (folder / CONFIG).is_file() else ""
    curves = {key: curve for key, curve in {**_tensorboard(folder), **_csv(folder)}.items() if curve}
    checkpoints = sorted(folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    return RunFolder(
        name=name or _name(folder),
        folder=folder,
        config=read_yaml(folder / CONFIG) if text else {},
        text=text,
        curves=curves,
        grids=dict(sorted(_by_step(folder / "samples").items())),
        metrics={path.stem: read_metrics(path) for path in sorted((folder / "metrics").glob("*.json"))}
        | {path.parent.name: read_metrics(path) for path in (folder / FOLDER).glob(RESULTS)},
        costs=read_json(folder / COSTS) if (folder / COSTS).is_file() else {},
        checkpoint=checkpoints[-1] if checkpoints else None,
        conversations=read_json(folder / CONVERSATIONS) if (folder / CONVERSATIONS).is_file() else (),
        layers=read_json(folder / LAYERS) if (folder / LAYERS).is_file() else {},
        scores=_scores(folder),
    )


def _before(run: RunFolder) -> Path | None:
    """The folder that lies beside a resumed run's and holds its first steps: of the same model, and begun earlier."""
    first = _first_step(run)
    if first is None or not run.config:
        return None
    beside = [each for each in runs_below(run.folder.parent) if each.parent == run.folder.parent and each != run.folder]
    for folder in reversed([each for each in beside if (each / CONFIG).is_file()]):
        if _same_run(read_yaml(folder / CONFIG), run.config):
            begun = _first_step(_read(folder, name=None))
            if begun is not None and begun < first:
                return folder
    return None


def _same_run(earlier: Mapping[str, Any], run: Mapping[str, Any]) -> bool:
    """Whether two configurations are of one run, which may have gone on with more stages than it was begun with."""
    steps = [(config.get("trainer") or {}).get("log_every_n_steps") for config in (earlier, run)]
    (first, before), (second, now) = (_without_stages(config.get("model") or {}) for config in (earlier, run))
    return first == second and before == now[: len(before)] and steps[0] == steps[1]


def _without_stages(model: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    options = dict(model.get("init_args") or {})
    stages = options.pop("stages", None) or []
    return {**model, "init_args": options}, stages


def _first_step(run: RunFolder) -> int | None:
    return min((curve[0][0] for name, curve in run.curves.items() if name.startswith("train/")), default=None)


def _joined(earlier: RunFolder, run: RunFolder) -> RunFolder:
    """A resumed run with what came before its own first step."""
    first = _first_step(run) or 0
    names = dict.fromkeys([*earlier.curves, *run.curves])
    curves = {
        name: [point for point in earlier.curves.get(name, []) if point[0] < first] + run.curves.get(name, [])
        for name in names
    }
    grids = {step: path for step, path in earlier.grids.items() if step < first} | dict(run.grids)
    kept = {name: curve for name, curve in curves.items() if curve}
    return replace(run, curves=kept, grids=grids, begun_in=earlier.folder)


def find_run(place: Path) -> Path:
    """The log folder that is meant: of several below it the newest that trained or asked a suite, else the newest.

    Raises:
        ConfigurationError: There is no such folder, or no run in it.
    """
    if not place.is_dir():
        raise ConfigurationError(f"report: {str(place)!r} is no folder; name a run's log folder, which holds {CONFIG}")
    if _is_run(place):
        return place
    found = runs_below(place)
    if not found:
        raise ConfigurationError(
            f"report: {str(place)!r} holds no run: there is no {CONFIG}, nothing of a logger and no {FILE} of an "
            "evaluation in it or below it"
        )
    return next((folder for folder in reversed(found) if trained_here(folder) or (folder / FILE).is_file()), found[-1])


def runs_below(place: Path) -> list[Path]:
    """Log folders below one, the newest last; writing a page into one makes it no newer."""
    times: dict[Path, float] = {}
    for path in (path for name in _LEFT for path in place.rglob(name)):
        times[path.parent] = max(times.get(path.parent, 0.0), path.stat().st_mtime)
    return sorted(times, key=lambda folder: times[folder])


def trained_here(folder: Path) -> bool:
    """Whether a log folder holds what only training leaves."""
    return any((folder / name).is_file() for name in (COSTS, CONVERSATIONS, LAYERS)) or any(folder.rglob("*.ckpt"))


def _is_run(folder: Path) -> bool:
    return any(any(folder.glob(name)) for name in _LEFT)


def _scores(folder: Path) -> list[dict[str, str]]:
    if not (folder / FILE).is_file():
        return []
    report = read_report(folder)
    return score_lines(report["scores"], report["about"]["tasks"], report["chances"])


def _name(folder: Path) -> str:
    """``runs/quickstart/lightning_logs/version_0`` is ``quickstart/version_0``."""
    parts = [part for part in folder.resolve().parts if part not in ("lightning_logs", "runs")]
    return "/".join(parts[-2:])


def _tensorboard(folder: Path) -> dict[str, Curve]:
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    # slow to import, and needed when a run is over
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
    return {
        tag: _in_order((event.step, event.value) for event in events.Scalars(tag))
        for tag in events.Tags()[SCALARS]
        if tag not in _NOT_CURVES
    }


def _csv(folder: Path) -> dict[str, Curve]:
    path = folder / "metrics.csv"
    if not path.is_file():
        return {}
    curves: dict[str, Curve] = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name and name not in _NOT_CURVES:
                    curves[name].append((int(float(row.get("step") or 0)), float(value)))
    return {name: _in_order(curve) for name, curve in curves.items()}


def _in_order(points: Any) -> Curve:
    """By step; what was logged again after resuming counts once, with its later value."""
    return sorted(dict(points).items())


def _by_step(folder: Path) -> dict[int, Path]:
    found = {path: _STEP.search(path.stem) for path in folder.glob("*.png")}
    return {int(match[1]): path for path, match in found.items() if match}
