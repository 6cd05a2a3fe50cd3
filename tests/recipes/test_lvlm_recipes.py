"""The shipped recipes of image-text models, walked through with tiny models of the same classes and depths.

Qwen3-VL's, with the fewest layers, stands for all in ``make test``: each walk is the same commands.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from benchmarks.visual_region_study import CONFIG, SCORES_FILE, fitted_and_judged
from sparsight.command.arguments import read_config
from sparsight.lvlm.export import reload
from sparsight.lvlm.model.provenance import read_provenance
from sparsight.lvlm.model.tower import find_parts
from tests.tiny_families import SIDE, TEXT, VISION
from tests.tiny_files import write_idx
from tests.tiny_lvlm import save_tiny_lvlm, tiny_lvlm
from tests.tiny_pages import code_blocks
from tests.tiny_processors import family_processor
from tests.tiny_recipes import command, without_export
from tests.tiny_tokens import tiny_tokenizer

KINDS = ["bag", "coat", "shoe"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations in LLaVA's format, some without an image, items with candidates, and labelled images."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    labels = np.arange(30, dtype=np.uint8) % 3
    pictures = (rng.integers(0, 60, (30, 16, 16)) + 90 * labels[:, None, None]).astype(np.uint8)
    write_idx(folder / "pictures", pictures), write_idx(folder / "labels", labels)
    entries: list[dict[str, Any]] = []
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        asked, answer = f"What is number {number}?", KINDS[label]
        entry: dict[str, Any] = {"id": str(number)}
        if number % 5:
            Image.fromarray(picture).save(folder / "images" / f"{number}.png")
            entry["image"], asked = f"{number}.png", f"<image>\n{asked}"
        entry["conversations"] = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
        entries.append(entry)
    items = [entry | {"candidates": KINDS, "answer": KINDS[n % 3], "task": "naming"} for n, entry in enumerate(entries)]
    (folder / "talks.json").write_text(json.dumps(entries))
    (folder / "items.json").write_text(json.dumps(items[:5]))
    return folder


def shrunk(name: str, base: Path, data: Path, folder: Path, *, steps: Sequence[int]) -> Path:
    """What is laid over a recipe: another model and data, and smaller numbers; nothing else is changed."""
    recipe = read_config(f"experiment/{name}")
    callbacks = recipe["trainer"]["callbacks"]
    for callback in callbacks:
        options = callback.get("init_args", {})
        if "every_n_train_steps" in options:
            options["every_n_train_steps"] = sum(steps) // 2
    accumulated = min(2, recipe["trainer"].get("accumulate_grad_batches", 1))
    stages = [
        stage | {"steps": count} for stage, count in zip(recipe["model"]["init_args"]["stages"], steps, strict=True)
    ]
    small: dict[str, Any] = {
        "trainer": {
            "accelerator": "cpu",
            "default_root_dir": str(folder / name),
            "enable_progress_bar": False,
            "accumulate_grad_batches": accumulated,
            "val_check_interval": sum(steps) * accumulated,
            "log_every_n_steps": 1,
            "callbacks": callbacks,
        },
        "model": {"init_args": {"base": str(base), "stages": stages}},
        "data": {"init_args": {"batch_size": 2, "num_workers": 0} | sources(recipe, data)},
    }
    if "prune" in recipe["model"]["init_args"]:
        small["model"]["init_args"]["prune"] = {"batches": 2}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(small))
    return path


def sources(recipe: dict[str, Any], data: Path) -> dict[str, Any]:
    """The recipe's record sources with other files, and fewer items to evaluate."""
    found = {key: value for key, value in recipe["data"]["init_args"].items() if key in ("train", "val")}
    for name, source in found.items():
        if source["class_path"] == "datamodules.MixedRecords":
            source["init_args"]["limits"] = [5, 6]
        for leaf in leaves(source):
            options = leaf.setdefault("init_args", {})
            if leaf["class_path"] == "datamodules.ConversationRecords":
                file = "talks.json" if name == "train" else "items.json"
                options |= {"file": str(data / file), "images": str(data / "images")}
            elif leaf["class_path"] == "datamodules.IdxRecords":
                options |= {"images": str(data / "pictures"), "labels": str(data / "labels"), "classes": KINDS}
    if "val_share" in recipe["data"]["init_args"]:
        found["val_share"] = 0.2
    return found


def leaves(source: dict[str, Any]) -> list[dict[str, Any]]:
    """Sources that read files, inside sources that hold others."""
    options = source.get("init_args", {})
    inner = [*options.get("sources", []), *([options["source"]] if "source" in options else [])]
    return [leaf for part in inner for leaf in leaves(part)] if inner else [source]


