"""Old options of constructors lead to the new ones: in Python, in configs, on the command line and in checkpoints."""

from __future__ import annotations

import copy
import inspect
import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser, Namespace

import datamodules
import lightning_modules
from datamodules import ImageDataModule, TeacherSamplesDataModule
from lightning_modules import AttentionDistillation
from sparsight.command.cli import main
from sparsight.command.parsing.former import follow_former_options
from sparsight.common.checkpoint.run_record import check_options
from sparsight.common.disk.cache_options import CacheOptions
from sparsight.common.errors import CheckpointError
from sparsight.common.moved import OPTIONS, as_now, move_options, takes_former_options
from sparsight.common.plain import flatten
from tests.tiny_distillation import distillation_config

MOVED = [(name, old, new) for name, moved in OPTIONS.items() for old, new in moved.items()]
STAGES = [{"objective": "layerwise", "steps": 1, "lr": 0.1}]
NEEDED: dict[str, dict[str, Any]] = {
    "AttentionDistillation": {"teacher": "t", "mixer": {"class_path": "blocks.NoMixing"}, "stages": STAGES},
    "ImageDataModule": {"train": {"class_path": "datamodules.EmojiRecords"}},
    "LVLMEvaluation": {"base": "b"},
    "ReformEvalDataModule": {"tasks": [{"class_path": "tests.tiny_evaluation.GreyTask"}]},
    "SparseLayerTuning": {"base": "b", "stages": [{"steps": 1}]},
    "StreamingImageDataModule": {"train": {"class_path": "datamodules.TarStream", "init_args": {"files": "a.tar"}}},
}
VALUES: dict[str, Any] = {  # by option, where 7 will not do
    "answer": "{label}",
    "attn_implementation": "eager",
    "cache_dir": "here",
    "channels": 1,
    "chat_template": "{{ messages }}",
    "chat_template_kwargs": {"enable_thinking": False},
    "class_names": ["bag", "coat"],
    "device": "cpu",
    "compile": True,
    "distill_from": "folder",
    "dtype": "bfloat16",
    "example": False,
    "fit": "pad",
    "gradient_checkpointing": True,
    "horizontal_flip": True,
    "lora": {"rank": 2, "alpha": 4, "targets": ["*.ff.*"]},
    "lr_schedule": "cosine",
    "length_grouping": True,
    "marks": "lower",
    "max_corrupt_share": 0.5,
    "max_unused_share": 0.5,
    "methods": ["generation"],
    "other_classes": True,
    "replicate_trained": True,
    "packing": True,
    "perturbation": {"instructions": True, "options": False, "marks": True},
    "processor_options": {"max_pixels": 64},
    "question": "What?",
    "reasoning": "train",
    "revision": "main",
    "sample_size": (8, 8),
    "size": (8, 8),
    "teacher_dtype": "bfloat16",
    "teacher_quantization": "int8",
    "text_encoder": "words",
    "timesteps": {"density": "mode", "mean": 0.5, "std": 2.0, "mode_scale": 1.0, "shifted": False},
    "train_projections": True,
    "train_rest": ["norms"],
    "trust_remote_code": True,
    "variant": "fp16",
}
BESIDE: dict[str, dict[str, Any]] = {  # without which it is refused
    "answer": {"question": "What?"},
    "distill_from": {"distill": 1.0},
    "packing": {"max_length": 9},
    "question": {"answer": "{label}"},
}


def class_of(name: str) -> Any:
    return getattr(lightning_modules, name, None) or getattr(datamodules, name)


