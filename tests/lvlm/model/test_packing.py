"""Batches of conversations: what a sample gives does not depend on what it is padded or packed with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from datamodules.conversations.instruction_batch import collate_chats, collate_questions, first_fit
from sparsight.evaluation.questions.question import Question
from sparsight.lvlm.chat.chat import ChatFormat
from sparsight.lvlm.chat.conversation import Conversation
from sparsight.lvlm.model.answer_losses import answer_losses
from sparsight.lvlm.model.packing import MODELS, OF_AXES, TEXT_MODELS, packed_positions
from tests.tiny_chats import ITEM, dialogue, picture
from tests.tiny_families import FAMILIES, QWEN_VISION
from tests.tiny_lvlm import tiny_lvlm
from tests.tiny_processors import PROCESSORS, family_processor
from tests.tiny_rows import few

ONE = picture(20, 21)
TALKS = (
    dialogue("<image>\nWhat is this?", "A red coat.", "Sure?", "Yes.", images=(picture(41, 20),)),
    dialogue("Say something short.", "No."),
    dialogue(
        "<image><image> Do these two pictures show the same kind of thing, or do they not? Look first.",
        "They do not.",
        images=(ONE, picture(20, 22)),
    ),
    dialogue("<image>Hm?", "It is warm.", images=(picture(20, 23),)),
)


def samples(chat: ChatFormat, conversations: tuple[Conversation, ...] = TALKS) -> list[dict[str, Any]]:
    encoded = [chat.encode(conversation) for conversation in conversations]
    return [
        {"inputs": e.inputs, "labels": e.labels_T, "index": 10 * n, "image_keys": [], "corrupt": {}, "cut": 0}
        for n, e in enumerate(encoded)
    ]


def model_of(family: str) -> Any:
    return tiny_lvlm(family, vocab_size=420) if family in ("idefics3", "smolvlm") else tiny_lvlm(family)


def losses(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return answer_losses(model, batch["inputs"], batch["labels"])[0]


QUICK = ("llava", "llava_onevision", "idefics3", "gemma3", "qwen2_5_vl", "qwen3_vl")


@pytest.mark.parametrize("family", few([*PROCESSORS, "smolvlm", "qwen3_vl_moe"], *QUICK))
def test_padded_and_packed_samples_lose_what_they_lose_alone(family: str) -> None:
    chat = ChatFormat(family_processor("idefics3" if family == "smolvlm" else family))
    model, made = model_of(family), samples(chat)
    options: dict[str, Any] = {"pad_id": 0, "images_in_rows": chat.images_in_rows}
    alone = torch.cat([losses(model, collate_chats([sample], **options)) for sample in made])
    padded = collate_chats(made, **options)
    assert padded["index"].tolist() == [0, 10, 20, 30] and len(alone) > 20 and alone.std() > 0.1
    torch.testing.assert_close(losses(model, padded), alone, rtol=1e-4, atol=1e-4)
    if model.config.model_type not in (*MODELS, *OF_AXES):
        with pytest.raises(ValueError, match=f"not known to be right for {family} .*sliding windows"):
            packed_positions(model.config)
        return
    lengths = [len(sample["labels"]) for sample in made]
    room = max(lengths[0] + lengths[1] + lengths[3], lengths[2])  # the third does not fit behind the first two
    packed = collate_chats(made, pack_to=room, positions=packed_positions(model.config), **options)
    order = packed["index"].tolist()
    assert len(packed["labels"]) == 2 < len(order) and sorted(order) == [0, 10, 20, 30] != order
    by_sample = torch.split(alone, [int((sample["labels"] >= 0).sum()) for sample in made])
    torch.testing.assert_close(
        losses(model, packed), torch.cat([by_sample[index // 10] for index in order]), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("text", few(TEXT_MODELS, "qwen2", "gemma2"))
def test_packing_is_right_for_every_text_model_that_it_is_allowed_for(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = ("llava", {"model_type": text, "sliding_window": 8}, *FAMILIES["llava"][2:])  # those that have windows
    monkeypatch.setitem(FAMILIES, "llava", family)
    chat, model = ChatFormat(family_processor("llava")), tiny_lvlm("llava")
    assert model.config.get_text_config().model_type == text
    made = samples(chat)
    options: dict[str, Any] = {"pad_id": 0, "images_in_rows": False}
    padded = losses(model, collate_chats(made, **options))
    packed = losses(model, collate_chats(made, pack_to=1000, positions=packed_positions(model.config), **options))
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-4)


def test_samples_of_qwen2_vl_are_packed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    _, text, _, rest = FAMILIES["qwen2_5_vl"]
    vision = {name: QWEN_VISION[name] for name in ("depth", "num_heads", "patch_size", "spatial_merge_size")}
    vision |= {"embed_dim": 16, "mlp_ratio": 2, "hidden_size": 32, "temporal_patch_size": 2}
    family = ("qwen2_vl", text | {"model_type": "qwen2_vl_text"}, {"model_type": "qwen2_vl_vision", **vision}, rest)
    monkeypatch.setitem(FAMILIES, "qwen2_vl", family)
    chat, model = ChatFormat(family_processor("qwen2_5_vl")), tiny_lvlm("qwen2_vl")
    made = samples(chat)
    padded = losses(model, collate_chats(made, pad_id=0, images_in_rows=False))
    options: dict[str, Any] = {"pack_to": 1000, "positions": packed_positions(model.config)}
    packed = collate_chats(made, pad_id=0, images_in_rows=False, **options)
    assert packed["inputs"]["position_ids"].shape[:2] == (4, 1)
    torch.testing.assert_close(losses(model, packed), padded, rtol=1e-4, atol=1e-4)


def test_text_models_that_carry_a_state_are_refused() -> None:
    config = AutoConfig.for_model("llava", text_config={"model_type": "mamba2"})
    with pytest.raises(ValueError, match=r"llava with text model mamba2; it is for .* set batching.packing to false"):
        packed_positions(config)


@pytest.mark.parametrize("family", ["llava", "idefics3", "gemma3", "qwen2_5_vl"])
def test_left_padded_prompts_give_what_they_give_alone(family: str) -> None:
    chat, model = ChatFormat(family_processor(family)), model_of(family)
    options: dict[str, Any] = {"pad_id": 0, "images_in_rows": chat.images_in_rows}
    made = []
    for number, item in enumerate((ITEM, dialogue("Say yes.", "yes"), TALKS[2])):
        question = chat.encode_question(item)
        facts = {"question": Question("t", str(number)), "index": number, "image_keys": [], "corrupt": {}, "cut": 0}
        made.append({"inputs": question.inputs, "candidates": question.continuations, **facts})
    together = collate_questions(made, **options)
    ids = together["inputs"]["input_ids"]
    assert together["prompt_length"].tolist() == [sample["inputs"]["input_ids"].shape[1] for sample in made]
    assert together["inputs"]["attention_mask"].sum(1).tolist() == together["prompt_length"].tolist()
    with torch.no_grad():
        logits = model(**together["inputs"], use_cache=False).logits[:, -1]
        for number, sample in enumerate(made):
            assert ids[number, -sample["inputs"]["input_ids"].shape[1] :].equal(sample["inputs"]["input_ids"][0])
            alone = model(**sample["inputs"], use_cache=False).logits[0, -1]
            torch.testing.assert_close(logits[number], alone, rtol=1e-4, atol=1e-4)


def test_first_fit_fills_rows_in_order_and_never_beyond_their_room() -> None:
    assert first_fit([6, 5, 2, 3, 1, 8], 8) == [[0, 2], [1, 3], [4], [5]]
    assert first_fit([4, 4, 4], 8) == [[0, 1], [2]]
