"""How near a student's samples are to its teacher's from the same noise and conditions."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsight.evaluation.images.extractor import FeatureExtractor
from sparsight.evaluation.images.mean import SampleMean
from sparsight.evaluation.images.samples import Samples, of_teacher


class TeacherError(SampleMean):
    """Root mean square error to the teacher over all samples, and the peak signal-to-noise ratio in dB.

    Args:
        space: ``pixels`` in [0, 1], whose peak is 1, or ``latents``, whose peak is the range (largest minus smallest
            value) of all the teacher's latents.

    Examples:
        >>> grey, black = torch.full((2, 3, 8, 8), 0.25), torch.zeros(2, 3, 8, 8)
        >>> values = TeacherError().of([Samples(grey, torch.arange(2), teacher_images=black)])
        >>> values["fidelity_pixel_rmse"], round(values["fidelity_pixel_psnr"], 2)
        (0.25, 12.04)
    """

    needs_teacher = True
    low: Tensor
    high: Tensor

    def __init__(self, space: Literal["pixels", "latents"] = "pixels") -> None:
        if space not in ("pixels", "latents"):
            raise ValueError(f"space is {space!r}; allowed: pixels, latents")
        super().__init__()
        self.space = space
        self.add_state("low", torch.tensor(torch.inf), dist_reduce_fx="min")
        self.add_state("high", torch.tensor(-torch.inf), dist_reduce_fx="max")

    @property
    def protocol(self) -> str:
        """What is compared."""
        return f"{self.space} against the teacher's from the same noise and conditions"

    def update(self, samples: Samples) -> None:
        """Add samples beside the teacher's.

        Raises:
            ValueError: The teacher's samples, or latents, are not there.
        """
        if self.space == "pixels":
            student, teacher = samples.images, of_teacher(samples.teacher_images)
        else:
            student, teacher = of_teacher(samples.latents), of_teacher(samples.teacher_latents)
        self.add((student.double() - teacher.double()).square().flatten(1).mean(1), samples.index)
        self.low = torch.minimum(self.low, teacher.float().min())
        self.high = torch.maximum(self.high, teacher.float().max())

    def compute(self) -> dict[str, Tensor]:
        """``fidelity_pixel_rmse`` and ``fidelity_pixel_psnr``, or ``latent`` in the place of ``pixel``."""
        rmse = self.mean("root mean")
        peak = 1.0 if self.space == "pixels" else (self.high - self.low).double()
        name = f"fidelity_{self.space[:-1]}"
        return {f"{name}_rmse": rmse, f"{name}_psnr": 20 * torch.log10(peak / rmse)}


class TeacherSimilarity(SampleMean):
    """Mean cosine between features of student's and teacher's images; with CLIPFeatures it is what papers call CLIP-I.

    Args:
        extractor: Describes images.

    Examples:
        >>> pairs = Samples(drawn, torch.arange(len(drawn)), teacher_images=drawn)
        >>> {name: round(value, 4) for name, value in TeacherSimilarity(extractor).of([pairs]).items()}
        {'fidelity_cosine_efficientnet_lite0': 1.0}
    """

    needs_teacher = True
    higher_is_better = True
    extractor: FeatureExtractor

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        self.extractor = extractor

    @property
    def protocol(self) -> str:
        """The extractor."""
        return f"cosine of {self.extractor.name} features ({self.extractor.preprocessing}), same noise and conditions"

    def update(self, samples: Samples) -> None:
        """Add samples beside the teacher's.

        Raises:
            ValueError: The teacher's images are not there.
        """
        teacher_BF = samples.teacher_features(self.extractor).double()
        cosine_B = F.cosine_similarity(samples.features(self.extractor).double(), teacher_BF)
        self.add(cosine_B.clamp(-1, 1), samples.index)

    def compute(self) -> dict[str, Tensor]:
        """``fidelity_cosine_<extractor>``, 1 for equal images."""
        return {f"fidelity_cosine_{self.extractor.name}": self.mean()}
