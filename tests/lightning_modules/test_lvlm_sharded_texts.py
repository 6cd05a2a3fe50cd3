"""A model that is split over processes (FSDP2), where some of them have no images in a batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sparsight.command.cli import main
from tests.tiny_lvlm import tiny_lvlm
from tests.tiny_processes import SHARDED, run_command
from tests.tiny_processors import family_processor
from tests.tiny_tuning import checkpoint, tuning_config


def mixed_config(folder: Path, family: str, **model: Any) -> Path:
    """Questions about images and questions without; answers end early and late."""
    base = tiny_lvlm(family)
    base.generation_config.eos_token_id = list(range(0, 320, 3))
    base.save_pretrained(folder / "base")
    family_processor(family).save_pretrained(folder / "base")
    config = tuning_config(folder, family, **model)
    content = yaml.safe_load(config.read_text())
    data = content["data"]["init_args"]
    texts = {"class_path": "TextQuestions", "init_args": {"kinds": ["opposites"]}}
    data["train"] = {"class_path": "MixedRecords", "init_args": {"sources": [data["train"], texts], "limits": [9, 9]}}
    data["val"]["init_args"]["limits"] = [5, 6]  # of the second batches, one has an image
    config.write_text(yaml.safe_dump(content))
    return config


def fit(config: Path, root: Path, *, processes: int) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Trained weights, and items of the evaluation."""
    trainer = {"devices": processes} | ({"strategy": SHARDED} if processes > 1 else {})
    overlay = root.with_suffix(".yaml")
    overlay.write_text(yaml.safe_dump({"trainer": trainer | {"default_root_dir": str(root)}}))
    run = main if processes == 1 else run_command
    run(["fit", "--config", str(config), "--config", str(overlay), f"--data.batch_size={2 // processes}"])
    saved = torch.load(checkpoint(root.parent, 4, run=root.name), weights_only=True)["state_dict"]
    return saved, json.loads((root / "scores_val.json").read_text())["items"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "options"),
    [("fast_vlm", {"compute": {"vision_cache_gib": 0.1}}), ("qwen3_vl", {})],
    ids=["fast_vlm", "qwen3_vl"],
)
def test_processes_without_pictures_keep_step(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    config = mixed_config(tmp_path, family, evaluation={"new_tokens": 5}, **options)
    wanted, answers = fit(config, tmp_path / "one", processes=1)
    found, again = fit(config, tmp_path / "two", processes=2)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert [item["index"] for item in again] == [item["index"] for item in answers]
    for a, b in zip(again, answers, strict=True):
        assert a["log_likelihood"] == pytest.approx(b["log_likelihood"], abs=1e-3)
        assert a["generated"] == b["generated"]
    assert len({len(item["generated"]) for item in answers}) > 1
