"""DiT: a transformer over patches, conditioned on classes (Peebles and Xie, arXiv 2212.09748)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from sparsight.diffusion.families.conditioning import ClassLabels, Conditioner
from sparsight.diffusion.families.family import BasicBlocks
from sparsight.diffusion.families.starting_weights import close, spread

if TYPE_CHECKING:
    from sparsight.diffusion.pipelines.pixel_pipeline import PixelPipeline

IMAGENET = 1000  # the label that diffusers' DiTPipeline takes for no class, however many there are


class DiT(BasicBlocks):
    """Class-conditional transformers."""

    name = "DiTTransformer2DModel"
    pipelines = ("DiTPipeline", "PixelDiTPipeline")
    stacks = frozenset({"DiTTransformer2DModel"})
    # the whole DiT asks its first block for its embeddings
    shard_units = frozenset({"BasicTransformerBlock", "CombinedTimestepLabelEmbeddings"})
    square_only = True
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "dit_xl_2": {"sample_size": 64, "out_channels": 8},  # at 512 pixels
    }

    def inputs(self, denoiser: Any, batch: int, size: tuple[int, ...], **options: Any) -> dict[str, Any]:
        """A sample, timesteps and labels."""
        timestep = torch.full((batch,), 500, device=options["device"])
        sample = torch.randn(batch, denoiser.config.in_channels, *size, **options)
        return {"hidden_states": sample, "timestep": timestep, "class_labels": torch.zeros_like(timestep)}

    def conditioner(self, pipeline: Any, device: torch.device) -> Conditioner:
        """Class labels."""
        return ClassLabels(pipeline.transformer.config.num_embeds_ada_norm, device)

    def begin(
        self,
        denoiser: Any,
        scheduler: Any,
        *,
        class_names: list[str] | None,
        text_encoder: str | None,
        text_tokens: int,
    ) -> PixelPipeline:
        """adaLN-Zero: every block starts as the identity and the output as zero."""
        from sparsight.diffusion.pipelines.pixel_pipeline import PixelDiTPipeline

        if text_encoder is not None:
            kind = type(denoiser).__name__
            raise ValueError(f"text_encoder is for denoisers of captions: a {kind} takes class labels")
        spread(denoiser)
        close(denoiser.proj_out_1, denoiser.proj_out_2, *(b.norm1.linear for b in denoiser.transformer_blocks))
        names = None if class_names is None else {str(i): name for i, name in enumerate(class_names)}
        return PixelDiTPipeline(transformer=denoiser, scheduler=scheduler, id2label=names)

    def class_ids(self, pipeline: Any) -> dict[str, int]:
        """What diffusers' own pipeline makes of the names in its configuration."""
        from diffusers import DiTPipeline

        known = pipeline.labels if isinstance(pipeline, DiTPipeline) else None
        return {name: int(number) for name, number in (known or {}).items()}

    def example_call(self, pipeline: Any) -> str:
        """Labels; without guidance where diffusers' own pipeline would ask for a class that there is not."""
        from diffusers import DiTPipeline

        classes = pipeline.transformer.config.num_embeds_ada_norm
        labels = f"class_labels={[*range(min(4, classes))]}"
        guides = classes == IMAGENET or not isinstance(pipeline, DiTPipeline)
        return labels if guides else f"{labels}, guidance_scale=1.0"

    def settle(self, denoiser: Any) -> None:
        """No dropping of labels in every block on its own while training: here the batch does it, once for all."""
        from diffusers.models.embeddings import LabelEmbedding

        for module in denoiser.modules():
            if isinstance(module, LabelEmbedding):
                module.dropout_prob = 0.0
