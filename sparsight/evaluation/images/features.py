"""Feature extractors of image metrics: Inception, any timm model (DINOv2 among them), a small one without download."""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sparsight.common.disk.weights import efficientnet_lite0, load_weights
from sparsight.evaluation.images.extractor import FeatureExtractor
from sparsight.evaluation.images.images import resized

INCEPTION_SIZE = 299


class InceptionFeatures(FeatureExtractor):
    """The 2048 pooled features of TensorFlow's Inception-v3, in torch-fidelity's conversion: what FID is defined on.

    Args:
        weights: Local file, torch-fidelity's ``.pth`` or safetensors; torch-fidelity's release is downloaded if not
            given, and its hash checked.
        resize: How images get to 299 px. ``tensorflow``: bilinear without antialias, as in the first FID code and
            torch-fidelity. ``clean``: bicubic with antialias, as in clean-fid (Parmar et al., arXiv 2104.11222).
            Values differ by whole points between the two.

    Raises:
        FileNotFoundError: There is no such weights file.
    """

    def __init__(self, weights: str | None = None, resize: Literal["tensorflow", "clean"] = "tensorflow") -> None:
        how = {"tensorflow": "bilinear, no antialias", "clean": "bicubic, antialias"}
        if resize not in how:
            raise ValueError(f"resize is {resize!r}; allowed: {', '.join(how)}")
        super().__init__(
            inception_network(weights),
            name="inception" if resize == "tensorflow" else "inception_clean",
            preprocessing=f"resized to {INCEPTION_SIZE} px ({how[resize]}), (x - 128) / 128",
        )
        self.resize = resize

    def extract(self, images_BCHW: Tensor) -> Tensor:
        """Features (B, 2048)."""
        x = images_BCHW.float()
        x = resized(x, INCEPTION_SIZE).clamp(0, 255) if self.resize == "clean" else resized_by_tensorflow(x)
        return self.network((x - 128) / 128).flatten(1)


def resized_by_tensorflow(images_BCHW: Tensor) -> Tensor:
    """Images as Inception takes them, resized as the first FID code did: bilinear without antialias."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    size = (INCEPTION_SIZE, INCEPTION_SIZE)
    return interpolate_bilinear_2d_like_tensorflow1x(images_BCHW, size=size, align_corners=False)


def inception_network(weights: str | None, *, classifier: bool = False) -> nn.Module:
    """torch-fidelity's Inception-v3 up to its 2048 pooled features, or their 1008 products with the classifier's rows.

    Args:
        weights: Local file; torch-fidelity's release is downloaded if not given, and its hash checked.
        classifier: Whether the classifier follows, without its bias, which inception scores leave out.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

    if weights is not None:
        state = load_weights(weights)
    else:
        state = torch.hub.load_state_dict_from_url(
            URL_INCEPTION_V3, check_hash=True, weights_only=True, map_location="cpu"
        )
    # torch-fidelity unpickles its file without restriction: it gets one that was read safely and written anew
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    with torch.random.fork_rng(devices=[]):
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=file)
    layers: list[tuple[str, nn.Module]] = [(name, each) for name, each in network.named_children() if name != "fc"]
    if classifier:
        network.fc.bias = None
        layers += [("flatten", nn.Flatten()), ("fc", network.fc)]
    return nn.Sequential(OrderedDict(layers))  # they are applied one after the other, in this order


