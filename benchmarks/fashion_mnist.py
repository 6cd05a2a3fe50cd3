"""Fashion-MNIST and an independent classifier of it, for judging what generators draw."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from datamodules import IdxRecords, ImageDataModule, TransformOptions

CLASSES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
PADDED = TransformOptions(channels=1, fit="pad")  # from 28 to 32 pixels


def fashion_mnist(folder: Path, *, train: bool) -> tuple[Tensor, Tensor]:
    """All images, float32 (N, 1, 32, 32) in [0, 1], and labels (N,)."""
    stem = "train" if train else "t10k"
    records = IdxRecords(str(folder / f"{stem}-images-idx3-ubyte.gz"), str(folder / f"{stem}-labels-idx1-ubyte.gz"))
    data = ImageDataModule(train=records, val=records, image_size=32, transform=PADDED, batch_size=1000)
    data.setup("validate")
    batches = list(data.val_dataloader())
    return torch.cat([b["image"] for b in batches]) / 2 + 0.5, torch.cat([b["label"] for b in batches])


class Classifier(nn.Sequential):
    """A small convolutional network, never shown a generated image."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(512, 10),
        )


def trained_classifier(folder: Path, cache: Path, *, epochs: int = 4) -> tuple[Classifier, float]:
    """A classifier trained on the training images (or read from ``cache``), and its accuracy on the test images."""
    torch.manual_seed(0)
    model = Classifier()
    if cache.exists():
        model.load_state_dict(load_file(cache))
    else:
        _train(model, *fashion_mnist(folder, train=True), epochs=epochs)
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), cache)
    images, labels = fashion_mnist(folder, train=False)
    return model.eval(), accuracy(model.eval(), images, labels)


def _train(model: Classifier, images: Tensor, labels: Tensor, *, epochs: int) -> None:
    batch, steps = 128, epochs * (len(images) // 128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    model.train()
    for step in range(steps):
        if step % (len(images) // batch) == 0:
            order = torch.randperm(len(images))
        rows = order[(step % (len(images) // batch)) * batch :][:batch]
        loss = F.cross_entropy(model(images[rows]), labels[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images that the classifier puts into their class."""
    hits = [(model(x).argmax(1) == y).sum() for x, y in zip(images.split(500), labels.split(500), strict=True)]
    return float(torch.stack(hits).sum()) / len(images)
