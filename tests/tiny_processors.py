"""Real processors of the families of ``tests.tiny_lvlm``, made without the hub, each with a chat form of its own."""

from __future__ import annotations

from typing import Any

from transformers import (
    Gemma3Processor,
    Idefics3Processor,
    InternVLProcessor,
    LlavaNextProcessor,
    LlavaOnevisionProcessor,
    PerceptionLMProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen3VLProcessor,
)
from transformers.models.gemma3.image_processing_gemma3 import Gemma3ImageProcessor
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from transformers.models.idefics3.image_processing_idefics3 import Idefics3ImageProcessor
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor
from transformers.models.llava_next.image_processing_llava_next import LlavaNextImageProcessor
from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor
from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor
from transformers.models.perception_lm.image_processing_perception_lm import PerceptionLMImageProcessor
from transformers.models.perception_lm.video_processing_perception_lm import PerceptionLMVideoProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from tests.tiny_families import PATCH, QWENS, SIDE, TEXT
from tests.tiny_lvlm import tiny_processor
from tests.tiny_tokens import CHATML, tiny_tokenizer

SQUARE = {"height": SIDE, "width": SIDE}
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]


def _chat(turn: str, cue: str, *, image: str = "<image>", start: str = "") -> str:
    """A template that writes every message as ``turn``, in which ``role`` and ``body`` are filled in."""
    return (
        start + "{% for message in messages %}{% set ns = namespace(body='') %}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}{% set ns.body = ns.body + '" + image + "' %}"
        "{% else %}{% set ns.body = ns.body + part['text'] %}{% endif %}"
        "{% endfor %}{% set role, body = message['role'], ns.body %}" + turn + "{% endfor %}"
        "{% if add_generation_prompt %}" + cue + "{% endif %}"
    )


# LLaVA-1.5 as transformers has it: images first, and no token at the end of an answer
LLAVA_15 = (
    "{% for message in messages %}{{ message['role'] | upper + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL = _chat("{% if role == 'user' %}[INST] {{ body }} [/INST]{% else %} {{ body }}</s>{% endif %}", "")
IDEFICS = _chat("{{ role | capitalize }}:{{ '' if body[:1] == '<' else ' ' }}{{ body }}<|im_end|>\n", "Assistant:")
GEMMA = _chat(
    "<|im_start|>{{ 'model' if role == 'assistant' else role }}\n{{ body | trim }}<|im_end|>\n",
    "<|im_start|>model\n",
    image="<vision_start>",
    start="{{ bos_token }}",
)
QWEN = _chat(
    "<|im_start|>{{ role }}\n{{ body }}<|im_end|>\n",
    "<|im_start|>assistant\n",
    image="<vision_start><image><vision_end>",
)


def tokenizer_with(**extra: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer, with further named tokens, as a family's processor asks for them."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>", **extra},
        model_max_length=TEXT["max_position_embeddings"],
    )


def family_processor(family: str) -> Any:
    """Processor that fits the tiny model of a family."""
    tokenizer = tokenizer_with()
    if family in ("llava", "llava_qwen2", "fast_vlm"):
        return tiny_processor(family)
    if family == "llava_next":
        images = LlavaNextImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS)
        return LlavaNextProcessor(
            images, tokenizer, PATCH, "default", chat_template=MISTRAL, num_additional_image_tokens=1
        )
    if family == "llava_onevision":
        images = LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=[[SIDE, 2 * SIDE]])
        videos = LlavaOnevisionVideoProcessor()
        return LlavaOnevisionProcessor(images, tokenizer, videos, 16, "full", chat_template=CHATML)
    if family == "internvl":
        named = {"start_image_token": "<vision_start>", "end_image_token": "<vision_end>"}
        tokenizer = tokenizer_with(context_image_token="<image>", **named)
        images = GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=3)
        return InternVLProcessor(images, tokenizer, InternVLVideoProcessor(), 4, chat_template=CHATML)
    if family == "idefics3":
        images = Idefics3ImageProcessor(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})
        return Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=IDEFICS)
    if family == "gemma3":
        tokenizer = tokenizer_with(boi_token="<vision_start>", eoi_token="<vision_end>")
        return Gemma3Processor(Gemma3ImageProcessor(size=SQUARE), tokenizer, GEMMA, image_seq_length=4)
    if family in QWENS:
        tokenizer = tokenizer_with(vision_start_token="<vision_start>", vision_end_token="<vision_end>")
        size = {"shortest_edge": SIDE * SIDE, "longest_edge": 4 * SIDE * SIDE}
        images = Qwen2VLImageProcessor(patch_size=PATCH, size=size)
        if family != "qwen2_5_vl":
            return Qwen3VLProcessor(images, tokenizer, Qwen3VLVideoProcessor(), chat_template=QWEN)
        return Qwen2_5_VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(), chat_template=QWEN)
    if family == "perception_lm":
        images = PerceptionLMImageProcessor(tile_size=SIDE, max_num_tiles=4)
        videos = PerceptionLMVideoProcessor()
        return PerceptionLMProcessor(videos, images, tokenizer, PATCH, chat_template=CHATML, pooling_ratio=1)
    raise ValueError(f"there is no tiny processor of family {family!r}")


PROCESSORS = (
    "llava",
    "llava_next",
    "llava_onevision",
    "fast_vlm",
    "internvl",
    "idefics3",
    "gemma3",
    "qwen2_5_vl",
    "qwen3_vl",
    "perception_lm",
)
