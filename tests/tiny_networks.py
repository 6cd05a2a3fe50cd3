"""Networks that judge images, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.tiny import clip_config, clip_tokenizer


def save_clip(folder: Path) -> Path:
    """A CLIP of 8 features with tokenizer and image processor; it sees 16x16 pixels and reads 8 letters."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 16, "patch_size": 4}
    config = CLIPConfig(text_config=clip_config(16).to_dict(), vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def save_alexnet(file: Path) -> Path:
    """AlexNet as torchvision saves it, with random weights and without its 58 M classifier weights."""
    import torchvision

    torch.manual_seed(0)
    features = torchvision.models.alexnet(weights=None).features
    torch.save({f"features.{name}": value for name, value in features.state_dict().items()}, file)
    return file


def save_timm(file: Path, model: str = "test_vit") -> Path:
    """Random weights of one of timm's test models (64 features, 160x160 pixels), as safetensors."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model(model, pretrained=False).state_dict(), file)
    return file


def save_dinov2(folder: Path) -> Path:
    """A DINOv2 of width 16 with a classifier of 5 classes and its image processor; patches of 4 of 24 pixels."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2ForImageClassification

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=24,
        patch_size=4,
        num_labels=5,
        initializer_range=0.2,
    )
    Dinov2ForImageClassification(config).save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": 20},
        crop_size={"height": 16, "width": 16},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    return folder
