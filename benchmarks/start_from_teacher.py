"""Does starting a mixer from its teacher help? Relative L2 per site at the start and after some layer-wise steps.

    python -m benchmarks.start_from_teacher --data /usr/share/datasets/fashion-mnist

Every arm sees the same batches and draws; the errors are those of held-out images at fixed timesteps and noise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.fashion_mnist import PADDED
from blocks import DeltaConvBlock
from datamodules import IdxRecords, ImageDataModule
from lightning_modules import AttentionDistillation
from sparsight.common.tables import format_table
from sparsight.diffusion.train.stages import Stage
from sparsight.diffusion.train.trained_parts import TrainedParts

HELD_OUT_STEP = 1_000_003  # draws that no training step uses


def images(folder: Path, *, batch_size: int) -> ImageDataModule:
    """Training and test images of Fashion-MNIST."""
    train, test = (
        IdxRecords(str(folder / f"{s}-images-idx3-ubyte.gz"), str(folder / f"{s}-labels-idx1-ubyte.gz"))
        for s in ("train", "t10k")
    )
    data = ImageDataModule(train=train, val=test, image_size=32, transform=PADDED, batch_size=batch_size)
    data.setup("fit")
    return data


def mean_error(module: AttentionDistillation, noised: Mapping[str, Any]) -> float:
    """Relative L2 error, mean over sites."""
    module.distiller.layerwise(noised)
    return float(module.distiller.errors_S.sqrt().mean())


def arm(
    teacher: str, preset: str, *, fitted: bool, seed: int, steps: int, lr: float, data: ImageDataModule
) -> dict[str, Any]:
    """One mixer, one start, one seed."""
    torch.manual_seed(seed)
    mixer: Any = partial(DeltaConvBlock, preset=preset, kernel_size=7)  # type: ignore[arg-type]
    module = AttentionDistillation(
        teacher, mixer, [Stage("layerwise", steps)], trained=TrainedParts(init_samples=128), seed=seed
    )
    held_out_images: Any = data.val_dataloader()
    held_out = module.noised(next(iter(held_out_images)), step=HELD_OUT_STEP, condition_dropout=0.0)
    batches: Iterator[Mapping[str, Any]] = iter(data.train_dataloader())
    start_batches = [next(batches) for _ in range(4)]
    if fitted:
        module.initialise_mixers(iter(start_batches))
    errors = [mean_error(module, held_out)]
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=lr)
    for step in range(steps):
        noised = module.noised(next(batches), step=step, condition_dropout=0.1)
        loss = module.distiller.layerwise(noised)["site"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    errors.append(mean_error(module, held_out))
    row = {
        "preset": preset,
        "start": "teacher" if fitted else "random",
        "seed": seed,
        "before": errors[0],
        "after": errors[1],
    }
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="fashion_mnist_dit")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="idx files")
    parser.add_argument("--presets", nargs="+", default=["default", "paper_pixart", "released_pixart"])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/start_from_teacher.json"))
    arguments = parser.parse_args()
    data = images(arguments.data, batch_size=arguments.batch_size)
    rows = [
        arm(arguments.teacher, preset, fitted=fitted, seed=seed, steps=arguments.steps, lr=arguments.lr, data=data)
        for preset in arguments.presets
        for fitted in (False, True)
        for seed in arguments.seeds
    ]
    summary = []
    for preset in arguments.presets:
        for start in ("random", "teacher"):
            chosen = [row for row in rows if row["preset"] == preset and row["start"] == start]
            line: dict[str, object] = {"preset": preset, "start": start}
            for moment, label in (("before", "step 0"), ("after", f"step {arguments.steps}")):
                values = torch.tensor([row[moment] for row in chosen])
                line[label] = f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})"
            summary.append(line)
    print(f"relative L2 error, mean over sites; mean (range) over {len(arguments.seeds)} seeds")
    print(format_table(summary))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    report = {"date": date.today().isoformat(), "torch": torch.__version__, "arguments": vars(arguments), "rows": rows}
    arguments.output.write_text(json.dumps(report, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
