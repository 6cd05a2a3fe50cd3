"""Running teacher and student on one batch, and the losses between them.

Shape legend: B batch, N tokens, C channels, H and W height and width in model space.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from blocks.base import TokenMixer
from sparsight.common.training.dtypes import sent
from sparsight.common.training.processes import averaged
from sparsight.common.training.sharding import on_whole
from sparsight.diffusion.families.conditioning import concatenate_conditions
from sparsight.diffusion.model.diffusion_model import predict
from sparsight.diffusion.model.process import NoiseProcess
from sparsight.diffusion.model.sampling import guided
from sparsight.diffusion.surgery.replace import set_mode
from sparsight.diffusion.surgery.shell import Mode, Shell
from sparsight.diffusion.surgery.site_error import TINY
from sparsight.diffusion.train.residual import ResidualTaps
from sparsight.diffusion.train.stages import LossTerms
from sparsight.diffusion.train.timestep_weights import min_snr_weight, paper_weight

Squares = dict[str, tuple[Tensor, Tensor]]
"""By site: mean square of the student's error, with gradients, and of the teacher's output."""


class Distiller:
    """Compares the student in a denoiser with the teacher in the same denoiser.

    Args:
        denoiser: A denoiser with shells.
        shells: Its shells by path.
        weights: Weight of each site's loss.
        process: The noising process, for loss weights by timestep.
        guidance: Scale at which the guided loss brings predictions together.

    Attributes:
        errors_S: Squared error over the teacher's mean square at each of S sites in the last loss, over all processes.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        shells: Mapping[str, Shell],
        weights: dict[str, float],
        process: NoiseProcess,
        *,
        guidance: float = 1.0,
    ) -> None:
        self.denoiser = denoiser
        self.shells = shells
        self.weights = weights
        self.process = process
        self.guidance = guidance
        self.taps = ResidualTaps(denoiser, shells)
        self.errors_S = torch.zeros(len(shells))
        # most mixers add nothing to the loss, and need not be walked in every step
        self._adding = [path for path, shell in shells.items() if any(map(_adds, _parts(shell.mixer)))]

    def predict(self, noised: Mapping[str, Any], mode: Mode, *, idle: Mode = Mode.TEACHER) -> Tensor:
        """What the denoiser returns (B, C, H, W) with its sites in ``mode``; see :func:`set_mode`."""
        set_mode(self.shells.values(), mode, idle=idle)
        return predict(self.denoiser, noised["xt"], noised["timestep"], noised["cond"])

    def compare_sites(self, noised: Mapping[str, Any]) -> Squares:
        """Every mixer's error on the teacher's own input.

        One forward pass through the frozen network; gradients, where they are on, reach the mixers alone.
        """
        mode = Mode.LAYERWISE if torch.is_grad_enabled() else Mode.MEASURED
        with torch.no_grad():
            self.predict(noised, mode)
        return {path: shell.take_squares() for path, shell in self.shells.items()}

    def layerwise(self, noised: Mapping[str, Any]) -> dict[str, Tensor]:
        """The loss of the layer-wise stage."""
        return {"site": self._weighted(self._normalised(self.compare_sites(noised)), mean=True)} | self._auxiliary()

    def end_to_end(self, noised: Mapping[str, Any], terms: LossTerms) -> dict[str, Tensor]:
        """The terms of the end-to-end loss; sites that were not handed over yet keep their layer-wise loss (idle)."""
        if terms.guided:
            noised = with_and_without(noised)
        level_B = noised["level"]
        with torch.no_grad():
            teacher_output, teacher_sites = self._observe(noised, Mode.TEACHER, terms)
        student_output, student_sites = self._observe(noised, Mode.STUDENT, terms)
        squares = {
            path: shell.compare(student_sites[path], teacher_sites[path]) if shell.handed_over else shell.take_squares()
            for path, shell in self.shells.items()
        }
        normalised = self._normalised(squares)
        plain = {path: error for path, (error, _) in squares.items()}
        losses = {}
        if terms.to_teacher:
            wanted = teacher_output
            losses["to_teacher"] = terms.to_teacher * self._output_loss(student_output, wanted, level_B, terms)
        if terms.to_target:
            wanted = noised["target"].float()
            losses["to_target"] = terms.to_target * self._output_loss(student_output, wanted, level_B, terms)
        if terms.guided:
            given, wanted = (guided(output, self.guidance) for output in (student_output, teacher_output))
            losses["guided"] = terms.guided * self._output_loss(given, wanted, level_B[: len(given)], terms)
        handed_over = {path for path, shell in self.shells.items() if shell.handed_over}
        if terms.site and handed_over:
            errors = normalised if terms.site_normalised else plain
            chosen = {path: errors[path] for path in handed_over}
            losses["site"] = terms.site * self._weighted(chosen, mean=terms.site_normalised)
        idle = {path: error for path, error in normalised.items() if path not in handed_over}
        if idle:
            losses["idle"] = self._weighted(idle, mean=True)
        return losses | self._auxiliary()

    def _auxiliary(self) -> dict[str, Tensor]:
        """The mean over sites of what their mixers, and the parts of these, add to the loss; nothing if none does."""
        found = {
            path: torch.stack(losses).sum()
            for path in self._adding
            if (losses := on_whole(self.shells[path].mixer, _auxiliary_losses))
        }
        return {"auxiliary": self._weighted(found, mean=True)} if found else {}

    def _observe(self, noised: Mapping[str, Any], mode: Mode, terms: LossTerms) -> tuple[Tensor, dict[str, Tensor]]:
        if terms.site_on == "residual":
            with self.taps.listening() as streams:
                return self.predict(noised, mode, idle=Mode.LAYERWISE), streams
        output = self.predict(noised, mode, idle=Mode.LAYERWISE)
        computing = {path: shell for path, shell in self.shells.items() if shell.mode is not Mode.LAYERWISE}
        return output, {path: shell.take_output() for path, shell in computing.items()}

    def _output_loss(self, student: Tensor, wanted: Tensor, level_B: Tensor, terms: LossTerms) -> Tensor:
        error_B = (student - wanted).square().flatten(1).mean(1)
        if terms.timestep_weight == "none":
            return error_B.mean()
        snr_B = sent(self.process.snr(level_B), error_B.device)
        weight = paper_weight if terms.timestep_weight == "paper" else min_snr_weight
        return (weight(snr_B, terms.gamma, self.process.prediction_type) * error_B).mean()

    def _normalised(self, squares: Squares) -> dict[str, Tensor]:
        """This process's errors over the teacher's mean squares in the batches of all processes."""
        error = torch.stack([error for error, _ in squares.values()])
        everywhere = averaged(torch.stack([error.detach(), torch.stack([power for _, power in squares.values()])]))
        power = everywhere[1].clamp_min(TINY)
        self.errors_S = everywhere[0] / power
        return dict(zip(squares, error / power, strict=True))

    def _weighted(self, errors: Mapping[str, Tensor], *, mean: bool) -> Tensor:
        total = torch.stack([self.weights[path] * error for path, error in errors.items()]).sum()
        return total / sum(self.weights.values()) if mean else total


def with_and_without(noised: Mapping[str, Any]) -> dict[str, Any]:
    """Every sample of a batch twice: with its condition, then without."""
    twice = {name: torch.cat([noised[name]] * 2) for name in ("xt", "timestep", "level", "target") if name in noised}
    return {**noised, **twice, "cond": concatenate_conditions(noised["cond"], noised["uncond"])}


def _auxiliary_losses(mixer: nn.Module) -> list[Tensor]:
    """Of a mixer and of the parts that it is made of."""
    return [loss for part in _parts(mixer) if (loss := part.auxiliary_loss()) is not None]


def _parts(mixer: nn.Module) -> Iterator[TokenMixer]:
    return (part for part in mixer.modules() if isinstance(part, TokenMixer))


def _adds(mixer: TokenMixer) -> bool:
    return type(mixer).auxiliary_loss is not TokenMixer.auxiliary_loss
