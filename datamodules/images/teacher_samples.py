"""Batches that a teacher made itself: distillation without any data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch.utils.data import DataLoader, Subset, default_collate

from datamodules.images.teacher_dataset import TeacherDataset
from datamodules.images.teacher_options import TeacherSamplesLoading, TeacherSampling
from datamodules.process import ProcessDataModule
from datamodules.sampler import ResumableLoader, ResumableSampler, even_batch_size
from sparsight.common.captions import read_captions
from sparsight.common.disk.cache_options import CacheCompute, CacheOptions
from sparsight.common.disk.cache_settings import cache_key
from sparsight.common.disk.sample_cache import SampleCache
from sparsight.common.errors import require
from sparsight.common.hashes import SHA256
from sparsight.common.moved import takes_former_options
from sparsight.common.quantised.weights import check_quantisation
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.encoding import DTYPES
from sparsight.diffusion.surgery.rest.quantised import quantise
from sparsight.diffusion.train.teacher_plan import TeacherPlan
from sparsight.diffusion.train.teacher_samples import fill_cache

GUIDANCE = 2.0  # where nothing says another


@takes_former_options
class TeacherSamplesDataModule(ProcessDataModule):
    """Samples of a teacher, or states along its sampling trajectories, drawn once and kept on disk.

    A batch holds ``"label": int64 (B,)`` or ``"caption": list[str]``, unique ``"index": int64 (B,)`` and

    - ``mode: samples``: ``"sample": float32 (B, C, H, W)``, finished samples in model space, to be noised again;
    - ``mode: trajectory``: ``"xt": float32 (B, C, H, W)`` with ``"timestep": (B,)``, what the denoiser is asked about
      while sampling. There is no clean sample and so no target besides the teacher's own output.

    With guidance the denoiser meets every state both with and without its condition; batches carry the condition, the
    training module's ``condition_dropout`` takes it away. Classes are equally frequent, captions are dealt in turn.
    Starting noise is never that of metrics and sample grids, whatever the seeds.

    The cache lies in ``<cache.folder>/<key>``; the key covers the teacher's weights and all settings of the sampler.
    Finished shards are kept when a run is stopped or ``count`` grows; damaged ones are reported and made again.

    Args:
        teacher: Pipeline folder, shipped model or hub id; in the command ``model.teacher`` if not given.
        mode: ``samples`` or ``trajectory``.
        count: Samples, or trajectories, to train on.
        val_count: Further ones to validate on.
        states_per_trajectory: States kept of each trajectory, one from each of as many equal parts of it; over all
            trajectories every noise level is there. ``null`` keeps all.
        captions: Captions for text-to-image teachers: a list, or a text file with one in each line.
        sampling: How the teacher draws.
        cache: Where samples are kept, and how; in ``float32`` or ``float16``. Batches are float32.
        batch_size: States (or samples) a batch and process.
        num_workers: Loader processes; 0 loads in the main process.
        compute: Where samples are drawn (``auto`` is the first GPU if there is one), and how many together.
        seed: Decides starting noise and the order of training.
        loading: How the teacher is read, and what it is held in.

    Raises:
        FileNotFoundError: The caption file is missing.
        ValueError: No teacher, an option is out of range, options contradict each other, or there is less than one
            batch.
    """

    wing = "diffusion"
    follows: ClassVar[Mapping[str, str]] = {
        "teacher": "teacher",
        "sampling.guidance_scale": "sampling.guidance_scale",
        "loading.dtype": "loading.dtype",
        "loading.quantization": "loading.quantization",
    }
    names: ClassVar[Sequence[str]] = ("teacher",)
    agrees: ClassVar[Sequence[str]] = ("teacher", "sampling.guidance_scale")

    def __init__(
        self,
        teacher: str | None = None,
        *,
        mode: Literal["samples", "trajectory"] = "trajectory",
        count: int = 256,
        val_count: int = 32,
        states_per_trajectory: int | None = None,
        captions: list[str] | str | None = None,
        sampling: TeacherSampling = TeacherSampling(),
        cache: CacheOptions = CacheOptions("runs/teacher_samples"),
        batch_size: int = 64,
        num_workers: int = 0,
        compute: CacheCompute = CacheCompute(),
        seed: int = 0,
        loading: TeacherSamplesLoading = TeacherSamplesLoading(),
    ) -> None:
        super().__init__(num_workers=num_workers)
        self.teacher = self._named_model("teacher", teacher)
        self.pretrained_options = loading.source
        self.plan = TeacherPlan(
            mode=mode,
            steps=sampling.steps,
            guidance=GUIDANCE if sampling.guidance_scale is None else sampling.guidance_scale,
            states_per_trajectory=states_per_trajectory,
            captions=read_captions(captions),
            size=None if sampling.size is None else tuple(sampling.size),
            seed=seed,
            dtype=cache.dtype,
            shard_size=cache.shard_size,
        )
        self.count, self.val_count = count, val_count
        self.cache_dir, self.verify_days = Path(cache.folder), cache.verify_days
        self.batch_size, self.sample_batch_size = batch_size, compute.batch_size
        self.seed = seed
        self.device = compute.device
        self.teacher_dtype, self.teacher_quantization = loading.dtype, loading.quantization
        self.datasets: dict[str, TeacherDataset] = {}
        self._cache: SampleCache | None = None
        self._opened: SampleCache | None = None
        self._check_options()

    def _check_options(self) -> None:
        least = {
            "count": (self.count, 1),
            "val_count": (self.val_count, 0),
            "batch_size": (self.batch_size, 1),
        }
        for name, (value, minimum) in least.items():
            require(value >= minimum, name, value, f"{minimum} or more")
        if self.count * self.plan.kept < self.batch_size:
            raise ValueError(
                f"count={self.count} with {self.plan.kept} states each do not fill one batch of {self.batch_size}: "
                "raise count or lower batch_size"
            )
        self.plan.check_coverage(self.count)
        if self.teacher_quantization is not None:
            check_quantisation(self._quantised)

    @property
    def _quantised(self) -> str:
        return f"loading.quantization: {self.teacher_quantization}"

    def batch_shape(self, model: DiffusionModel) -> tuple[int, ...]:
        """Samples a batch, their sides in model space; known before there is any sample."""
        return self.batch_size, *(self.plan.size or model.sample_shape()[1:])

    def known_captions(self) -> Sequence[str]:
        """Those that samples will have."""
        return (self.plan.captions or ())[: self.count + self.val_count]

    def identity(self) -> dict[str, Any] | None:
        """Key of the samples' cache, which covers the teacher's weights and all sampler settings."""
        return None if self._opened is None else {"samples": cache_key(self._opened.settings)}

    def tried(self, folder: Path) -> TeacherSamplesDataModule:
        """Itself, with as few samples as fill a batch, in a cache of their own."""
        self.cache_dir = folder / "teacher_samples"
        self.count = min(self.count, -(-self.batch_size // self.plan.kept))
        self.val_count = min(self.val_count, self.batch_size)
        return self

    # ------------------------------------------------------------------------------------------------------ samples
    def prepare_data(self) -> None:
        """Draw what the cache lacks, in one process a machine.

        Raises:
            FileNotFoundError: There is no such teacher.
            ValueError: The cache was made with other settings or cannot be written, or the teacher's conditions do not
                go with ``captions``.
            NonFiniteError: The teacher yields NaN.
            ConfigurationError: What quantises is not installed, or there is nothing to quantise.
        """
        dtype = None if self.teacher_dtype is None else DTYPES[self.teacher_dtype]
        model = DiffusionModel.from_pretrained(self.teacher, dtype=dtype, **self.pretrained_options)
        self.plan.condition(torch.arange(1), model)
        cache = SampleCache(
            self.cache_dir,
            self.plan.settings(model) | self._held(),
            former=lambda: self.plan.settings(model, like=SHA256) | self._held(),
            verify_days=self.verify_days,
        )

        def place() -> None:
            model.denoiser.eval().requires_grad_(False)
            if self.teacher_quantization is not None:
                quantise(model.denoiser, self._quantised)
            model.to(_device(self.device), encoders=False)
            model.embed_ahead(self.known_captions(), self.plan.shape(model)[1:], _device(self.device))
            model.denoiser.to(_device(self.device))

        total = self.count + self.val_count
        fill_cache(cache, model, self.plan, total=total, sample_batch_size=self.sample_batch_size, place=place)
        self._cache = cache

    def _held(self) -> dict[str, Any]:
        """What of the cache's settings is beside the plan's: how the teacher is held, if not in float32."""
        held = {"teacher_dtype": self.teacher_dtype, "teacher_quantization": self.teacher_quantization}
        return {name: value for name, value in held.items() if value not in (None, "float32")}

    def setup(self, stage: str | None = None) -> None:
        """Open the shards; other processes are told by the first where they are.

        Raises:
            RuntimeError: ``prepare_data`` has not run.
        """
        cache = self._cache if self.trainer is None else self.trainer.strategy.broadcast(self._cache)
        if cache is None:
            raise RuntimeError("call prepare_data before setup: it makes the samples, or finds them in the cache")
        self._opened = cache
        self.datasets = {"train": TeacherDataset(cache, self.plan, first=0, count=self.count)}
        if self.val_count:
            self.datasets["val"] = TeacherDataset(cache, self.plan, first=self.count, count=self.val_count)

    # ------------------------------------------------------------------------------------------------------ loaders
    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches of equal size; the states that do not fill a last one are left out.

        Raises:
            ValueError: The states do not fill one batch on every process.
        """
        dataset = self.datasets["train"]
        sampler = ResumableSampler(dataset, num_replicas=self._world, rank=self._rank, seed=self.seed)
        loader = ResumableLoader(
            dataset,
            sampler=sampler,
            batch_size=self.batch_size,
            drop_last=True,
            **self._loader_options(default_collate),
        )
        if len(loader) == 0:
            raise ValueError(
                f"{len(dataset)} states do not fill one batch of {self.batch_size} on each of {self._world} processes: "
                "lower batch_size or raise count"
            )
        self._limit_epochs(loader)
        return loader

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """All states of the validation trajectories, none twice; an empty list if there are none.

        Every trajectory comes once before any comes again: the first records have as many conditions as there are.
        """
        if "val" not in self.datasets:
            return []
        dataset = Subset(self.datasets["val"], self._in_turn())
        batch_size = even_batch_size(len(dataset), batch_size=self.batch_size, processes=self._world)
        sampler = ResumableSampler(dataset, num_replicas=self._world, rank=self._rank, shuffle=False, drop_last=False)
        return DataLoader(dataset, sampler=sampler, batch_size=batch_size, **self._loader_options(default_collate))

    def _in_turn(self) -> list[int]:
        # each round takes another state of a trajectory than the last one, and of its neighbours: all noise levels
        kept, samples = self.plan.kept, range(self.val_count)
        return [sample * kept + (sample + turn) % kept for turn in range(kept) for sample in samples]

    def test_dataloader(self) -> DataLoader | list[DataLoader]:
        """The validation trajectories: there is nothing else that was held out."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader | list[DataLoader]:
        """What to draw images for: the condition of every validation sample, once."""
        if "val" not in self.datasets:
            return []
        dataset = self.datasets["val"]
        once = Subset(dataset, range(0, len(dataset), self.plan.kept))
        return DataLoader(once, batch_size=self.batch_size, **self._loader_options(default_collate))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
