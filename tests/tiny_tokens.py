"""Tokens and chats of the tiny image-text models."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<video>", "<vision_start>", "<vision_end>", "<|im_start|>", "<|im_end|>")
PAD, BOS, EOS, IMAGE, VIDEO, VISION_START, VISION_END, CHAT_START, CHAT_END = range(len(SPECIAL))
VOCABULARY = 320
LONGEST = 512  # tokens of a text

SENTENCES = (
    "What is in this picture? Answer with one word. The picture shows a shirt, a bag and an ankle boot.",
    "Is there a dress in the image? Yes, there is. No, there is not. Which of the following is it? (A) coat (B) sandal",
    "The first image shows a sneaker, the second image shows a pair of trousers. They are different things.",
    "Describe this image. Write a short sentence about the weather. It is warm and the sun is shining today.",
)

# LLaVA-1.5's words for the roles, and the chat marks of Qwen2 and SmolLM2
VICUNA_CHAT = """\
{%- for message in messages %}
{%- if message['role'] == 'system' %}{{ '' }}{% else %}{{ message['role'] | upper + ': ' }}{% endif %}
{%- if message['content'] is string %}{{ message['content'] }}{% else %}
{%- for part in message['content'] %}
{%- if part['type'] == 'image' %}{{ '<image>\\n' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}
{%- endfor %}
{%- endif %}
{{- '</s>' if message['role'] == 'assistant' else ' ' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}{{ message['content'] }}{% else %}
{%- for part in message['content'] %}
{%- if part['type'] == 'image' %}{{ '<image>' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def tiny_tokenizer(chatml: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE of ``VOCABULARY`` tokens: any text can be read, common English letter pairs are one token.

    Args:
        chatml: Ends turns with ``<|im_end|>`` as Qwen2 does, instead of starting texts with ``<s>`` as Llama does.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if not chatml:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>" if chatml else "</s>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=LONGEST,
    )
