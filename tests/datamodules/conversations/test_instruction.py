"""InstructionDataModule: batches, skipped records, lengths, exact resuming and shares of processes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from PIL import Image

from datamodules import (
    Conversation,
    InstructionDataModule,
    Record,
    TextQuestions,
    Turn,
)
from datamodules.conversations.instruction_dataset import image_key
from datamodules.record_dataset import TooManyCorruptRecords
from datamodules.sampler import LengthSampler
from sparsight.lvlm.chat.show import CONVERSATIONS, keep_records
from sparsight.lvlm.model.answer_losses import answer_losses
from tests.tiny_chats import KINDS, Talks, picture, talk_data
from tests.tiny_files import write_idx
from tests.tiny_lvlm import save_tiny_lvlm, tiny_lvlm
from tests.tiny_records import SaveEverywhere, indices

GROUPED = {"length_grouping": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_lvlm(tmp_path_factory.mktemp("model") / "tiny", "fast_vlm"))


# ------------------------------------------------------------------------------------------------------------- batches
def test_training_batch_holds_what_the_contract_says(model: str) -> None:
    datamodule = talk_data(model)
    source = datamodule.sources["train"]
    assert source is not None
    batch = next(iter(datamodule.train_dataloader()))
    assert set(batch) == {"inputs", "labels", "index", "image_keys"}
    ids, labels, mask = batch["inputs"]["input_ids"], batch["labels"], batch["inputs"]["attention_mask"]
    assert ids.shape == labels.shape == mask.shape and batch["index"].dtype == labels.dtype == torch.int64
    assert (mask.diff(dim=1) <= 0).all() and mask[:, 0].all(), "padded on the right"
    pictures = sum(int(index % 3 > 0) for index in batch["index"].tolist())
    assert len(batch["inputs"]["pixel_values"]) == pictures
    decode = datamodule.chat.tokenizer.decode  # type: ignore[union-attr]
    for index, row, keys in zip(batch["index"].tolist(), labels, batch["image_keys"], strict=True):
        assert decode(row[row >= 0]) == f"{KINDS[index % 3]}<|im_end|>"
        conversation = source[index].conversation
        assert conversation is not None and keys == [image_key(image) for image in conversation.images]


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation_batch_holds_prompts_and_candidates(model: str, stage: str) -> None:
    name = {"validate": "val", "test": "test"}[stage]
    datamodule = talk_data(model, stage=stage, **{name: Talks(9, items=True)})
    loader = datamodule.val_dataloader() if stage == "validate" else datamodule.test_dataloader()
    batches = list(loader)
    assert indices(loader) == list(range(9))
    first = batches[0]
    assert set(first) == {"inputs", "index", "image_keys", "candidates", "questions", "prompt_length"}
    mask = first["inputs"]["attention_mask"]
    assert mask[:, -1].all() and mask.sum(1).tolist() == first["prompt_length"].tolist(), "padded on the left"
    decode = datamodule.chat.tokenizer.decode  # type: ignore[union-attr]
    assert all(text.endswith("<|im_start|>assistant\n") for text in decode(first["inputs"]["input_ids"]))
    asked = first["questions"]
    assert [question.options for question in asked] == [tuple(KINDS)] * 4
    assert [question.task for question in asked] == ["by_0", "by_1", "by_0", "by_1"]
    assert [question.answer for question in asked] == [0, 1, 2, 0]
    assert [(question.position, question.images) for question in asked] == [
        (index, len(keys)) for index, keys in zip(first["index"].tolist(), first["image_keys"], strict=True)
    ]
    assert [decode(ids) for ids in first["candidates"][0]] == [f"{kind}<|im_end|>" for kind in KINDS]
    lonely = next(iter(talk_data(model, stage="validate", val=Talks(4)).val_dataloader()))
    assert [question.options for question in lonely["questions"]] == [("bag",), ("coat",), ("shoe",), ("bag",)]
    assert [question.answer for question in lonely["questions"]] == [0] * 4


def test_one_data_config_serves_images_and_instructions(model: str, tmp_path: Path) -> None:
    images, labels = (
        write_idx(tmp_path / "i", np.zeros((6, 8, 8), np.uint8)),
        write_idx(tmp_path / "l", np.array([0, 1, 2, 0, 1, 2], np.uint8)),
    )
    source = (
        f"{{class_path: datamodules.IdxRecords, init_args: {{images: {images}, labels: {labels}, classes: {KINDS}}}}}"
    )
    shared = f"train: {source}, val: {source}, batch_size: 2, seed: 3"
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    batches = {}
    for name, options in (
        ("ImageDataModule", "image_size: 8, transform: {channels: 1}"),
        ("InstructionDataModule", f"model: {model}, chat: {{question: What is this?, answer: 'a {{label}}'}}"),
    ):
        text = f"data: {{class_path: datamodules.{name}, init_args: {{{shared}, {options}}}}}"
        datamodule = parser.instantiate(parser.parse_string(text)).data
        datamodule.prepare_data()
        datamodule.setup("fit")
        batches[name] = next(iter(datamodule.train_dataloader())), next(iter(datamodule.val_dataloader()))
    (seen, _), (asked, items) = batches.values()
    assert asked["index"].equal(seen["index"]), "the same records in the same order"
    decode = datamodule.chat.tokenizer.decode
    said = [decode(row[row >= 0]) for row in asked["labels"]]
    assert said == [f"a {KINDS[label]}<|im_end|>" for label in seen["label"].tolist()]
    assert [question.options for question in items["questions"]] == [tuple(f"a {kind}" for kind in KINDS)] * 2
    assert [question.answer for question in items["questions"]] == [0, 1]


def test_datamodule_and_samples_can_be_sent_to_workers(model: str) -> None:
    datamodule = talk_data(model)
    copy = pickle.loads(pickle.dumps(datamodule.datasets["train"]))
    assert copy[1]["labels"].equal(datamodule.datasets["train"][1]["labels"])
    one, two = (list(talk_data(model, num_workers=workers).train_dataloader()) for workers in (0, 1))
    assert len(one) == 5 and all(a["labels"].equal(b["labels"]) for a, b in zip(one, two, strict=True))


# --------------------------------------------------------------------------------------------------------- bad records
class Odd(Talks):
    """The last two talks cannot be brought into the model's form."""

    def __getitem__(self, index: int) -> Record:
        turns = {20: "look: <image>", 21: "Say " + "much " * 50}
        if index not in turns:
            return super().__getitem__(index)
        images = (picture(20, 20),) if index == 20 else ()
        return Record(
            f"odd {index}",
            None,
            conversation=Conversation((Turn("user", turns[index]), Turn("assistant", "x")), images),
        )


