"""What was measured of every drawn sample by itself, so that two runs that drew the same can be compared in pairs.

Shape legend: N samples, R draws of a bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsight.common.bootstrap import resampled_means, seed_of
from sparsight.common.disk.files import write_text
from sparsight.common.errors import ConfigurationError, reason_of
from sparsight.common.tables import json_text
from sparsight.common.text import read_json
from sparsight.evaluation.questions.scores import Estimate, ScoreKey

if TYPE_CHECKING:  # the package of metrics takes long to import
    from sparsight.evaluation.images.samples import Combined, SampleValues

BEGINS = "drawn_"  # names of these files do
METHOD = "drawing"  # in the keys of scores
VERSION = 1


@dataclass(frozen=True)
class DrawnScores:
    """Values of the samples of a run, by the names of metrics.

    Args:
        drawn: What must be equal in runs that can be compared: seed, samples and size in pixels.
        conditions: Label or caption by the id of each sample.
        values: Of all samples, by metric, and how a run's value is made of them.
    """

    drawn: Mapping[str, Any]
    conditions: Mapping[int, Any]
    values: Mapping[str, tuple[Combined, Sequence[float]]]

    @classmethod
    def of(
        cls, found: Mapping[str, SampleValues], *, drawn: Mapping[str, Any], conditions: Mapping[int, Any]
    ) -> DrawnScores:
        """Those of metrics.

        Raises:
            ConfigurationError: A metric has not seen just the samples that have conditions.
        """
        ids = sorted(conditions)
        for name, each in found.items():
            if each.ids_N.tolist() != ids:
                raise ConfigurationError(f"{name} has values of {len(each.ids_N)} samples, and {len(ids)} were drawn")
        values = {name: (each.combined, each.values_N.tolist()) for name, each in found.items()}
        return cls(drawn, {each: conditions[each] for each in ids}, values)

    def asked(self) -> dict[str, Any]:
        """What must be equal in runs that are compared, by what it is called."""
        return {"how samples are drawn": dict(self.drawn), "conditions": dict(self.conditions)}

    def estimates(self, *, resamples: int) -> dict[ScoreKey, Estimate]:
        """Every metric with draws of a bootstrap over samples; equal samples are drawn alike in all runs."""
        found = {}
        for name, (combined, values) in self.values.items():
            values_N = np.asarray(values, dtype=np.float64)
            draws_R = resampled_means(values_N[:, None], resamples=resamples, seed=seed_of(METHOD))[:, 0]
            both = np.array([values_N.mean(), *draws_R])
            both = np.sqrt(both) if combined == "root mean" else both
            found[ScoreKey(METHOD, "all", "", name)] = Estimate(float(both[0]), both[1:])
        return found

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        content: dict[str, Any] = {"version": VERSION, "drawn": dict(self.drawn)}
        content["samples"] = [{"id": each, "condition": condition} for each, condition in self.conditions.items()]
        content["values"] = {name: {"combined": how, "values": v} for name, (how, v) in self.values.items()}
        write_text(path, json_text(content))

    @classmethod
    def load(cls, path: Path) -> DrawnScores:
        """What ``save`` wrote.

        Raises:
            ValueError: The file holds something else.
        """
        try:
            content: dict[str, Any] = read_json(path)
            if content["version"] != VERSION:
                raise ValueError(f"version {content['version']}")
            conditions = {int(each["id"]): each["condition"] for each in content["samples"]}
            values = {name: (each["combined"], list(each["values"])) for name, each in content["values"].items()}
            if not conditions or any(len(found) != len(conditions) for _, found in values.values()):
                raise ValueError(f"{len(conditions)} samples, values of {[len(found) for _, found in values.values()]}")
            return cls(content["drawn"], conditions, values)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} holds no values of drawn samples of version {VERSION}: {reason_of(error)}"
            ) from error
