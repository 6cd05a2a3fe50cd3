"""Options of the processor: they count, survive an export, and unknown ones are refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoProcessor

from datamodules import InstructionDataModule
from sparsight.command.cli import main
from sparsight.lvlm.model.processor import load_processor
from tests.tiny_chats import Talks, picture, talk_data
from tests.tiny_families import SIDE
from tests.tiny_lvlm import tiny_lvlm
from tests.tiny_processors import QWEN, family_processor
from tests.tiny_tokens import CHATML
from tests.tiny_tuning import checkpoint, tuning_config

PIXELS = {"min_pixels": 64, "max_pixels": 128}
OPTIONS: dict[str, dict[str, Any]] = {
    "llava": {"do_center_crop": False},
    "llava_next": {"image_grid_pinpoints": [[SIDE, SIDE]]},
    "llava_onevision": {"image_grid_pinpoints": [[SIDE, SIDE]]},
    "fast_vlm": {"size": {"shortest_edge": 32}, "crop_size": 32},
    "internvl": {"crop_to_patches": False},  # which its class says, too
    "idefics3": {"do_image_splitting": False},
    "qwen2_5_vl": PIXELS,
    "qwen3_vl": {"size": {"shortest_edge": 64, "longest_edge": 256}},
    "perception_lm": {"max_num_tiles": 1},
}


def shapes(processor: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of what becomes of a wide image."""
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}])
    found = processor(text=[text], images=[[picture(90, 40)]], return_tensors="pt")
    return {name: tuple(value.shape) for name, value in found.items()}


@pytest.mark.parametrize("family", OPTIONS)
def test_an_option_counts_and_stays_with_a_saved_processor(family: str, tmp_path: Path) -> None:
    family_processor(family).save_pretrained(tmp_path / "plain")
    plain = shapes(load_processor(str(tmp_path / "plain")))
    processor = load_processor(str(tmp_path / "plain"), options=OPTIONS[family])
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # min_pixels and max_pixels of a call are on their way out
        found = shapes(processor)
    assert found != plain
    processor.save_pretrained(tmp_path / "with")
    assert shapes(AutoProcessor.from_pretrained(tmp_path / "with")) == found
    copied = json.loads((tmp_path / "with" / "tokenizer_config.json").read_text()).keys() & OPTIONS[family].keys()
    assert not copied or family == "internvl"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("qwen") / "base"
    tiny_lvlm("qwen2_5_vl").save_pretrained(folder)
    family_processor("qwen2_5_vl").save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_pixel": 64},
            r"processor_options\.max_pixel is no option of .*Qwen2VLImageProcessor; did you mean max_pix",
        ),
        ({"gibberish": 1}, r"processor_options\.gibberish is no option of .*ImageProcessor; There are: crop_size, "),
        ({"max_pixels": "many"}, r"the processor refuses it: .*; check chat.processor_options {'max_pixels': 'many'}"),
        ({"video_processor": 3}, r"or correct chat.processor_options {'video_processor': 3}"),
        ({"revision": "main"}, "holds revision, for which data have an option of their own"),
    ],
)
def test_an_option_that_transformers_would_ignore_or_choke_on_is_refused(
    qwen: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        talk_data(qwen, chat={"processor_options": options})


def test_batches_are_made_with_it(qwen: str) -> None:
    plain, small = (
        next(iter(talk_data(qwen, **o).train_dataloader())) for o in ({}, {"chat": {"processor_options": PIXELS}})
    )
    assert small["inputs"]["pixel_values"].shape[0] < plain["inputs"]["pixel_values"].shape[0]
    assert small["inputs"]["input_ids"].shape[1] < plain["inputs"]["input_ids"].shape[1]
    datamodule = InstructionDataModule(qwen, Talks(22), chat={"processor_options": PIXELS})
    assert shapes(datamodule.load_processor()) != shapes(InstructionDataModule(qwen, Talks(22)).load_processor())


@pytest.mark.slow
@pytest.mark.usefixtures("reload_here")
def test_all_verbs_use_it_and_exports_hold_it(qwen: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "base").symlink_to(qwen)
    template = QWEN.replace("<|im_end|>\n", "<|im_end|>")
    config = tuning_config(tmp_path)
    content = yaml.safe_load(config.read_text())
    content["trainer"]["callbacks"].append(
        {"class_path": "callbacks.ExportAtEnd", "init_args": {"output": str(tmp_path / "end")}}
    )
    config.write_text(yaml.safe_dump(content))
    given = ["--config", str(config), "--data.chat.template", template]
    for name, value in PIXELS.items():
        given += [f"--data.chat.processor_options.{name}", str(value)]
    main(["inspect", "--config", str(config)])
    plain = capsys.readouterr().out
    main(["inspect", *given])
    assert "<image>(x4)" in plain and "<image><vision_end>" in capsys.readouterr().out
    cli = main(["fit", *given])
    wanted = cli.trainer.datamodule.chat.processor
    saved = str(checkpoint(tmp_path, 4))
    main(["validate", *given, "--ckpt_path", saved])
    main(["export", *given, "--ckpt_path", saved, "--weights", "raw", "--output", str(tmp_path / "verb")])
    for folder in ("end", "verb"):
        processor = AutoProcessor.from_pretrained(tmp_path / folder)
        assert shapes(processor) == shapes(wanted) != shapes(AutoProcessor.from_pretrained(qwen))
        assert processor.chat_template == template != CHATML