class TimmFeatures(FeatureExtractor):
    """Pooled features of any timm model, without its classifier.

    DINOv2 ViT-L/14, which judges diffusion models better than Inception (Stein et al., arXiv 2306.04675), is
    ``vit_large_patch14_dinov2.lvd142m`` with ``size: 224``; its feature is the class token.

    Args:
        model: Model name, with the tag of its weights.
        weights: Local file of the weights, safetensors or torch, in timm's names or those that timm converts; from
            the hub if not given.
        size: Side in pixels that images are resized to (bicubic and antialiased, or as the model wants it), without
            a crop; what the model was trained on if not given. Transformers need one that their patches divide.
        name: Short name for logs; the model's if not given.

    Raises:
        FileNotFoundError: The weights are neither there nor on the hub.
        ValueError: timm knows no such model.
    """

    def __init__(
        self, model: str, weights: str | None = None, size: int | None = None, name: str | None = None
    ) -> None:
        network, config = _timm_network(model, weights, size)
        self.size = size or config["input_size"][-1]
        self.interpolation = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
        self.mean, self.std = config["mean"], config["std"]
        super().__init__(
            network,
            name=name or model.split(".")[0],
            preprocessing=f"{model}, resized to {self.size} px ({self.interpolation}, antialias), "
            f"mean {tuple(self.mean)}, deviation {tuple(self.std)}",
        )

    def extract(self, images_BCHW: Tensor) -> Tensor:
        """Features (B, F) before the classifier."""
        size = (self.size, self.size)
        x = F.interpolate(images_BCHW.float(), size, mode=self.interpolation, align_corners=False, antialias=True)
        mean, std = (x.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        x = (x.clamp(0, 255) / 255 - mean) / std
        return self.network.forward_head(self.network.forward_features(x), pre_logits=True)


@runtime_checkable
class OfAnySize(Protocol):
    """A network of timm that must be told the size of images before it takes another one."""

    def set_input_size(self, *, img_size: tuple[int, int]) -> None:
        """Fit what depends on the size, such as position embeddings."""
        ...


def _timm_network(model: str, weights: str | None, size: int | None) -> tuple[Any, dict[str, Any]]:
    import timm
    from timm.data import resolve_model_data_config

    # timm renames published weights and fits position embeddings; a state dict passes through that as a download does
    overlay = None if weights is None else {"state_dict": load_weights(weights)}
    try:
        with torch.random.fork_rng(devices=[]):  # with its classifier: without, missing weights would pass in silence
            network = timm.create_model(model, pretrained=True, pretrained_cfg_overlay=overlay)
    except RuntimeError as error:
        raise ValueError(f"timm cannot make {model!r} with weights from {weights or 'the hub'}: {error}") from error
    except OSError as error:
        raise FileNotFoundError(f"no weights of {model!r} here or on the hub; give a file as weights") from error
    config = resolve_model_data_config(network)
    if size is not None and isinstance(network, OfAnySize):
        network.set_input_size(img_size=(size, size))
    return network, config


class TransformersFeatures(FeatureExtractor):
    """Pooled features of any vision model of transformers: the class token of DINOv2, as Meta's own code gives it.

    DeltaConvFusion's FDD is the Frechet distance under ``facebook/dinov2-base`` with ``size: 224``, ``interpolation:
    bilinear`` and ``normalize: false``: its code leaves the mean and deviation of ImageNet out. Position embeddings are
    fitted to the size as Meta's code fits them, not as timm does.

    Args:
        model: Hub id or local folder, with its image processor.
        size: Side in pixels that whole images are resized to (antialiased); as the image processor does, with its crop,
            if not given.
        interpolation: How they are resized, if ``size`` is given.
        normalize: Whether the image processor's mean and deviation are applied, if ``size`` is given.
        revision: Git revision on the hub.
        name: Short name for logs; the last part of ``model`` if not given.

    Raises:
        FileNotFoundError: There is no such folder or hub id.
        ValueError: The model pools no features, or options of resizing are given without ``size``.
    """

    def __init__(
        self,
        model: str,
        size: int | None = None,
        interpolation: Literal["bicubic", "bilinear"] = "bicubic",
        normalize: bool = True,
        revision: str | None = None,
        name: str | None = None,
    ) -> None:
        from transformers import AutoImageProcessor, AutoModel

        if size is None and (interpolation, normalize) != ("bicubic", True):
            raise ValueError("interpolation and normalize belong to size: give it, or leave them out")
        try:
            with torch.random.fork_rng(devices=[]):
                network = AutoModel.from_pretrained(model, revision=revision, dtype=torch.float32)
            processor = AutoImageProcessor.from_pretrained(model, revision=revision)
        except OSError as error:
            raise FileNotFoundError(f"no vision model with its processor at {model!r}: {error}") from error
        options: dict[str, Any] = {}
        if size is not None:
            options = {
                "size": {"height": size, "width": size},
                "resample": Image.Resampling[interpolation.upper()],
                "do_resize": True,
                "do_center_crop": False,
                "do_rescale": True,
                "do_normalize": normalize,
            }
        steps = {step: value for step, value in {**processor.to_dict(), **options}.items() if value is not None}
        super().__init__(
            network,
            name=name or model.rstrip("/").rpartition("/")[2].lower(),
            preprocessing=json.dumps(steps, sort_keys=True),
        )
        self.processor, self.options = processor, options

    def extract(self, images_BCHW: Tensor) -> Tensor:
        """Features (B, F).

        Raises:
            ValueError: The model pools none.
        """
        pixels = self.processor(images=list(images_BCHW), return_tensors="pt", **self.options)["pixel_values"]
        pooled = self.network(pixel_values=pixels.to(images_BCHW.device)).get("pooler_output")
        if pooled is None:
            raise ValueError(f"{self.name} is a {type(self.network).__name__}, which pools no features")
        return pooled.flatten(1)


class EfficientNetLite0Features(FeatureExtractor):
    """Pooled features (B, 1280) of an ImageNet EfficientNet-Lite0, whose weights come in a package of the demo extra.

    Args:
        size: Side in pixels that images are resized to (bilinear, antialiased) before the network sees them.

    Raises:
        ImportError: The package is not installed.
    """

    def __init__(self, size: int = 112) -> None:
        super().__init__(
            efficientnet_lite0("efficientnet_lite0"),  # recorded distances were measured with PyTorch's padding
            name="efficientnet_lite0",
            preprocessing=f"resized to {size} px (bilinear, antialias), x / 127.5 - 1",
        )
        self.size = size

    def extract(self, images_BCHW: Tensor) -> Tensor:
        """Features (B, 1280)."""
        x = images_BCHW.float() / 127.5 - 1
        x = F.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        return self.network.forward_head(self.network.forward_features(x), pre_logits=True)