def walk(name: str, base: Path, data: Path, folder: Path, *, steps: Sequence[int] = (2,)) -> tuple[Path, Any]:
    """Fit, resume from half-way, validate; the recipe's own export, and the module, are the answer."""
    small = shrunk(name, base, data, folder, steps=steps)
    run = folder / name / "lightning_logs"
    last = Path("checkpoints") / "last.ckpt"
    command("fit", name, small, "--config", without_export(small), "--trainer.max_steps", str(sum(steps) // 2))
    half = torch.load(run / "version_0" / last, weights_only=True)
    fitted = command("fit", name, small, "--ckpt_path", str(run / "version_0" / last))
    whole = torch.load(run / "version_1" / last, weights_only=True)
    assert 2 * half["global_step"] == whole["global_step"] == fitted.trainer.global_step == sum(steps)
    assert half["state_dict"].keys() == whole["state_dict"].keys() == fitted.model.trained_names()
    assert any(not torch.equal(whole["state_dict"][key], value) for key, value in half["state_dict"].items())
    again = command("validate", name, small, "--ckpt_path", str(run / "version_1" / last))
    wanted, got = (m.trainer.callback_metrics["val/loss"] for m in (fitted, again))
    torch.testing.assert_close(got, wanted)
    return folder / name / fitted.model.export_name, fitted.model


def check_export(folder: Path, *, layers: int, tuned: list[int]) -> dict[str, Any]:
    """The folder is a plain model of that depth, answers, and knows where it comes from."""
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert len(find_parts(model).layers) == layers
    processor = AutoProcessor.from_pretrained(folder)
    inputs = reload.example_inputs(processor)
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] > inputs["input_ids"].shape[1]
    record = read_provenance(folder)
    assert record is not None and record["tuned_layers"] == tuned
    return record


# recipe, family and depth of the model that others go on from, steps of its stages
FIRST: dict[str, tuple[str, int, tuple[int, ...]]] = {
    "llava15_7b_region": ("llava", 32, (2,)),
    "own_tune": ("llava_qwen2", 12, (2,)),
    "lvlm_demo": ("fast_vlm", 30, (1, 1)),
}


@pytest.fixture(scope="module")
def exported(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """Walks a recipe of ``FIRST``, once for all tests of this file; its export and its module."""

    @cache
    def walked(name: str) -> tuple[Path, Any]:
        family, depth, steps = FIRST[name]
        folder = tmp_path_factory.mktemp(name)
        return walk(name, save_tiny_lvlm(folder / "base", family, num_hidden_layers=depth), data, folder, steps=steps)

    return walked


@pytest.mark.slow
@pytest.mark.usefixtures("reload_here")
def test_llava_15_7b(exported: Callable[[str], tuple[Path, Any]]) -> None:
    folder, module = exported("llava15_7b_region")
    check_export(folder, layers=32, tuned=[1, 5, 9, 13, 19, 23, 27, 31])
    adapted = {name for name in module.trained_names() if "lora_" in name}
    assert len(adapted) == 8 * 7 * 2 and all("language_model" in name for name in adapted)
    groups = {group["name"]: group["initial_lr"] for group in module.trainer.optimizers[0].param_groups}
    assert groups == {"layers": 2e-4, "projector": 2e-5}


@pytest.mark.slow
@pytest.mark.usefixtures("reload_here")
def test_llava_15_7b_loses_layers_outside_its_region(
    data: Path, exported: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    pruned, module = walk("llava15_7b_prune", exported("llava15_7b_region")[0], data, tmp_path)
    record = check_export(pruned, layers=28, tuned=module.layers)
    gone = record["removed_layers"]
    assert len(gone) == 4 and not set(gone) & {0, *record["tuned_layers"]}
    assert all(later - earlier > 1 for earlier, later in itertools.pairwise(gone))
    assert record["earlier"]["tuned_layers"] == module.layers and len(record["tuned_layers_now"]) == 8


@pytest.mark.slow
@pytest.mark.usefixtures("reload_here")
def test_llava_15_13b_differs_in_its_layers(data: Path, tmp_path: Path) -> None:
    base = save_tiny_lvlm(tmp_path / "base", "llava", num_hidden_layers=40)
    folder, _ = walk("llava15_13b_region", base, data, tmp_path)
    check_export(folder, layers=40, tuned=[0, 4, 8, 13, 17, 22, 26, 31, 35])


@pytest.mark.slow
@pytest.mark.usefixtures("reload_here")
def test_a_model_and_data_of_ones_own(exported: Callable[[str], tuple[Path, Any]]) -> None:
    check_export(exported("own_tune")[0], layers=12, tuned=[0, 4, 8])


@pytest.mark.slow
@pytest.mark.usefixtures("reload_here")
def test_a_model_of_ones_own_loses_layers(
    data: Path, exported: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    pruned, _ = walk("own_prune", exported("own_tune")[0], data, tmp_path)
    record = check_export(pruned, layers=8, tuned=[0, 4, 8])
    assert not set(record["removed_layers"]) & {0, 4, 8, 11}


@pytest.mark.slow
@pytest.mark.usefixtures("reload_here")
def test_a_bunny_like_model_from_its_parts(data: Path, tmp_path: Path) -> None:
    base = bunny_base(tmp_path)
    small = shrunk("bunny_llama3_8b_align", base, data, tmp_path, steps=(2,))
    module = command("fit", "bunny_llama3_8b_align", small).model
    aligned = tmp_path / "bunny_llama3_8b_align" / module.export_name
    assert {name.split(".")[2] for name in module.trained_names()} == {"multi_modal_projector"}
    check_export(aligned, layers=32, tuned=[])
    tuned, _ = walk("bunny_llama3_8b_region", aligned, data, tmp_path)
    record = check_export(tuned, layers=32, tuned=[1, 5, 9, 13, 19, 23, 27, 31])
    assert record["earlier"]["trained"] == ["projector"]


def bunny_base(folder: Path) -> Path:
    """What the script of docs/lvlm.md makes of a tiny text model and a tiny vision tower."""
    LlamaForCausalLM(LlamaConfig(**{**TEXT, "num_hidden_layers": 32})).save_pretrained(folder / "text")
    tiny_tokenizer().save_pretrained(folder / "text")
    SiglipVisionModel(SiglipVisionConfig(**VISION)).save_pretrained(folder / "vision")
    SiglipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder / "vision")
    (script,) = (code for code in code_blocks("lvlm.md", "python") if code.startswith("# make_base.py"))
    places = {"meta-llama/Meta-Llama-3-8B-Instruct": "text", "google/siglip-so400m-patch14-384": "vision"}
    for written, name in {**places, "data/bunny/base": "base"}.items():
        assert f'"{written}"' in script
        script = script.replace(f'"{written}"', repr(str(folder / name)))
    exec(script, {})
    return folder / "base"


@pytest.mark.usefixtures("reload_here")
def test_qwen3_vl(data: Path, tmp_path: Path) -> None:
    tiny_lvlm("qwen3_vl").save_pretrained(tmp_path / "base")
    family_processor("qwen3_vl").save_pretrained(tmp_path / "base")
    folder, module = walk("qwen3_vl_2b_24gb", tmp_path / "base", data, tmp_path)
    check_export(folder, layers=6, tuned=[0, 3])
    assert {name.split(".")[2] for name in module.trained_names()} == {"language_model", "visual"}


@pytest.mark.slow
@pytest.mark.usefixtures("reload_here")
def test_the_offline_demo(exported: Callable[[str], tuple[Path, Any]]) -> None:
    folder, module = exported("lvlm_demo")
    check_export(folder, layers=30, tuned=[0, 3, 7, 11, 15, 18, 22, 26])
    assert module.vision_cache.kept
    scores = json.loads((folder.parent / "lightning_logs" / "version_1" / "scores_val.json").read_text())
    assert {item["visual"] for item in scores["items"]} == {True, False} and len(scores["items"]) == 11


@pytest.mark.slow
@pytest.mark.usefixtures("reload_here")
def test_the_offline_demo_loses_layers(data: Path, exported: Callable[[str], tuple[Path, Any]], tmp_path: Path) -> None:
    pruned, module = walk("lvlm_demo_prune", exported("lvlm_demo")[0], data, tmp_path)
    record = check_export(pruned, layers=26, tuned=module.layers)
    assert not set(record["removed_layers"]) & {0, 29, *module.layers}


@pytest.mark.slow
def test_a_study_run_broken_off_before_its_evaluation_is_judged(data: Path, tmp_path: Path) -> None:
    """All steps are done, so that Lightning's resumed fit ends at once and evaluates nothing."""
    base = save_tiny_lvlm(tmp_path / "base", "fast_vlm", num_hidden_layers=30)
    small = shrunk("visual_region_study", base, data, tmp_path, steps=(2,))
    arguments, run = ["--config", CONFIG, "--config", str(small)], tmp_path / "visual_region_study"
    whole = fitted_and_judged(arguments, run)
    scores = Path(whole.trainer.log_dir, SCORES_FILE).read_text()
    Path(whole.trainer.log_dir, SCORES_FILE).unlink()

    again = fitted_and_judged(arguments, run)
    assert (whole.subcommand, again.subcommand) == ("fit", "validate")
    assert Path(again.trainer.log_dir, SCORES_FILE).read_text() == scores
