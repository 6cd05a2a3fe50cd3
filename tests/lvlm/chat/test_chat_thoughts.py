"""Templates in the styles of models that think: the loss lies on the answers and their ends, by the characters."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from PIL import Image

from sparsight.lvlm.chat.chat import ChatFormat, EncodedChat
from sparsight.lvlm.chat.chat_template import UnusableConversation
from sparsight.lvlm.chat.conversation import Conversation, Turn
from tests.tiny_lvlm import tiny_processor
from tests.tiny_tokens import CHATML

BODY = (
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %}"
)
LAST_QUERY = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
)


def turns(thought: str, *, cue: str = "", start: str = "", body: str = BODY, end: str = "<|im_end|>\n") -> str:
    """A template in which ``thought`` stands before the body of a message."""
    return (
        LAST_QUERY + start + "{% for m in messages %}<|im_start|>{{ m['role'] }}{{ '\\n' }}"
        "{% if m['role'] == 'assistant' %}" + thought + "{% endif %}" + body + end + "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}" + cue + "{% endif %}"
    )


EMPTY = "{{ '<think>\\n\\n</think>\\n\\n' }}"
REASONED = (
    "{% if m['reasoning_content'] %}{{ '<think>\\n' + m['reasoning_content'] + '\\n</think>\\n\\n' }}"
    "{% else %}" + EMPTY + "{% endif %}"
)
LATEST = "{% if loop.index0 > ns.last %}" + REASONED + "{% endif %}"
SWITCH = "{% if enable_thinking is defined and enable_thinking is false %}" + EMPTY + "{% endif %}"
AS_TEXT = "{% if m['role'] == 'user' %}" + BODY + "{% else %}{{ m['content'] + '' }}{% endif %}"
# in the styles of Qwen3, Qwen3-VL-Thinking, Qwen3.5, GLM, Magistral, Kimi, gpt-oss, and of such as take texts only
TEMPLATES = {
    "empty thought before the last answer": turns(LATEST),
    "thought that an option skips": turns(LATEST, cue=SWITCH),
    "thought opened by the cue": turns(LATEST, cue="{{ '<think>\\n' }}"),
    "thought opened by the cue unless an option skips it": turns(
        LATEST, cue="{% if enable_thinking is false %}" + EMPTY + "{% else %}{{ '<think>\\n' }}{% endif %}"
    ),
    "thought opened by the cue and never written": turns("", cue="{{ '<think>\\n' }}"),
    "thoughts of all turns": turns(REASONED),
    "no line break": turns("<think></think>", cue="<think>"),
    "brackets": turns("[THINK][/THINK]", cue="[THINK]"),
    "triangles": turns("\u25c1think\u25b7\u25c1/think\u25b7", cue="\u25c1think\u25b7"),
    "channels": turns("<|channel|>final<|message|>"),
    "answers as text": turns("", body=AS_TEXT.replace("!= 'x'", "")),
    "answers as text, with thoughts": turns(LATEST, body=AS_TEXT, cue="{{ '<think>\\n' }}"),
    "texts that are printed as they come": turns(
        "", body="{% if m['role'] == 'assistant' %}{{ m['content'] }}{% else %}" + BODY + "{% endif %}"
    ),
    "lists that are skipped": turns(
        "",
        body="{% if m['role'] != 'assistant' %}"
        + BODY
        + "{% elif m['content'] is string %}{{ m['content'] }}{% endif %}",
    ),
    "other words of one and of several turns": turns(
        "{% if messages | length > 2 %}{{ '<again>' }}{% endif %}",
        start="{% if messages | length > 2 %}(long)\n{% endif %}",
    ),
    "rules moved into the last question": (
        LAST_QUERY + "{% for m in messages %}{% if m['role'] == 'user' %}[INST] "
        "{% if loop.index0 == ns.last and messages[0]['role'] == 'system' %}"
        "{{ messages[0]['content'][0]['text'] + ' ' }}{% endif %}" + BODY + " [/INST]"
        "{% elif m['role'] == 'assistant' %} " + BODY + "</s>{% endif %}{% endfor %}"
    ),
    "tools": turns("", start="{% if tools %}<|im_start|>system{{ '\\n' ~ (tools | tojson) }}<|im_end|>\n{% endif %}"),
}
PICTURE = (Image.new("RGB", (20, 20)),)
ASKED = ("<image>What is it?", "Are you sure?", "And now?")
SAID = ("a shirt", "Yes, quite.", "The same\nshirt: 1, 2")


def chat_of(template: str, **options: Any) -> ChatFormat:
    processor = tiny_processor("fast_vlm")
    processor.chat_template = template
    return ChatFormat(processor, **options)


def talk(count: int, *, system: bool = False, reasoning: str = "") -> Conversation:
    said = [Turn("system", "Be brief.")] if system else []
    for question, answer in zip(ASKED[:count], SAID, strict=False):
        said += [Turn("user", question), Turn("assistant", answer, reasoning)]
    return Conversation(tuple(said), PICTURE)


def labelled(chat: ChatFormat, encoded: EncodedChat) -> list[str]:
    """Decoded runs of labels."""
    ids, labels = encoded.inputs["input_ids"][0].tolist(), encoded.labels_T.tolist()
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    found, run = [], []
    for label in [*labels, -100]:
        if label >= 0:
            run.append(label)
        elif run:
            found.append(chat.tokenizer.decode(run))
            run = []
    return found


def by_characters(chat: ChatFormat, conversation: Conversation) -> list[int]:
    """Labels found in another way: in the whole text, answers are looked for one behind the other."""
    rendered = chat.text.render(conversation.turns)
    inside, at = [False] * len(rendered), 0
    for turn in conversation.turns:
        if turn.role == "assistant":
            at = rendered.index(turn.text, at)
            stop = rendered.index(chat.text.end, at) + len(chat.text.end)
            inside[at:stop] = [True] * (stop - at)
            at = stop
    tokens = chat.tokenizer(rendered, return_offsets_mapping=True, add_special_tokens=False)
    pairs = zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)
    return [token if any(inside[start:stop]) else -100 for token, (start, stop) in pairs]


@pytest.mark.parametrize(("name", "count"), product(TEMPLATES, (1, 2, 3)))
def test_loss_lies_on_answers_and_their_ends_alone(name: str, count: int) -> None:
    chat = chat_of(TEMPLATES[name])
    for system in (False, True):
        conversation = talk(count, system=system)
        encoded = chat.encode(conversation)
        assert [text.strip() for text in labelled(chat, encoded)] == [text + chat.text.end for text in SAID[:count]]
        ids = encoded.inputs["input_ids"][0].tolist()
        wanted = by_characters(chat, conversation)
        first = ids.index(3)  # one token of the text is four of the image
        labels = encoded.labels_T.tolist()
        labels = labels[:first] + labels[first + 3 :]
        # of spaces between cue and answer, which models write, the other way knows nothing
        assert [a for a, b in zip(labels, wanted, strict=True) if a != b and chat.tokenizer.decode([a]).strip()] == []
        assert not system or "Be brief." in chat.text.render(conversation.turns)


@pytest.mark.parametrize("name", TEMPLATES)
def test_candidates_follow_what_stands_before_the_answer_in_training(name: str) -> None:
    chat = chat_of(TEMPLATES[name])
    item = Conversation((Turn("user", ASKED[0]), Turn("assistant", "bag")), PICTURE, ("bag", "a shirt"), 0)
    question, whole = chat.encode_question(item), chat.encode(item)
    assert question.inputs["input_ids"][0].tolist() + question.continuations[0] == [
        *whole.inputs["input_ids"][0].tolist()[: len(question.inputs["input_ids"][0]) + len(question.continuations[0])]
    ]
    assert question.continuations[0] == [label for label in whole.labels_T.tolist() if label >= 0]
    assert [chat.tokenizer.decode(ids).strip() for ids in question.continuations] == [
        f"{text}{chat.text.end}" for text in ("bag", "a shirt")
    ]


def prompt(chat: ChatFormat, **options: Any) -> str:
    ids = chat.encode_prompt([Turn("user", ASKED[0])], PICTURE, **options)["input_ids"][0]
    return str(chat.tokenizer.decode(ids)).rpartition("assistant\n")[2]


def test_options_reach_the_template_in_training_and_evaluation() -> None:
    template = TEMPLATES["thought opened by the cue unless an option skips it"]
    thinks, answers = chat_of(template), chat_of(template, options={"enable_thinking": False})
    assert prompt(thinks) == "<think>\n" and prompt(answers) == "<think>\n\n</think>\n\n"
    # what thinks is not told the beginning of its answer
    assert prompt(thinks, begun="It is") == "<think>\n" and prompt(answers, begun="It is").endswith("</think>\n\nIt is")
    tools = chat_of(TEMPLATES["tools"], options={"tools": [{"name": "look"}]})
    assert '"look"' in tools.tokenizer.decode(tools.encode(talk(1)).inputs["input_ids"][0])
    with pytest.raises(ValueError, match=r"chat.template_kwargs.enable_thinkin is no option of the chat template"):
        chat_of(template, options={"enable_thinkin": False})
    with pytest.raises(ValueError, match="holds tokenize, which is not for a config to set"):
        chat_of(template, options={"tokenize": True})
    with pytest.raises(ValueError, match="reasoning is 'no'; allowed: leave_out, show, train"):
        chat_of(template, reasoning="no")


@pytest.mark.parametrize("inline", [False, True])
def test_thoughts_are_left_out_shown_or_trained(inline: bool) -> None:
    conversation = talk(2, reasoning="It has sleeves.")
    if inline:
        said = tuple(
            Turn(t.role, f"<think>\nIt has sleeves.\n</think>\n\n{t.text}") if t.role == "assistant" else t
            for t in talk(2).turns
        )
        conversation = Conversation(said, PICTURE)
    for name, first, last in (
        ("empty thought before the last answer", "", "<think>\nIt has sleeves.\n</think>\n\n"),
        ("thought opened by the cue", "", "It has sleeves.\n</think>\n\n"),
        ("thoughts of all turns", "<think>\nIt has sleeves.\n</think>\n\n", "<think>\nIt has sleeves.\n</think>\n\n"),
    ):
        answers = [f"{text}<|im_end|>" for text in SAID[:2]]
        for reasoning, count in (("leave_out", 0), ("show", 2 if first else 1), ("train", 2 if first else 1)):
            chat = chat_of(TEMPLATES[name], reasoning=reasoning)
            encoded = chat.encode(conversation)
            assert chat.tokenizer.decode(encoded.inputs["input_ids"][0]).count("It has sleeves.") == count
            trained = [first + answers[0], last + answers[1]] if reasoning == "train" else answers
            assert labelled(chat, encoded) == trained, (name, reasoning)


def test_thoughts_are_written_where_the_template_knows_none() -> None:
    chat = chat_of(CHATML, reasoning="train")
    assert labelled(chat, chat.encode(talk(1, reasoning="Sleeves."))) == [
        "<think>\nSleeves.\n</think>\n\na shirt<|im_end|>"
    ]
    assert labelled(chat, chat.encode(talk(1))) == ["a shirt<|im_end|>"]


def test_an_evaluated_answer_shows_no_thought_to_its_prompt() -> None:
    chat = chat_of(TEMPLATES["empty thought before the last answer"])
    question = chat.encode_question(talk(1, reasoning="It has sleeves."))
    assert "sleeves" not in chat.tokenizer.decode(question.inputs["input_ids"][0])


def test_what_only_some_conversations_meet_refuses_those() -> None:
    """A template may take one turn and not several, or no system."""
    strict = turns("{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}")
    chat = chat_of(strict)
    assert labelled(chat, chat.encode(talk(1))) == ["a shirt<|im_end|>"]
    with pytest.raises(UnusableConversation, match="one turn only"):
        chat.encode(talk(2))
