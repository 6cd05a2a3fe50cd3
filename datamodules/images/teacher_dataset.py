"""What a teacher has drawn, as records."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from sparsight.common.disk.sample_cache import SampleCache
from sparsight.common.disk.shard_reader import ShardReader
from sparsight.diffusion.train.teacher_plan import TeacherPlan


class TeacherDataset(Dataset):
    """States or samples in a cache, read one by one from memory-mapped files.

    Args:
        cache: Filled cache.
        plan: What was sampled.
        first: Id of the first sample.
        count: Number of samples.
    """

    def __init__(self, cache: SampleCache, plan: TeacherPlan, *, first: int, count: int) -> None:
        self.cache = cache
        self.plan = plan
        self.first, self.count = first, count
        self._shards = ShardReader(cache)

    def __len__(self) -> int:
        """Number of states, or samples."""
        return self.count * self.plan.kept

    def __getitem__(self, position: int) -> dict[str, Any]:
        """State ``position % K`` of sample ``position // K``, or the sample itself."""
        sample, state = divmod(position, self.plan.kept)
        sample += self.first
        number, row = divmod(sample, self.plan.shard_size)
        item: dict[str, Any]
        if self.plan.mode == "samples":
            item = {"sample": self._shards.row(number, row, "sample").float(), "index": sample}
        else:
            item = {name: self._shards.row(number, (row, state), name) for name in ("xt", "timestep")}
            item["xt"] = item["xt"].float()
            item["index"] = sample * self.plan.steps + int(self._shards.row(number, (row, state), "step"))
        if self.plan.captions is None:
            return item | {"label": self._shards.row(number, row, "label")}
        return item | {"caption": self.plan.captions[sample % len(self.plan.captions)]}
