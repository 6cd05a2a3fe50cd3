"""A pretrained diffusion model as one object: denoiser, noising process, conditions and image codec."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoModel, DiffusionPipeline
from torch import Tensor, nn

from sparsight.common.dtypes import compute_dtype
from sparsight.common.finite import check_finite
from sparsight.common.folders import put_back
from sparsight.common.text import read_json
from sparsight.diffusion.conditioning import Condition, Conditioner, conditioner_for, map_condition
from sparsight.diffusion.pixel_pipeline import PIXEL_PIPELINES, PixelPipeline
from sparsight.diffusion.process import NoiseProcess
from sparsight.diffusion.scaling import scaling_of, warn_of_unused
from sparsight.diffusion.trust import LIBRARIES, check_index
from sparsight.diffusion.variants import check_variant
from sparsight.export.load import find_student, load_student

ASSETS = Path(__file__).parent.parent / "assets"
DENOISERS = ("unet", "transformer")


def resolve(name: str) -> str:
    """A folder as it is, one of the models shipped in ``sparsight/assets`` by its name, or a hub id unchanged."""
    put_back(Path(name))
    if not Path(name).exists() and (ASSETS / name).is_dir():
        return str(ASSETS / name)
    return name


def load_pipeline(
    name: str, *, revision: str | None = None, variant: str | None = None, trust_remote_code: bool = False
) -> DiffusionPipeline:
    """Load a pipeline from a local folder, a shipped model's name or a hub id.

    A folder that Sparsight exported is loaded with the code installed here; ``trust_remote_code`` runs its own instead.

    Raises:
        FileNotFoundError: The folder holds no ``model_index.json``, or neither folder nor hub knows the name.
        ValueError: It names other code than diffusers' and transformers', and that is not trusted.
    """
    source = resolve(name)
    if Path(source).is_dir():
        pipeline = _load_own(Path(source), variant=variant, trust_remote_code=trust_remote_code)
        if pipeline is not None:
            return pipeline
    elif source.startswith((".", "/")) or source.count("/") > 1:
        raise FileNotFoundError(f"no model at {source!r}")
    try:
        if not trust_remote_code:
            check_index(DiffusionPipeline.load_config(source, revision=revision), source)
        return DiffusionPipeline.from_pretrained(
            source, revision=revision, variant=variant, trust_remote_code=trust_remote_code, torch_dtype=None
        )
    except OSError as error:
        raise FileNotFoundError(
            f"{name!r} is neither a local pipeline folder, nor a model shipped with Sparsight, nor reachable on the "
            f"hub ({error}); if it holds weights of a variant alone, name that, e.g. variant: fp16"
        ) from error


def load_polished(name: str, *, variant: str | None = None, trust_remote_code: bool = False) -> DiffusionPipeline:
    """Load a pipeline to train it further: a student's mixers are always this installation's, never its folder's.

    Args:
        name: As in :func:`load_pipeline`.
        variant: As in :func:`load_pipeline`.
        trust_remote_code: Import mixers that nothing but a student's folder names; of other folders, run their code.
    """
    folder = Path(resolve(name))
    if folder.is_dir() and find_student(folder) is not None:
        return _load_own(folder, variant=variant, trust_remote_code=False, trust_mixers=trust_remote_code)
    return load_pipeline(name, variant=variant, trust_remote_code=trust_remote_code)


def _load_own(
    folder: Path, *, variant: str | None, trust_remote_code: bool, trust_mixers: bool = False
) -> DiffusionPipeline | None:
    """The pipeline in a folder of ours: a student, or of a class that diffusers lacks; none if it is neither."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a diffusers pipeline folder: it has no model_index.json")
    check_variant(folder, variant)
    index = read_json(path)
    if not isinstance(index, dict) or "_class_name" not in index:
        raise ValueError(f"{path} is damaged: it has no _class_name")
    class_name = index["_class_name"]
    kind = PIXEL_PIPELINES.get(str(class_name[-1] if isinstance(class_name, list) and class_name else class_name))
    student = None if trust_remote_code else find_student(folder)
    if kind is None and student is None:
        return None
    made: dict[str, Any] = {}
    if not trust_remote_code:
        check_index(index, str(folder), own=(student, None if kind is None else "_class_name"))
    if student is not None:
        made[student] = load_student(folder / student, variant=variant, trust_remote_code=trust_mixers)
    if kind is None:
        return _load_student_pipeline(folder, made, variant=variant)
    return _load_pixel_pipeline(kind, folder, index, made, variant=variant, trust_remote_code=trust_remote_code)