def test_unusable_conversation_is_skipped_counted_and_named(model: str, caplog: pytest.LogCaptureFixture) -> None:
    datamodule = talk_data(
        model, Odd(22, broken=(3,)), allowed={"corrupt_share": 0.1}, batching={"max_length": 150}, batch_size=1
    )
    with caplog.at_level("WARNING"):
        seen = indices(datamodule.train_dataloader())
    assert len(seen) == 22 and 3 not in seen and 21 not in seen and 20 in seen
    assert datamodule.corrupt["train"][3] == "record 3 of Odd: torn"
    assert "odd 21: of" in datamodule.corrupt["train"][21] and "none of the answers" in datamodule.corrupt["train"][21]
    assert "skipped in train: record 21 of Odd: odd 21: of" in caplog.text
    assert "2 of 22 train records are unreadable and were skipped" in caplog.text
    with pytest.raises(TooManyCorruptRecords, match="2 of 22 records are unreadable, 1 are allowed"):
        options = {"allowed": {"corrupt_share": 0.05}, "batching": {"max_length": 150}, "batch_size": 2}
        indices(talk_data(model, Odd(22, broken=(3,)), **options).train_dataloader())


def test_shortened_records_are_told(model: str, caplog: pytest.LogCaptureFixture) -> None:
    datamodule = talk_data(model, Talks(8), stage="fit", batch_size=8)
    lengths = {
        int(i): int(n)
        for batch in datamodule.train_dataloader()
        for i, n in zip(batch["index"], batch["inputs"]["attention_mask"].sum(1), strict=True)
    }
    limit = max(lengths.values()) - 2
    longest = {index: length - limit for index, length in lengths.items() if length > limit}
    datamodule = talk_data(model, Talks(8), batching={"max_length": limit}, batch_size=8)
    with caplog.at_level("WARNING"):
        (batch,) = datamodule.train_dataloader()
    assert batch["labels"].shape[1] == limit and datamodule.shortened["train"] == longest and longest
    assert (
        f"{len(longest)} of 8 train records have more than batching.max_length={limit} tokens and lost the end"
        in caplog.text
    )


def test_description_shows_the_loss_and_the_candidates(model: str) -> None:
    datamodule = talk_data(model, val=Talks(5, items=True))
    assert datamodule.describe("train", 0) == (
        "train record 0, talk 0: 0 images, 33 tokens, 3 of them with loss\n"
        "<|im_start|>user\nWhat is number 0?<|im_end|>\n<|im_start|>assistant\n[[bag<|im_end|>]]\n"
    )
    assert "1 images" in datamodule.describe("train", 1) and "<image>(x4)What" in datamodule.describe("train", 1)
    shown = datamodule.describe("val", 4)
    assert shown.endswith("<|im_start|>assistant\n\n    bag\n  * coat\n    shoe")
    with pytest.raises(ValueError, match=r"there is no split 'test', only \['train', 'val'\]"):
        datamodule.describe("test", 0)
    with pytest.raises(ValueError, match="index is 22; allowed: 0 to 21"):
        datamodule.describe("train", 22)


