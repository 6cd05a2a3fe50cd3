"""Conversations as tokens: every answer with its end token is found exactly, or the conversation is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlavaProcessor, PreTrainedTokenizerFast

from sparsight.lvlm.chat.chat import ChatFormat, EncodedChat
from sparsight.lvlm.chat.chat_template import UnusableConversation
from sparsight.lvlm.chat.conversation import Conversation, Turn
from tests import tiny_processors
from tests.tiny_chats import ITEM, dialogue, picture
from tests.tiny_lvlm import tiny_processor
from tests.tiny_processors import PROCESSORS, family_processor
from tests.tiny_tokens import CHATML, SPECIAL, VICUNA_CHAT, tiny_tokenizer

SAID = ("<image>\nWhat is this?", " A red coat.\n\nReally ", "And\n<image>\nthis one?", "bag")
TALK = dialogue(*SAID, images=(picture(20, 30), picture(20, 31)))


def with_template(processor: Any, template: str) -> Any:
    processor.chat_template = template
    return processor


def answers(chat: ChatFormat, encoded: EncodedChat) -> list[str]:
    """Decoded runs of labels."""
    ids, labels = encoded.inputs["input_ids"][0].tolist(), encoded.labels_T.tolist()
    assert len(ids) == len(labels)
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    runs = "".join(f"|{token}" if label >= 0 else "." for token, label in zip(ids, labels, strict=True))
    return [chat.tokenizer.decode([int(n) for n in run[1:].split("|")]) for run in runs.split(".") if run]


# ---------------------------------------------------------------------------------------------------- all processors
@pytest.mark.parametrize("family", PROCESSORS)
def test_loss_covers_answers_with_their_end_and_nothing_else(family: str) -> None:
    chat = ChatFormat(family_processor(family))
    end = chat.text.end
    encoded = chat.encode(TALK)
    assert [run.strip() for run in answers(chat, encoded)] == [f"A red coat.\n\nReally{end}", f"bag{end}"]
    assert encoded.cut == 0 and encoded.inputs["input_ids"].shape[0] == 1


@pytest.mark.parametrize("family", PROCESSORS)
def test_tokens_and_mask_are_those_of_transformers_where_the_template_marks_answers(family: str) -> None:
    """The second opinion: transformers' own mask of a template that marks its answers."""
    processor = family_processor(family)
    image = {"gemma3": "<vision_start>", "qwen2_5_vl": "<vision_start><image><vision_end>"}.get(family, "<image>")
    marked = "{% generation %}{{ body }}<|im_end|>{% endgeneration %}"
    turn = f"<|im_start|>{{{{ role }}}}\n{{% if role == 'assistant' %}}{marked}{{% else %}}{{{{ body }}}}<|im_end|>"
    template = tiny_processors._chat(turn + "{% endif %}\n", "<|im_start|>assistant\n", image=image)
    encoded = ChatFormat(with_template(processor, template)).encode(TALK)
    parts = iter(TALK.images)
    messages = [
        {"role": "user", "content": [{"type": "image", "image": next(parts)}, {"type": "text", "text": SAID[0][8:]}]},
        {"role": "assistant", "content": [{"type": "text", "text": SAID[1].strip()}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "And"},
                {"type": "image", "image": next(parts)},
                {"type": "text", "text": "this one?"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": SAID[3]}]},
    ]
    expected = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert encoded.inputs["input_ids"].tolist() == [list(ids) for ids in expected["input_ids"]]
    assert (encoded.labels_T >= 0).long().tolist() == list(expected["assistant_masks"][0])


@pytest.mark.parametrize("family", PROCESSORS)
def test_prompt_and_candidate_are_the_tokens_of_the_whole_conversation(family: str) -> None:
    chat = ChatFormat(family_processor(family))
    question = chat.encode_question(ITEM)
    assert len(question.continuations) == 3
    for words, continuation in zip(ITEM.candidates, question.continuations, strict=True):
        whole = chat.encode(dialogue("<image>\nWhat is it?", words, images=ITEM.images))
        ids, labels = whole.inputs["input_ids"][0].tolist(), whole.labels_T.tolist()
        together = question.inputs["input_ids"][0].tolist() + continuation
        assert together == ids[: len(together)]
        assert continuation == [label for label in labels if label >= 0]
    text = chat.encode_question(dialogue("Say yes.", "yes"))
    assert "pixel_values" not in text.inputs and len(text.continuations) == 1


# --------------------------------------------------------------------------------------------------------- tokenizers
def merging_processor(merges: list[tuple[str, str]]) -> LlavaProcessor:
    """Characters and some merged pairs, with nothing that would keep words apart."""
    letters = [chr(code) for code in range(32, 127)] + ["\n"]
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *letters, *("".join(m) for m in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", extra_special_tokens={"image_token": "<image>"}
    )
    images = tiny_processor().image_processor
    return LlavaProcessor(images, fast, 4, "full", chat_template=CHATML)


@pytest.mark.parametrize("family", PROCESSORS)
def test_an_answer_that_is_begun_stands_where_a_whole_one_would(family: str) -> None:
    chat = ChatFormat(family_processor(family))
    turns, images = TALK.turns[:3], TALK.images
    begun = chat.encode_prompt(turns, images, begun="The answer is")["input_ids"][0].tolist()
    whole = chat.encode(Conversation((*turns, Turn("assistant", "The answer is (A) bag")), images))
    assert whole.inputs["input_ids"][0, : len(begun)].tolist() == begun
    assert chat.tokenizer.decode(begun).endswith("The answer is")
    question = chat.encode_question(Conversation((*turns, Turn("assistant", "bag")), images))
    assert chat.encode_prompt(turns, images)["input_ids"].tolist() == question.inputs["input_ids"].tolist()


def test_token_that_merges_cue_and_answer_carries_the_loss_and_moves_the_border_of_prompts() -> None:
    chat = ChatFormat(merging_processor([("\n", "c"), ("a", "g")]))
    (found,) = answers(chat, chat.encode(dialogue("What?", "coat")))
    assert found == "\ncoat<|im_end|>"
    plain = chat.encode_question(dialogue("What?", "bag", candidates=("bag", "hat"), answer=0))
    merged = chat.encode_question(dialogue("What?", "bag", candidates=("bag", "coat"), answer=0))
    decode = chat.tokenizer.decode
    assert [decode(ids) for ids in plain.continuations] == ["bag<|im_end|>", "hat<|im_end|>"]
    assert [decode(ids) for ids in merged.continuations] == ["\nbag<|im_end|>", "\ncoat<|im_end|>"]
    assert decode(merged.inputs["input_ids"][0]).endswith("assistant")
    assert decode(plain.inputs["input_ids"][0]).endswith("assistant\n")


def test_answer_whose_first_token_holds_words_of_the_prompt_is_refused() -> None:
    template = CHATML.replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n:'")
    template = template.replace("message['role'] + '\\n'", "message['role'] + '\\n' + (':' if loop.index0 % 2 else '')")
    chat = ChatFormat(with_template(merging_processor([(":", "c")]), template))
    assert answers(chat, chat.encode(dialogue("What?", "bag"))) == ["bag<|im_end|>"]
    with pytest.raises(UnusableConversation, match="the tokens of answer 'coat' read ':coat"):
        chat.encode(dialogue("What?", "coat"))


@pytest.mark.parametrize("family", ["llava", "fast_vlm"])
def test_white_space_tokens_of_empty_range_inside_an_answer_carry_the_loss(family: str) -> None:
    processor = tiny_processor(family)
    backend = tiny_tokenizer().backend_tokenizer
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    processor.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", extra_special_tokens={"image_token": "<image>"}
    )
    chat = ChatFormat(processor)
    tokens = processor.tokenizer("a  b", return_offsets_mapping=True)["offset_mapping"]
    assert any(start == end for start, end in tokens), "this test needs tokens of no characters"
    lead = " " if family == "llava" else ""
    found = answers(chat, chat.encode(dialogue("Go", "one   two \n  three", "Go on", "bag")))
    assert found == [f"{lead}one   two \n  three{chat.text.end}", f"{lead}bag{chat.text.end}"]


def test_unknown_words_are_refused() -> None:
    words = [*SPECIAL, "[UNK]", "user", "assistant", "yes", "What"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )
    chat = ChatFormat(LlavaProcessor(tiny_processor().image_processor, tokenizer, 4, "full", chat_template=CHATML))
    assert answers(chat, chat.encode(dialogue("What", "yes"))) == ["yes <|im_end|>"]
    for encode in (chat.encode, chat.encode_question):
        with pytest.raises(UnusableConversation, match="answer 'no yes' holds what the tokenizer does not know"):
            encode(dialogue("What", "no yes"))


# ----------------------------------------------------------------------------------------------------------- templates
def test_end_token_is_added_where_the_template_has_none(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        chat = ChatFormat(with_template(tiny_processor(), tiny_processors.LLAVA_15))
    assert "</s> is put after each" in caplog.text
    assert answers(chat, chat.encode(TALK)) == [" A red coat.\n\nReally</s>", " bag</s>"]
    prompt = chat.encode_question(TALK)
    assert "Really</s> USER:" in chat.tokenizer.decode(prompt.inputs["input_ids"][0])
    assert [chat.tokenizer.decode(ids) for ids in prompt.continuations] == [" bag</s>"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (VICUNA_CHAT.replace("'ASSISTANT:'", "'Bot says:'"), "answer 1 is not written after what asks for it"),
        (CHATML.replace("part['text'] }}", "part['text'] ~ part['text'] }}"), "'Some answer.', 2 times"),
        (CHATML.replace("<image>", ""), "does not write '<image>' for a content part of type image"),
        ("{{ raise_exception('never') }}", "the chat template refuses it: TemplateError: never"),
        (VICUNA_CHAT.replace("part['text']", "part['text'] | upper"), "is written as"),
    ],
)
def test_template_that_cannot_be_trained_on_is_refused_at_once(template: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"LlavaProcessor cannot be trained on: .*{message}.*give chat\.template"):
        ChatFormat(with_template(tiny_processor(), template))


def test_processor_that_cannot_serve_is_refused() -> None:
    processor = tiny_processor()
    with pytest.raises(ValueError, match="TokenizersBackend is no processor of texts and images"):
        ChatFormat(processor.tokenizer)
    processor.chat_template = None
    with pytest.raises(ValueError, match=r"LlavaProcessor comes without a chat template; give chat\.template"):
        ChatFormat(processor)


def test_conversation_that_the_template_writes_otherwise_is_refused() -> None:
    shortening = CHATML.replace("{{ part['text'] }}", "{{ part['text'].split('###') | last }}")
    chat = ChatFormat(with_template(tiny_processor(), shortening))
    assert answers(chat, chat.encode(dialogue("a", "b"))) == ["b<|im_end|>"]
    with pytest.raises(UnusableConversation, match=r"answer 'why###b' with end token '<\|im_end\|>' is written as"):
        chat.encode(dialogue("a", "why###b"))


def test_text_that_poses_as_an_image_is_refused() -> None:
    chat = ChatFormat(family_processor("gemma3"))
    with pytest.raises(UnusableConversation, match="a text holds '<vision_start>', which stands for an image"):
        chat.encode(dialogue("look: <vision_start>", "no"))


@pytest.mark.parametrize("family", PROCESSORS)
@pytest.mark.parametrize("place", range(3))
def test_control_tokens_inside_what_is_said_are_refused_by_name(family: str, place: int) -> None:
    chat = ChatFormat(family_processor(family))
    said = ["What is it?", "A bag.", "A shoe."]
    said[place] += f" {chat.text.end} more"
    talk = dialogue(*said[:2], candidates=tuple(said[1:]), answer=0)
    with pytest.raises(UnusableConversation, match=rf"holds '{re.escape(chat.text.end)}', which .* control token"):
        chat.encode_question(talk)
    if place < 2:
        with pytest.raises(UnusableConversation, match="control token"):
            chat.encode(talk)


# -------------------------------------------------------------------------------------------------------------- length
def test_truncation_cuts_text_but_neither_image_tokens_nor_all_answers() -> None:
    chat = ChatFormat(family_processor("idefics3"))
    whole = chat.encode(TALK)
    ids, labels = whole.inputs["input_ids"][0], whole.labels_T
    image_end = int(max(n for n, token in enumerate(ids.tolist()) if token == 3)) + 2  # and the token around the image
    cut = chat.encode(TALK, max_length=len(ids) - 3)
    assert cut.cut == 3 and all(cut.inputs[name].shape[1] == len(ids) - 3 for name in ("input_ids", "attention_mask"))
    assert cut.labels_T.tolist() == labels[:-3].tolist()
    assert cut.inputs["pixel_values"].shape == whole.inputs["pixel_values"].shape
    assert chat.encode(TALK, max_length=image_end).cut == len(ids) - image_end
    with pytest.raises(
        UnusableConversation, match=f"its images reach to token {image_end}, beyond max_length={image_end - 1}"
    ):
        chat.encode(TALK, max_length=image_end - 1)
    one = dialogue("<image>What?", "bag", images=TALK.images[:1])
    start = int((chat.encode(one).labels_T >= 0).nonzero()[0])
    assert (chat.encode(one, max_length=start + 1).labels_T >= 0).sum() == 1
    with pytest.raises(UnusableConversation, match=f"max_length={start} leaves none of the answers"):
        chat.encode(one, max_length=start)
    longest = len(chat.encode_question(ITEM).inputs["input_ids"][0]) + 10
    assert chat.encode_question(ITEM, max_length=longest)
    with pytest.raises(UnusableConversation, match=f"have {longest} tokens, more than max_length={longest - 1}"):
        chat.encode_question(ITEM, max_length=longest - 1)


def test_marked_text_shows_where_the_loss_is() -> None:
    chat = ChatFormat(tiny_processor("fast_vlm"))
    encoded = chat.encode(TALK)
    assert chat.mark(encoded.inputs["input_ids"][0].tolist(), encoded.labels_T.tolist()) == (
        "<|im_start|>user\n<image>(x4)What is this?<|im_end|>\n"
        "<|im_start|>assistant\n[[A red coat.\n\nReally<|im_end|>]]\n"
        "<|im_start|>user\nAnd<image>(x4)this one?<|im_end|>\n<|im_start|>assistant\n[[bag<|im_end|>]]\n"
    )
