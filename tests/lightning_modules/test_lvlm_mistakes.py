"""Configurations of image-text models that cannot work end in one line that names the value and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from sparsight.command.cli import main
from tests.tiny_lvlm import save_tiny_lvlm, tiny_lvlm, tiny_processor
from tests.tiny_processors import family_processor
from tests.tiny_rows import few
from tests.tiny_tokens import VICUNA_CHAT
from tests.tiny_tuning import SCORE, STAGE, pruning, tuning_config, with_callback

TALK = {"conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A bag."}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and files that something is wrong with."""
    folder = tmp_path_factory.mktemp("mistakes")
    tuning_config(folder)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=1, **sizes)).save_pretrained(folder / "text")
    save_tiny_lvlm(folder / "no_processor", "fast_vlm")
    (folder / "no_processor" / "processor_config.json").unlink()
    for file in (folder / "no_processor").glob("token*"):
        file.unlink()
    processor = tiny_processor("fast_vlm")
    processor.tokenizer.add_tokens(["zzz"])
    processor.save_pretrained(folder / "other_tokens")
    save_tiny_lvlm(folder / "llava", "llava")
    tiny_lvlm("qwen2_5_vl").save_pretrained(folder / "qwen")
    family_processor("qwen2_5_vl").save_pretrained(folder / "qwen")
    Image.new("RGB", (32, 32)).save(folder / "here.png")
    talks = [{"image": name} | TALK for name in ("here.png", *["gone.png"] * 8)]
    (folder / "talks.json").write_text(json.dumps(talks))
    (folder / "empty.json").write_text("[]")
    return folder


def talks(folder: Path, file: str, images: str) -> dict[str, Any]:
    options = {"file": str(folder / file), "images": str(folder / images)}
    return {"train": {"class_path": "ConversationRecords", "init_args": options}}


def model(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"base": str(folder / name)}, {"model": str(folder / name)}


def layers(rule: str, **options: Any) -> dict[str, Any]:
    return {"layers": {"class_path": rule, "init_args": options}}


MISTAKES: list[tuple[Any, str]] = [
    (lambda f: model(f, "nowhere"), "there is no model folder .*nowhere; give a folder or a hub id"),
    (lambda f: model(f, "text"), "loads no image-text model from .*text, .*LlamaConfig"),
    (lambda f: model(f, "no_processor"), "loads no processor from .*no_processor; save the base model's"),
    (
        lambda f: ({}, {"model": str(f / "other_tokens")}),
        "data.model .* has other tokens than model.base .*set both",
    ),
    (lambda f: (layers("Explicit", layers=[1, 9]), {}), r"names layers \[9\], but the decoder has 6: 0 to 5"),
    (lambda f: (layers("Preset", name="visual_region_code"), {}), "32 layers and the decoder has 6: use Uniform"),
    (lambda f: ({"stages": [STAGE | {"lr_schedule": "cosinus"}]}, {}), "lr_schedule is one of .*; got 'cosinus'"),
    (lambda f: ({"stages": [STAGE | {"projector_lr": -1.0}]}, {}), "projector_lr is -1.0; allowed: above 0"),
    (lambda f: ({"healing": {"hidden": -1.0}}, {}), r"model\.healing\.hidden is -1.0; allowed: 0 or more"),
    (lambda f: ({"evaluation": {"reference": str(f / "gone.json")}}, {}), "no scores at .*gone.json; `sparsight"),
    (lambda f: ({}, talks(f, "talks.json", "gone")), r"data\.train\.images: .*gone' does not exist"),
    (
        lambda f: ({}, talks(f, "talks.json", ".")),
        r"data\.train \(.*[0-9] of 9 records are unreadable.*gone\.png.*Repair or remove them",
    ),
    (
        lambda f: ({}, talks(f, "empty.json", ".")),
        r"data\.train: ConversationRecords of file .*empty\.json, images .* has no records",
    ),
    (
        lambda f: ({}, {"batching": {"max_length": 8}, "val": None}),
        r"its images reach to token \d+, beyond max_length=8",
    ),
    (lambda f: ({}, {"batching": {"max_length": 8}}), "prompt and candidate have 45 tokens, more than max_length=8"),
    (lambda f: ({}, {"batch_size": 100}), "do not fill one batch of 100"),
]


# neighbours in the list are found by the same check: every second is tried by `make test`
@pytest.mark.parametrize(
    ("change", "message"),
    few(MISTAKES, *MISTAKES[::2]),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_it_is_one_line(change: Any, message: str, folder: Path) -> None:
    options, data = change(folder)
    config = yaml.safe_load(tuning_config(folder, **options).read_text())
    config["data"]["init_args"] |= data
    path = folder / "wrong.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit, match=f"^sparsight: .*{message}") as stop:
        main(["fit", "--config", str(path), "--trainer.callbacks", "[]"])
    assert len(str(stop.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "the module has no `prune`: give it"),
        ({"prune": SCORE} | layers("sparsight.lvlm.surgery.selection.All"), "all 6 layers are protected"),
        ({"prune": SCORE | {"protected": [7]}}, r"prune.protected names layers \[7\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_schedule_without_layers_to_remove(options: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(SystemExit, match=f"^sparsight: .*{message}"):
        main(["fit", "--config", str(with_callback(tuning_config(folder, **options), pruning()))])


def test_layers_to_remove_without_a_schedule(folder: Path) -> None:
    with pytest.warns(UserWarning, match="no callback PruningSchedule: no layer will leave"):
        main(["fit", "--config", str(tuning_config(folder, prune=SCORE)), "--trainer.max_steps=1"])


VIDEO = {
    "chat": {
        "processor_options": {"image_token": "<video>"},
        "template": VICUNA_CHAT.replace("<image>", "<video>"),
    }
}
MARKED = "marks pictures by another token than the model, whose image token has id 3: set data.model to model.base"


@pytest.mark.parametrize(
    ("verb", "base", "data", "message"),
    [
        (
            "fit",
            "llava",
            {"chat": {"processor_options": {"patch_size": 8}}},
            r"\(ValueError: Image features and image tokens do not match",
        ),
        (
            "fit",
            "llava",
            {"chat": {"processor_options": {"crop_size": 32}}},
            r"\(ValueError: Input image size \(32\*32\) doesn't match",
        ),
        ("validate", "llava", {"model": "qwen"}, r"\(ValueError: not enough values to unpack"),
        ("analyze", "qwen", {"model": "llava"}, r"\(AttributeError: 'NoneType'"),
        ("fit", "llava", VIDEO, MARKED),
    ],
    ids=["places", "size", "kind", "other kind", "token"],
)
def test_pictures_of_another_processor(verb: str, base: str, data: dict[str, Any], message: str, folder: Path) -> None:
    config = yaml.safe_load(tuning_config(folder, base=str(folder / base)).read_text())
    data = {"model": base} | data
    config["data"]["init_args"] |= data | {"model": str(folder / data["model"])}
    path = folder / "wrong.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit, match=f"^sparsight: .*{message}.*") as stop:
        main([verb, "--config", str(path), "--trainer.callbacks", "[]"])
    assert (
        "correct or leave out data.chat.processor_options" in str(stop.value) and len(str(stop.value).splitlines()) == 1
    )


def test_errors_of_others_keep_their_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody wrote for a reader is a fault of the program, and needs one."""
    monkeypatch.setattr("transformers.get_scheduler", lambda *_, **__: int("no number"))
    config = tuning_config(folder)
    with pytest.raises(ValueError, match="no number"):
        main(["fit", "--config", str(config)])
