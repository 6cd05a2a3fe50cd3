"""What a training step reads on the processor is there already."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer

from lightning_modules.diffusion import DiffusionModule
from sparsight.diffusion.model.randomness import Stream, sample_normal
from sparsight.diffusion.model.sampling import Sampling


def test_sample_ids_of_training_stay_on_the_cpu_where_draws_read_them() -> None:
    module = DiffusionModule(seed=0, sampling=Sampling(), max_skipped_steps=0)
    module.trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, barebones=True)
    batch = {"sample": torch.zeros(2, 3), "index": torch.tensor([7, 9])}
    for training, device in ((True, "cpu"), (False, "meta")):
        module.trainer.training = training
        moved = module.transfer_batch_to_device(batch, torch.device("meta"), 0)
        assert (moved["sample"].device.type, moved["index"].device.type) == ("meta", device)
        if training:
            sample_normal((2,), seed=0, step=0, index=moved["index"], stream=Stream.NOISE)  # a meta tensor has no list
