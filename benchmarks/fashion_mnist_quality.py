"""How good a Fashion-MNIST generator's samples are: classifier accuracy and Frechet distance, for one or more models.

    python -m benchmarks.fashion_mnist_quality --model fashion_mnist_dit --data /usr/share/datasets/fashion-mnist

Needs the four idx files (Debian: apt-get install dataset-fashion-mnist) and the demo extra.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.utils import save_image

from benchmarks.fashion_mnist import accuracy, fashion_mnist, trained_classifier
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.sampling import sample, starting_noise
from sparsight.evaluation.images import EfficientNetLite0Features, FrechetDistance, in_batches


def draw(model: DiffusionModel, labels: Tensor, *, seed: int, steps: int, guidance: float) -> Tensor:
    """Images in [0, 1] for every label; sample ids are the positions."""
    images = []
    for rows in torch.arange(len(labels)).split(100):
        noise = starting_noise(model.sample_shape(), seed=seed, index=rows)
        latents = sample(model, {"label": labels[rows]}, noise, steps=steps, guidance=guidance)
        images.append(model.decode(latents))
    return torch.cat(images)


def main() -> None:
    """Print one row for every model and seed, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["fashion_mnist_dit"], help="pipeline folders or shipped models")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="idx files")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=25, help="sampler steps")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=Path("runs/fashion_mnist_quality"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    classifier, test_accuracy = trained_classifier(arguments.data, arguments.output / "classifier.safetensors")
    print(f"classifier: {test_accuracy:.1%} of the real test images")
    real, _ = fashion_mnist(arguments.data, train=False)
    distance = FrechetDistance(EfficientNetLite0Features()).with_reference(in_batches(real))
    train, _ = fashion_mnist(arguments.data, train=True)
    count = arguments.samples
    rows: list[dict[str, Any]] = [
        {
            "model": "real training images",
            "accuracy": None,
            **distance.of(in_batches(train[:count])),
        }
    ]
    labels = torch.arange(count) % 10
    for name in arguments.model:
        model = DiffusionModel.from_pretrained(name)
        model.denoiser.eval()
        for seed in arguments.seeds:
            start = time.perf_counter()
            images = draw(model, labels, seed=seed, steps=arguments.steps, guidance=arguments.guidance)
            rows.append(
                {
                    "model": name,
                    "seed": seed,
                    "accuracy": accuracy(classifier, images, labels),
                    **distance.of(in_batches(images)),
                    "seconds": time.perf_counter() - start,
                }
            )
            save_image(images[:100], arguments.output / f"{Path(name).name}_seed{seed}.png", nrow=10)
            print(json.dumps(rows[-1]))
    report = {
        "date": date.today().isoformat(),
        "hardware": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "protocol": f"{count} samples against 10000 test images, EfficientNet-Lite0 features at 112 px, DDIM "
        f"{arguments.steps} steps, guidance {arguments.guidance}",
        "classifier_test_accuracy": test_accuracy,
        "rows": rows,
    }
    (arguments.output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"wrote {arguments.output / 'report.json'}")


if __name__ == "__main__":
    main()
