"""What diffusion modules share: noised batches, samples, the denoiser over several processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn import Parameter

from lightning_modules.base import TrainedPartsModule
from sparsight.common.datamodule import datamodule_of, upcoming_batch
from sparsight.common.measure.announce_memory import announce_memory
from sparsight.common.measure.memory_table import MemoryEstimate
from sparsight.common.quantised.weights import Quantisation
from sparsight.common.training.dtypes import ON_PROCESSOR, sent
from sparsight.common.training.sharding import is_sharded
from sparsight.diffusion.export.standalone import student_state
from sparsight.diffusion.export.write import write_diffusion
from sparsight.diffusion.families.conditioning import drop_condition
from sparsight.diffusion.measure.run_memory import Shaped
from sparsight.diffusion.model.caption_memory import KnowsCaptions
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.draws import AheadOfTime, key_of
from sparsight.diffusion.model.sampling import Sampling, check_steps, sample, starting_noise
from sparsight.diffusion.model.timesteps import EVEN, Timesteps
from sparsight.diffusion.train.compiled import compile_blocks, compiles_on
from sparsight.diffusion.train.sharding import shard

STREAM_OFFSET_EVAL = 1_000_003  # evaluation draws must not repeat those of training


class DiffusionModule(TrainedPartsModule):
    """Base of modules that train a denoiser or a part of it.

    Args:
        seed: Decides timesteps, noise and condition dropout, together with step and sample index.
        sampling: How ``predict``, grids and metrics draw.
        max_skipped_steps: How many steps that are not finite are left out before the run ends.
    """

    wing = "diffusion"
    diffusion: DiffusionModel
    waits_for_steps = False
    quantised: Quantisation | None = None  # see StoredBase
    compiles: bool | Literal["auto"] = False  # whether the denoiser's blocks are compiled: see DenoiserCompute
    _ahead: AheadOfTime | None = None

    def __init__(self, *, seed: int, sampling: Sampling, max_skipped_steps: int) -> None:
        super().__init__(max_skipped_steps=max_skipped_steps)
        self.seed = seed
        self.sample_steps, self.guidance_scale = sampling.steps, sampling.guidance_scale

    def estimated_memory(self) -> MemoryEstimate:
        """What training will need of its device, before anything is there."""
        raise NotImplementedError

    def configure_callbacks(self) -> list[Callback]:
        """None; but what memory training takes is said here, before a teacher draws samples for hours."""
        super().configure_callbacks()
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.estimated_bytes = announce_memory(self.trainer, self.estimated_memory)
        return []

    def setup(self, stage: str) -> None:
        """Compile blocks, embed captions that are known, and move the VAE to where the denoiser will be later.

        Raises:
            ConfigurationError: The noise scheduler cannot take as many steps as ``sampling`` says, or blocks are to be
                compiled and torch cannot.
        """
        wanted = False if self.compiles == "auto" and stage != "fit" else self.compiles  # to compile takes minutes
        if self._trainer is not None and compiles_on(self.trainer.strategy.root_device, wanted):
            compile_blocks(self.diffusion.denoiser)
        check_steps(self.diffusion, self.sample_steps, name="sampling.steps")
        self.diffusion.to(self.device, encoders=False)
        data = datamodule_of(self._trainer)
        if isinstance(data, KnowsCaptions) and isinstance(data, Shaped):
            self.diffusion.embed_ahead(data.known_captions(), data.batch_shape(self.diffusion)[1:], self.device)
        callbacks = [] if self._trainer is None else self.trainer.callbacks  # type: ignore[attr-defined]
        drawn = [caption for each in callbacks if isinstance(each, KnowsCaptions) for caption in each.known_captions()]
        if drawn:
            self.diffusion.embed_ahead(drawn, self.diffusion.sample_shape()[1:], self.device)

    def configure_model(self) -> None:
        """Split the denoiser over the processes of a ModelParallelStrategy (FSDP2); nothing under other strategies."""
        if self.device_mesh is not None and not is_sharded(self.diffusion.denoiser):
            shard(self.diffusion.denoiser, self.device_mesh, but=self.kept_whole())

    def kept_whole(self) -> Sequence[Parameter]:
        """Parameters that no strategy splits over processes."""
        return []

    # -- exports -------------------------------------------------------------------------------------------------

    def whole_base(self) -> AbstractContextManager[None]:
        """The denoiser as an export holds it: see ``StoredBase``; of others as it is."""
        return nullcontext()

    def write_export(self, folder: Path, name: str, *, processor: Any, **facts: Any) -> None:
        """Write a pipeline folder; arguments as those of :func:`sparsight.diffusion.export.write.write_diffusion`."""
        write_diffusion(self, folder, name, **facts)

    def export_bytes(self) -> int:
        """Weights of the whole pipeline, in the precision in which they are held."""
        parts = (part for part in self.diffusion.pipeline.components.values() if isinstance(part, torch.nn.Module))
        return sum(p.numel() * p.element_size() for part in parts for p in part.parameters())

    def rehearse_export(self, processor: Any) -> None:
        """See that nothing stands around the denoiser's layers; all else is refused where the module is made.

        Raises:
            ValueError: There is an adapter, or something else that no export holds.
        """
        student_state(self.diffusion.denoiser)

    # -- batches -------------------------------------------------------------------------------------------------

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; of training samples what the processor reads stays there, so that it never waits for that."""
        if not self.trainer.training or not isinstance(batch, Mapping):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        kept = {name: batch[name] for name in ON_PROCESSOR if name in batch}
        others = {name: value for name, value in batch.items() if name not in kept}
        return kept | super().transfer_batch_to_device(others, device, dataloader_idx)

    def noised(
        self, batch: Mapping[str, Any], *, step: int, condition_dropout: float, timesteps: Timesteps = EVEN
    ) -> dict[str, Any]:
        """The batch contract with ``xt``, ``timestep``, ``level`` and, for clean samples, ``target`` added.

        Args:
            batch: What the datamodule gave.
            step: Optimiser step that the draws belong to.
            condition_dropout: Share of samples that lose their condition.
            timesteps: From which noise levels are drawn, unless the batch has some.
        """
        prepared = self.diffusion.prepare(batch)
        process = self.diffusion.process
        shape = () if "xt" in prepared else prepared["sample"].shape[1:]
        key = key_of(self.seed, step, batch["index"], shape)
        draws = key.draws() if self._ahead is None else self._ahead.take(key)
        if condition_dropout > 0:
            prepared["cond"] = drop_condition(prepared["cond"], prepared["uncond"], draws.dropout < condition_dropout)
        if "xt" in prepared:
            prepared["level"] = process.level(prepared["timestep"])
            prepared["timestep"] = sent(prepared["timestep"], prepared["xt"].device)
            return prepared
        clean = prepared["sample"]
        level = self.diffusion.levels(draws.timestep, clean.shape[2:], timesteps)
        noise = sent(draws.noise, clean.device).to(clean.dtype)
        prepared |= {
            "level": level,
            "timestep": sent(process.timestep(level), clean.device),
            "xt": process.add_noise(clean, noise, level),
            "target": process.target(clean, noise, level),
        }
        return prepared

    def draw_ahead(self, noised: Mapping[str, Any], batch_idx: int) -> None:
        """Let a thread draw for the batch that comes next, if that is known; wrong guesses cost nothing but the thread.

        Args:
            noised: The batch of this step, whose shape the next one is expected to have.
            batch_idx: Its number, which says whether the next one belongs to another optimiser step.
        """
        upcoming = upcoming_batch(self.trainer)
        if upcoming is None or "target" not in noised:  # stored states have their noise
            return
        if self._ahead is None:
            self._ahead = AheadOfTime(pinned=self.device.type == "cuda")
        step = self.global_step + ((batch_idx + 1) % self.trainer.accumulate_grad_batches == 0)
        self._ahead.begin(key_of(self.seed, step, upcoming["index"], noised["target"].shape[1:]))

    def on_train_end(self) -> None:
        """End the thread that draws."""
        super().on_train_end()
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Images (B, C, H, W) in [0, 1], one for every condition of the batch, with the batch's ids."""
        return {"images": self.draw(batch, batch["index"]), "index": batch["index"]}

    def draw(self, batch: Mapping[str, Any], index: Tensor) -> Tensor:
        """Sample images in [0, 1] for the labels or captions of ``batch``; equal ids give equal starting noise."""
        return self.diffusion.decode(self.draw_latents(batch, index))

    def draw_latents(self, batch: Mapping[str, Any], index: Tensor) -> Tensor:
        """Sample in model space for the conditions of ``batch``; equal ids give equal starting noise."""
        noise = starting_noise(self.diffusion.sample_shape(), seed=self.seed, index=index)
        return sample(self.diffusion, batch, noise, steps=self.sample_steps, guidance=self.guidance_scale)
