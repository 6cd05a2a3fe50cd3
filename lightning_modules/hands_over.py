"""Sites of a denoiser that are handed over to their mixers one after the other: see ``callbacks.PruningSchedule``."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_modules.beside_teacher import BesideTeacher
from sparsight.diffusion.train.relative_errors import RecentErrors


class HandsOver(BesideTeacher):
    """Base of distillations.

    Attributes:
        recent_errors: Of every mixer, over the last steps of training.
    """

    recent_errors: RecentErrors

    def sites(self) -> list[str]:
        """Paths of the self-attentions that have a mixer beside them."""
        return list(self.shells)

    def distance(self, one: str, other: str) -> int:
        """How many sites two of them are apart."""
        return abs(self.sites().index(one) - self.sites().index(other))

    def score(self) -> dict[str, float]:
        """Relative L2 error of every mixer over the last steps of training, on all processes alike."""
        return self.recent_errors.by_site()

    def retire(self, names: Sequence[str]) -> None:
        """Let mixers compute at these sites, and attention at all others; all of them until this is first called."""
        for path, shell in self.shells.items():
            shell.handed_over = path in names
