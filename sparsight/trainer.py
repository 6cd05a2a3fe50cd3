"""The Trainer whose methods are the command's verbs."""

from __future__ import annotations

from lightning.pytorch import Trainer


class SparsightTrainer(Trainer):
    """Lightning's Trainer; its further methods are the command's further verbs."""