def test_records_are_kept_for_the_page_of_a_run(model: str, tmp_path: Path) -> None:
    keep_records(talk_data(model, val=Talks(1, items=True)), tmp_path)
    kept = json.loads((tmp_path / CONVERSATIONS).read_text())
    assert [record["title"] for record in kept] == [*(f"train record {n}" for n in range(4)), "val record 0"]
    (before, unlearnt), (answer, learnt), _ = kept[0]["parts"]
    assert not unlearnt and before.endswith("assistant\n") and learnt and answer == "bag<|im_end|>"
    assert not any(learnt for _, learnt in kept[-1]["parts"])
    assert kept[-1]["options"][kept[-1]["right"]] == "bag"
    keep_records(object(), tmp_path / "nowhere")  # data that cannot be shown


def test_what_cannot_work_is_said_before_it_starts(model: str, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"batching": {"max_length": 0}}, "max_length is 0; allowed: 1 or more, or null"),
        ({"batching": {"packing": True}}, "packing fills rows of max_length tokens; set max_length"),
        ({"chat": {"question": "What?"}}, "give both or neither"),
        ({"chat": {"template": "{{ 'none' }}"}}, "give chat.template a Jinja template"),
        ({"batch_size": 0}, "batch_size is 0"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            talk_data(model, **options)
    with pytest.raises(FileNotFoundError, match=r"chat.template is 'nowhere.jinja', which is neither"):
        talk_data(model, chat={"template": "nowhere.jinja"})
    with pytest.raises(FileNotFoundError, match="no model folder"):
        talk_data(str(tmp_path / "nowhere"))
    gemma = tiny_lvlm("gemma3")
    gemma.config.save_pretrained(tmp_path / "gemma")
    datamodule = InstructionDataModule(str(tmp_path / "gemma"), Talks(4), batching={"packing": True, "max_length": 99})
    with pytest.raises(ValueError, match="packing is not known to be right for gemma3"):
        datamodule.setup("fit")


# -------------------------------------------------------------------------------------------------- lengths and packing
def test_length_grouping_makes_batches_of_one_kind_and_similar_length(model: str) -> None:
    def spreads(**options: Any) -> list[int]:
        found = []
        for batch in talk_data(model, Talks(60), **options).train_dataloader():
            lengths = batch["inputs"]["attention_mask"].sum(1)
            found.append(int(lengths.max() - lengths.min()))
            if options:
                assert len({index % 3 == 0 for index in batch["index"].tolist()}) == 1
        return found

    grouped, mixed = spreads(batching=GROUPED), spreads()
    assert len(grouped) == len(mixed) == 15 and sum(grouped) < 0.35 * sum(mixed)


def test_evaluation_items_of_similar_length_are_together_and_none_is_left_out(model: str) -> None:
    def batches(rank: int, world: int, **options: Any) -> list[tuple[list[int], int]]:
        datamodule = InstructionDataModule(model, None, val=Talks(42), batch_size=4 // world, **options)
        datamodule.trainer = SimpleNamespace(world_size=world, global_rank=rank)  # type: ignore[assignment]
        datamodule.setup("validate")
        loader = datamodule.val_dataloader()
        return [(b["index"].tolist(), int((b["inputs"]["attention_mask"] == 0).sum())) for b in loader]

    mixed, grouped = batches(0, 1), batches(0, 1, batching=GROUPED)
    assert sorted(i for indices, _ in grouped for i in indices) == list(range(42))
    assert sum(padding for _, padding in grouped) < 0.35 * sum(padding for _, padding in mixed)
    pictures = [sum(index % 3 != 0 for index in indices) for indices, _ in grouped[:-1]]
    assert pictures != sorted(pictures)  # not the shortest first
    halves = zip(batches(0, 2, batching=GROUPED), batches(1, 2, batching=GROUPED), strict=True)
    assert [sorted(a + b) for (a, _), (b, _) in halves] == [sorted(indices) for indices, _ in grouped]


def test_length_sampler_covers_everything_and_keeps_pools_random() -> None:
    lengths = torch.randint(100, (64,)).tolist()
    sampler = LengthSampler([0] * 64, lengths=lengths, pool=4, global_batch=4, seed=1)
    epochs = []
    for epoch in (0, 1):
        sampler.start(epoch)
        epochs.append(list(sampler))
        assert sorted(epochs[-1]) == list(range(64))
    assert epochs[0] != epochs[1]


def test_no_length_is_left_out_for_ever() -> None:
    sampler = LengthSampler([0] * 10, lengths=list(range(10)), global_batch=4)
    seen: set[int] = set()
    for epoch in range(12):
        sampler.start(epoch)
        found = list(sampler)
        assert len(found) == len(sampler) == 8
        seen |= set(found)
    assert seen == set(range(10))


def test_too_few_of_a_kind_to_fill_a_batch_are_told(model: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        assert len(talk_data(model, Talks(10), batch_size=6, batching=GROUPED).train_dataloader()) == 1
    assert "4 records in 1 groups of similar length are never trained on" in caplog.text


def test_packed_batch_has_the_loss_of_the_padded_one(model: str) -> None:
    network = tiny_lvlm("fast_vlm")

    def total(**options: Any) -> tuple[float, set[int], dict[str, Any]]:
        batch = next(iter(talk_data(model, batch_size=6, batching={"max_length": 260, **options}).train_dataloader()))
        with torch.no_grad():
            losses, _ = answer_losses(network, batch["inputs"], batch["labels"])
        return float(losses.sum()), set(batch["index"].tolist()), batch

    (padded, records, _), (packed, same, batch) = total(), total(packing=True)
    assert packed == pytest.approx(padded, rel=1e-4) and same == records
    assert set(batch["inputs"]) == {"input_ids", "position_ids", "pixel_values"}
    assert len(batch["labels"]) < 6 == len(batch["index"]) and batch["labels"].shape[1] <= 260


# ------------------------------------------------------------------------------------------------- resume and processes
class Watcher(LightningModule):
    """Notes the records that it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[list[int]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.seen.append(batch["index"].tolist())
        return self.layer(batch["labels"].float().mean().view(1)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-6)


@pytest.mark.filterwarnings("ignore:.*(many workers|logging interval|LeafSpec|no `validation_step`).*")
@pytest.mark.parametrize("grouping", [False, True])
def test_resumed_run_sees_what_an_uninterrupted_one_sees(model: str, tmp_path: Path, grouping: bool) -> None:
    def fit(checkpoint: Path | None = None) -> list[list[int]]:
        watcher = Watcher()
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[SaveEverywhere(tmp_path)] if checkpoint is None else [],
        )
        datamodule = InstructionDataModule(model, Talks(25), batch_size=4, batching={"length_grouping": grouping})
        trainer.fit(watcher, datamodule, ckpt_path=checkpoint)
        return watcher.seen

    whole = fit()
    assert len(whole) >= 10 and whole[: len(whole) // 2] != whole[len(whole) // 2 :]
    for checkpoint in sorted(tmp_path.glob("*.ckpt"))[1::3]:
        assert fit(checkpoint) == whole[int(checkpoint.name[:3]) :], checkpoint.name


@pytest.mark.parametrize("grouping", [False, True])
def test_two_processes_see_the_batches_of_one(model: str, grouping: bool) -> None:
    def batches(rank: int, world: int) -> list[list[int]]:
        datamodule = InstructionDataModule(
            model, Talks(25), batch_size=8 // world, batching={"length_grouping": grouping}
        )
        datamodule.trainer = SimpleNamespace(world_size=world, global_rank=rank, limit_train_batches=None)  # type: ignore[assignment]
        datamodule.setup("fit")
        return [batch["index"].tolist() for batch in datamodule.train_dataloader()]

    one, first, second = batches(0, 1), batches(0, 2), batches(1, 2)
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [sorted(batch) for batch in one] != []


def test_transparent_grey_and_deep_pictures(model: str) -> None:
    class Pictures(Talks):
        def __getitem__(self, index: int) -> Record:
            image = [Image.new("RGBA", (8, 8), (9, 9, 9, 0)), Image.new("L", (8, 8), 255), Image.new("I;16", (8, 8))][
                index
            ]
            return Record(str(index), image, caption="white")

    datamodule = talk_data(
        model,
        Pictures(3),
        chat={"question": "What?", "answer": "{caption}"},
        batch_size=1,
        allowed={"corrupt_share": 0.5},
    )
    keys = {str(batch["image_keys"]) for batch in datamodule.train_dataloader()}
    assert len(keys) == 1, "both are white squares"
    assert "has more than 8 bits" in datamodule.corrupt["train"][2]


def test_splits_may_have_classes_of_their_own(model: str) -> None:
    class Other(Talks):
        @property
        def classes(self) -> list[str]:  # type: ignore[override]
            return [str(self.total)]

    datamodule = talk_data(model, Other(5), val=Other(6))
    assert set(datamodule.datasets) == {"train", "val"} and datamodule.classes == ["5"]


def test_text_questions_need_no_picture(model: str) -> None:
    batch = next(iter(talk_data(model, stage="test", test=TextQuestions(kinds=["opposites"])).test_dataloader()))
    assert set(batch["inputs"]) == {"input_ids", "attention_mask"} and {
        question.task for question in batch["questions"]
    } == {"text_opposites"}
    assert all(len(candidates) == 4 for candidates in batch["candidates"])