@cache
def parser_of(kind: type[Any]) -> ArgumentParser:
    """Takes options of a class as the command does."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "it")
    follow_former_options()
    return parser


def at(options: Any, key: str) -> Any:
    for part in key.split("."):
        options = options[part]
    return options.as_dict() if isinstance(options, Namespace) else options


@pytest.mark.parametrize(("name", "old", "new"), MOVED, ids=[f"{name}-{old}" for name, old, _ in MOVED])
def test_every_old_option_works_in_yaml_as_a_flag_in_python_and_in_a_checkpoint(name: str, old: str, new: str) -> None:
    kind, value = class_of(name), VALUES.get(old, 7)
    path, needed = (
        f"{kind.__module__}.{name}",
        copy.deepcopy(NEEDED.get(name, {})),
    )  # parsers change what they are given
    given = json.dumps({"class_path": path, "init_args": needed})
    with pytest.warns(FutureWarning, match=rf"{old} of {name} is {new} now"):
        found = parser_of(kind).parse_object({"it": {"class_path": path, "init_args": needed | {old: value}}})
    assert at(found.it.init_args, new) == value
    with pytest.warns(FutureWarning, match=rf"{old} of {name} is {new} now"):
        flag = value if isinstance(value, str) else json.dumps(value)
        found = parser_of(kind).parse_args([f"--it={given}", f"--it.{old}={flag}"])
    assert at(found.it.init_args, new) == value

    class Noting(kind):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            self.noted = options

    assert kind.__init__.__wrapped__, "takes_former_options stands before the class"
    with pytest.warns(FutureWarning, match=rf"{old} of Noting is {new} now"):
        noted = takes_former_options(Noting)(**{old: value} | BESIDE.get(old, {})).noted
    group, _, field = new.partition(".")
    assert noted.keys() == {group} and asdict(noted[group])[field] == value
    assert as_now(name, flatten({old: value})) == flatten({new: value})
    assert old not in inspect.signature(kind).parameters


def test_python_takes_old_keywords_beside_new_ones() -> None:
    with pytest.warns(FutureWarning, match=r"cache_dir of TeacherSamplesDataModule is cache\.folder now"):
        data = TeacherSamplesDataModule("nowhere", cache_dir="here", shard_size=3, cache=CacheOptions("there", 5, None))
    assert (str(data.cache_dir), data.plan.shard_size, data.verify_days) == ("here", 3, None)


class _Own(AttentionDistillation):
    """A user's."""


def test_mappings_keep_what_is_there_and_what_other_classes_call_so() -> None:
    options = {"guidance_scale": 3.0, "sampling": {"steps": 7}, "cache_dir": "not of this class"}
    with pytest.warns(FutureWarning, match="guidance_scale"):
        move_options(_Own, options)
    assert options == {"sampling": {"steps": 7, "guidance_scale": 3.0}, "cache_dir": "not of this class"}


def test_configs_and_flags_of_old_names_are_those_of_today(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(distillation_config(tmp_path))
    old = tmp_path / "old.yaml"
    old.write_text("model: {init_args: {sample_steps: 3, sample_size: [8, 8]}}\n")
    with pytest.warns(FutureWarning), pytest.raises(SystemExit):
        main(["fit", "--config", path, "--config", str(old), "--model.guidance_scale", "4", "--print_config"])
    found = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert found["sampling"] == {"steps": 3, "guidance_scale": 4.0, "size": [8, 8]}


def test_checkpoints_of_old_names_are_compared_with_the_new_ones() -> None:
    saved = {"sample_steps": 20, "sample_size": (8, 8)}
    now = {"sampling": {"steps": 25, "size": [8, 8]}}
    check_options(saved, now, class_path="lightning_modules.AttentionDistillation", source="a.ckpt")
    now["sampling"]["size"] = [4, 4]
    with pytest.raises(CheckpointError, match=r"sampling\.size\.0: 8 in the checkpoint, 4"):
        check_options(saved, now, class_path="lightning_modules.AttentionDistillation", source="a.ckpt")


def test_options_of_classes_inside_others_lead_on_as_well() -> None:
    kind, images = "datamodules.CachedLatentsDataModule", {"class_path": "datamodules.ImageDataModule"}
    train = {"train": {"class_path": "datamodules.EmojiRecords"}}
    given = {"class_path": kind, "init_args": {"images": images | {"init_args": train | {"fit": "pad"}}}}
    with pytest.warns(FutureWarning, match=r"fit of ImageDataModule is transform\.fit now"):
        found = parser_of(datamodules.CachedLatentsDataModule).parse_object({"it": given})
    assert found.it.init_args.images.init_args.transform.fit == "pad"
    saved = flatten({"images": images | {"init_args": {"fit": "pad", "image_size": 8}}, "fit": "of no such class"})
    now = images | {"init_args": {"transform": {"fit": "pad"}, "image_size": 8}}
    assert as_now(kind, saved) == flatten({"images": now, "fit": "of no such class"})


class _Mine(ImageDataModule):
    """A user's, with an option of its own."""

    def __init__(self, train: Any, extra: int = 3, **options: Any) -> None:
        super().__init__(train, image_size=7, **options)
        self.extra = extra


def test_checkpoints_keep_what_derived_classes_add() -> None:
    held = dict(_Mine(None, extra=5, batch_size=2, transform={"channels": 1}).hparams)
    assert (held["extra"], held["image_size"], held["batch_size"], held["transform"]["channels"]) == (5, 7, 2, 1)
