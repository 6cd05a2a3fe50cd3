"""What differs between families of denoisers, on one record each.

Class names of diffusers stand in the files of the families and nowhere else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sparsight.diffusion.families.conditioning import Condition, Conditioner
from sparsight.diffusion.pipelines.schedulers import shift_options

if TYPE_CHECKING:
    from sparsight.diffusion.pipelines.pixel_pipeline import PixelPipeline


@dataclass(frozen=True)
class AttentionFacts:
    """What surgery asks of an attention module.

    Args:
        channels: Width of the hidden state that enters and leaves it.
        heads: Number of heads.
        head_dim: Channels of a head.
        scale: Factor of the logits.
        obstacles: What makes it more than attention among its own tokens, in words.
        text_channels: Width of text that comes beside the hidden state; ``None`` where none does.
    """

    channels: int
    heads: int
    head_dim: int
    scale: float
    obstacles: tuple[str, ...] = ()
    text_channels: int | None = None


class Family(ABC):
    """A family of denoisers; its subclasses have no state.

    Attributes:
        name: Class of diffusers that the denoisers are, or derive from.
        pipelines: Classes of pipelines that are served, by name; what a pipeline's class derives from does not count.
        blocks: Classes of the modules that hold self-attentions, by name; they are what is compiled.
        attentions: Classes of those self-attentions, by name.
        stacks: Classes of the modules that flatten an image into tokens, by name.
        feed_forward: Names, in one of :attr:`blocks`, of feed-forward layers and of what they are made of.
        shard_units: Classes of the modules that are gathered one after the other (FSDP2), by name.
        square_only: Whether it lays tokens out as a square.
        loads_adapters: Whether diffusers loads LoRA weights and IP-Adapters into it.
        published: What differs from the defaults of the class in denoisers of published models, by a short name.
        text: Where text stands in the sequence of joint attentions, ``before`` or ``after`` the image's tokens, by the
            attention's name in a block.
        latent_settings: What pipelines use of a VAE's configuration beside ``scaling_factor``, by the beginning of
            their names; others use nothing else.
    """

    name: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]
    blocks: ClassVar[frozenset[str]]
    attentions: ClassVar[frozenset[str]] = frozenset({"Attention"})
    stacks: ClassVar[frozenset[str]]
    feed_forward: ClassVar[frozenset[str]] = frozenset({"ff"})
    shard_units: ClassVar[frozenset[str]]
    square_only: ClassVar[bool] = False
    loads_adapters: ClassVar[bool] = False
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    text: ClassVar[Mapping[str, Literal["before", "after"]]] = {}
    latent_settings: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @abstractmethod
    def inputs(self, denoiser: Any, batch: int, size: tuple[int, ...], **options: Any) -> dict[str, Any]:
        """Keyword arguments of ``denoiser.forward`` with random content; see :func:`example_inputs`."""

    @abstractmethod
    def conditioner(self, pipeline: Any, device: torch.device) -> Conditioner:
        """The conditioner of one of :attr:`pipelines`."""

    @abstractmethod
    def self_attentions(self, block: Any) -> list[str]:
        """Names, in one of :attr:`blocks`, of the attentions in which image tokens mix with each other.

        Text may be among them, see :attr:`text`; attention to text alone does not count.
        """

    @abstractmethod
    def next_reader(self, block: Any, name: str) -> nn.Module:
        """The module of a block that reads the residual stream right after the self-attention ``name``.

        Where none does, the block itself, whose output that stream is; of several outputs the last.
        """

    # -- samples in model space, as the rest of the project holds them -----------------------------------------------

    def sample_shape(self, denoiser: Any) -> tuple[int, ...]:
        """Channels and sides of a sample at the size that a denoiser was made for."""
        size = denoiser.config.sample_size
        return denoiser.config.in_channels, *(size if isinstance(size, (tuple, list)) else (size, size))

    def check_size(self, denoiser: Any) -> tuple[int, ...]:
        """Sides at which an export is compared with what it was written from: its own where those are few tokens."""
        return self.sample_shape(denoiser)[1:]

    def patch(self, denoiser: Any) -> tuple[int, ...]:
        """Cells of model space that become one token, along each side; a side is a multiple of its own."""
        patch = denoiser.config.get("patch_size") or 1
        return tuple(patch) if isinstance(patch, (tuple, list)) else (patch, patch)

    def pixels_per_cell(self, vae: Any) -> int:
        """Side, in pixels, of one cell of model space behind a VAE."""
        levels: int = len(vae.config.block_out_channels)
        return 2 ** (levels - 1)

    def coarsest(self, denoiser: Any) -> int:
        """Cells a side that become one inside a denoiser where it is coarsest."""
        return self.patch(denoiser)[-1]

    def call(self, denoiser: Any, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
        """What a denoiser returns for samples (B, C, ...) in model space, in their layout.

        Args:
            denoiser: Of this family.
            sample: In the denoiser's precision.
            timestep: Of the noise process, (B,).
            cond: Condition, in the denoiser's precision.
        """
        output: Tensor = denoiser(sample, timestep=timestep, return_dict=False, **cond)[0]
        return output

    def told(self, timestep: Tensor) -> Tensor:
        """What ``denoiser.forward`` is given for timesteps of the noise process."""
        return timestep

    def takes_guidance(self, denoiser: Any) -> bool:
        """Whether guidance is an input of a denoiser, ``guidance`` (B,) in its condition, in place of a second pass."""
        return False

    def timetable(self, scheduler: Any, steps: int, tokens: int) -> dict[str, Any]:
        """What the pipelines of this family hand to ``set_timesteps`` for samples of so many tokens."""
        return {"num_inference_steps": steps} | shift_options(scheduler, tokens)

    # -- attentions ----------------------------------------------------------------------------------------------------

    def facts(self, attention: Any) -> AttentionFacts:
        """What surgery asks of one of :attr:`attentions`."""
        has = {
            "group_norm": attention.group_norm,
            "spatial_norm": attention.spatial_norm,
            "norm_cross": attention.norm_cross,
        }
        obstacles = [name for name, value in has.items() if value is not None]
        if attention.inner_kv_dim != attention.inner_dim:
            obstacles.append("fewer key than query heads")
        return AttentionFacts(
            channels=attention.query_dim,
            heads=attention.heads,
            head_dim=attention.inner_dim // attention.heads,
            scale=attention.scale,
            obstacles=tuple(obstacles),
            text_channels=attention.added_kv_proj_dim,
        )

    def begin(
        self,
        denoiser: Any,
        scheduler: Any,
        *,
        class_names: list[str] | None,
        text_encoder: str | None,
        text_tokens: int,
    ) -> PixelPipeline:
        """A pipeline whose denoiser has fresh starting weights; ``denoiser`` is changed in place.

        Args:
            denoiser: Of this family.
            scheduler: A diffusers training scheduler.
            class_names: Names of classes, of denoisers that are conditioned on them.
            text_encoder: Text encoder of the others, see :func:`load_text_encoder`.
            text_tokens: Tokens of every caption.

        Raises:
            ValueError: The family cannot be trained from nothing, an option does not belong to it, the text encoder's
                width is not the one that it takes, or the scheduler is not of its kind.
        """
        raise ValueError(
            f"a {type(denoiser).__name__} cannot be trained from nothing: give the pipeline that holds it as pretrained"
        )

    def class_ids(self, pipeline: Any) -> dict[str, int]:
        """Classes that a pipeline knows by name, beside those in its configuration."""
        return {}

    def example_call(self, pipeline: Any) -> str:
        """Arguments with which a model card shows how to draw with a pipeline."""
        return '"a lighthouse in the rain"'

    def settle(self, denoiser: Any) -> None:  # noqa: B027  most have nothing to turn off
        """Turn off what a denoiser of this family would do by itself while it trains."""


class BasicBlocks(Family):
    """What families have in common whose blocks are diffusers' BasicTransformerBlock."""

    blocks = frozenset({"BasicTransformerBlock"})

    def self_attentions(self, block: Any) -> list[str]:
        """What a block calls without an encoder state."""
        found = {"attn1": not block.only_cross_attention, "attn2": block.double_self_attention}
        return [name for name, wanted in found.items() if wanted]

    def next_reader(self, block: Any, name: str) -> nn.Module:
        """The norm in front of the next layer."""
        return block.norm2 if name == "attn1" and block.attn2 is not None else block.norm3