def _load_student_pipeline(folder: Path, made: dict[str, Any], *, variant: str | None) -> DiffusionPipeline:
    rest = DiffusionPipeline.from_pretrained(folder, variant=variant, **dict.fromkeys(made))
    options = {key: value for key, value in rest.config.items() if key not in rest.components and key[0] != "_"}
    return type(rest)(**rest.components | made, **options)


def _load_pixel_pipeline(
    kind: type[PixelPipeline],
    folder: Path,
    index: Mapping[str, Any],
    made: dict[str, Any],
    *,
    variant: str | None,
    trust_remote_code: bool,
) -> PixelPipeline:
    arguments = {name: index.get(name) for name in inspect.signature(kind).parameters} | made
    for part, address in arguments.items():
        options: dict[str, Any] = {"subfolder": part}
        if part in DENOISERS:
            options |= {"variant": variant, "torch_dtype": None}
        if part in made or not isinstance(address, list):
            continue
        if address[0] in LIBRARIES:
            part_class = getattr(importlib.import_module(address[0]), address[1])
            arguments[part] = part_class.from_pretrained(folder, **options)
        else:
            arguments[part] = AutoModel.from_pretrained(str(folder), trust_remote_code=trust_remote_code, **options)
    return kind(**arguments)


class DiffusionModel:
    """What training, sampling, caching, metrics and export need of a pipeline, whatever its family.

    Args:
        pipeline: A diffusers pipeline with a ``unet`` or a ``transformer``.

    Raises:
        ValueError: The pipeline has no denoiser, or is of an unknown family.
        NonFiniteError: A weight is not finite.
    """

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.pipeline = pipeline
        self.component = next((c for c in DENOISERS if getattr(pipeline, c, None) is not None), "")
        if not self.component:
            raise ValueError(f"{type(pipeline).__name__} has neither a unet nor a transformer")
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module):
                check_finite(dict(part.named_parameters()), f"the weights of {name}")
        self.process = NoiseProcess(pipeline.scheduler)
        if self.process.ends_blind:
            warnings.warn(
                "the noise scheduler ends in noise alone (rescale_betas_zero_snr), where prediction_type: epsilon "
                "tells nothing and samplers that begin there (timestep_spacing: trailing) draw NaN: Sparsight begins "
                "one spacing before; train with prediction_type: v_prediction, or set rescale_betas_zero_snr to false",
                stacklevel=2,
            )
        self.vae: Any = getattr(pipeline, "vae", None)
        if self.vae is not None:
            warn_of_unused(pipeline)
            if self.vae.dtype == torch.float16 and self.vae.config.get("force_upcast"):
                self.vae.float()  # it leaves float16's range, and pipelines bring it to float32, too
        disable_label_dropout(self.denoiser)

    @classmethod
    def from_pretrained(cls, name: str, **options: Any) -> DiffusionModel:
        """Load by folder, shipped name or hub id; see :func:`load_pipeline`."""
        return cls(load_pipeline(name, **options))

    @property
    def denoiser(self) -> Any:
        """The UNet or transformer."""
        return getattr(self.pipeline, self.component)

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.denoiser.parameters()).device

    @property
    def conditioner(self) -> Conditioner:
        """Maker of conditions, on the denoiser's device."""
        return conditioner_for(self.pipeline, self.device)

    def to(self, device: torch.device) -> None:
        """Move every part that Lightning does not know about: text encoders and VAE."""
        for name, part in self.pipeline.components.items():
            if isinstance(part, nn.Module) and name != self.component:
                part.requires_grad_(False).eval().to(device)

    def cast_frozen(self, dtype: torch.dtype) -> None:
        """Denoiser and text encoders to ``dtype``; a VAE stays as it is, since some leave half precision's range."""
        for part in self.pipeline.components.values():
            if isinstance(part, nn.Module) and part is not self.vae:
                part.to(dtype)

    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a sample in model space at the size the denoiser was made for."""
        config = self.denoiser.config
        size = config.sample_size
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        return config.in_channels, height, width

    @property
    def pixels_per_cell(self) -> int:
        """Side, in pixels, of one cell of model space: 8 for most VAEs, 1 without one."""
        return 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to model space; a VAE's posterior gives its mean."""
        if self.vae is None:
            return images
        latents = self.vae.encode(images.to(self.vae.dtype)).latent_dist.mean
        return scaling_of(self.pipeline).to_model_space(latents).to(images.dtype)

    @torch.no_grad()
    def decode(self, sample: Tensor) -> Tensor:
        """Model space to images in [0, 1], float32 (B, C, H, W)."""
        if self.vae is not None:
            sample = self.vae.decode(scaling_of(self.pipeline).to_latents(sample.to(self.vae.dtype))).sample
        return (sample.float() / 2 + 0.5).clamp(0, 1)

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch contract: ``{"sample": (B, C, H, W) in model space, "cond": ..., "index": (B,)}``.

        A datamodule gives ``image`` in [-1, 1], or ``sample``, or a trajectory's ``xt`` and ``timestep``; and
        ``label`` or ``caption``, or ready ``cond`` and ``uncond``.
        """
        prepared = {key: batch[key] for key in ("sample", "xt", "timestep", "index") if key in batch}
        if "image" in batch:
            prepared["sample"] = self.encode(batch["image"])
        shape = prepared["sample" if "sample" in prepared else "xt"].shape
        size = (shape[-2] * self.pixels_per_cell, shape[-1] * self.pixels_per_cell)
        prepared["cond"] = self.condition(batch, size)
        prepared["uncond"] = self.unconditional(batch, shape[0], size)
        return prepared

    def condition(self, batch: Mapping[str, Any], size: tuple[int, int]) -> Condition:
        """What the denoiser is told about a batch of images of ``size`` pixels; embeddings in the batch are used."""
        return self._ready(batch["cond"]) if "cond" in batch else self.conditioner(batch, size)

    def unconditional(self, batch: Mapping[str, Any], count: int, size: tuple[int, int]) -> Condition:
        """The same without its conditions, ``count`` times."""
        return self._ready(batch["uncond"]) if "uncond" in batch else self.conditioner.unconditional(count, size)

    def _ready(self, embeddings: Condition) -> Condition:
        return _cast(embeddings, compute_dtype(self.denoiser))


def _cast(condition: Condition, dtype: torch.dtype) -> Condition:
    return map_condition(lambda part: part.to(dtype) if part.is_floating_point() else part, condition)


def predict(denoiser: nn.Module, sample: Tensor, timestep: Tensor, cond: Condition) -> Tensor:
    """One denoiser call; a learned variance (second half of the channels) is left out. (B, C, H, W) to the same."""
    dtype = compute_dtype(denoiser)
    output = denoiser(sample.to(dtype), timestep=timestep, return_dict=False, **_cast(cond, dtype))[0]
    return output[:, : sample.shape[1]].float()


def learns_variance(denoiser: Any) -> bool:
    """Whether the second half of the output's channels is a variance (Nichol and Dhariwal, arXiv 2102.09672).

    DiT and PixArt have one. Pipelines of diffusers do not use it, nor do losses and samplers here.
    """
    return denoiser.config.out_channels == 2 * denoiser.config.in_channels


def disable_label_dropout(denoiser: nn.Module) -> None:
    """Diffusers' DiT drops labels in every block on its own while training; here the batch does it, once for all."""
    module: Any
    for module in denoiser.modules():
        if type(module).__name__ == "LabelEmbedding":
            module.dropout_prob = 0.0
