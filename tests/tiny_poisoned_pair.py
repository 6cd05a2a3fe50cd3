"""What each of two processes does in test_finite_guard: meet an image that is not finite on one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from blocks import NoMixing
from callbacks import TrainableEMA
from lightning_modules import AttentionDistillation
from sparsight.common.finite import NonFiniteError
from sparsight.common.training.processes import everywhere
from sparsight.diffusion.train.stages import Stage
from tests import tiny
from tests.tiny_poison import Poison


def main(rank: int, folder: Path) -> None:
    """One process of two."""
    own = folder / str(rank)
    own.mkdir()
    found: dict[str, Any] = {}
    sharded = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False)
    strategies: dict[str, Any] = {"ddp": DDPStrategy(), "fsdp2": sharded, "left_out": DDPStrategy()}
    for name, strategy in strategies.items():
        accumulate = 2 if name == "ddp" else 1
        module = AttentionDistillation(
            str(folder / "teacher"),
            NoMixing,
            [Stage("layerwise", 4, warmup_steps=1)],
            trained={"init_samples": 0},
            max_skipped_steps=int(name == "left_out"),
        )
        trainer = Trainer(
            default_root_dir=own,
            accelerator="cpu",
            devices=2,
            strategy=strategy,
            accumulate_grad_batches=accumulate,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            max_epochs=-1,
            callbacks=[Poison([2 * accumulate], rank=1), TrainableEMA()],
        )
        try:
            trainer.fit(module, tiny.image_data(own, count=48, batch_size=2))
        except NonFiniteError as error:
            found[name] = [trainer.global_step, str(error)]
        else:
            weights = {key: value.sum().item() for key, value in module.state_dict().items()}
            alike = all(other == weights for other in everywhere(weights))
            found[name] = [trainer.global_step, module.guard.skipped, alike]
    torch.save(found, folder / f"found_{rank}.pt")
