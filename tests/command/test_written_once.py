"""What model and data of a run both need is written at the model."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from datamodules import CachedLatentsDataModule, ImageDataModule, InstructionDataModule, TeacherSamplesDataModule
from sparsight.command.cli import main
from sparsight.command.written_once import check_agreement, hand_over
from sparsight.common.errors import ConfigurationError
from tests.tiny_distillation import distillation_config

SAMPLING = {"steps": 25, "guidance_scale": 7.5}
MODEL = {"teacher": "a", "base": "b", "sampling": Namespace(SAMPLING), "revision": "v2", "trust_remote_code": True}
UNKNOWN = {"revision": None, "trust_remote_code": False}
UNGUIDED: dict[str, Any] = {"sampling": Namespace(guidance_scale=None)}
GUIDED = {"sampling": {"guidance_scale": 7.5}}


def config(kind: str, *, module: dict[str, Any] = MODEL, **data: Any) -> Namespace:
    part = Namespace(class_path=f"datamodules.{kind}", init_args=Namespace(**data))
    return Namespace(model=Namespace(class_path="x.Y", init_args=Namespace(**module)), data=part)


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        (
            "TeacherSamplesDataModule",
            {"teacher": None, **UNGUIDED, "loading": Namespace(UNKNOWN)},
            {"teacher": "a", **GUIDED, "loading": {"revision": "v2", "trust_remote_code": True}},
        ),
        (
            "TeacherSamplesDataModule",
            {"teacher": "mine", **UNGUIDED, "loading": Namespace(UNKNOWN)},
            {"teacher": "mine", **GUIDED, "loading": UNKNOWN},  # revisions are of the model that was named
        ),
        (
            "CachedLatentsDataModule",
            {"teacher": None, "loading": Namespace(revision="v1")},
            {"teacher": "a", "loading": {"revision": "v1"}},
        ),
        (
            "InstructionDataModule",
            {"model": None, "loading": Namespace(UNKNOWN)},
            {"model": "b", "loading": {"revision": "v2", "trust_remote_code": True}},
        ),
        (
            "InstructionDataModule",
            {"model": "mine", "loading": Namespace(UNKNOWN)},
            {"model": "mine", "loading": UNKNOWN},
        ),
        ("ImageDataModule", {"train": None}, {"train": None}),
    ],
)
def test_data_follow_the_module_where_they_say_nothing(kind: str, given: Any, expected: Any) -> None:
    whole = config(kind, **given)
    hand_over(whole)
    assert whole.data.init_args.as_dict() == expected


def test_a_teacher_draws_as_it_is_held_where_it_trains() -> None:
    held = {"dtype": "bfloat16", "quantization": "int8"}
    unsaid = Namespace(dict.fromkeys(held))
    whole = config("TeacherSamplesDataModule", module={"loading": Namespace(held)}, teacher="a", loading=unsaid)
    hand_over(whole)
    loading = whole.data.init_args.as_dict()["loading"]
    assert held.items() <= loading.items()


def test_a_module_that_does_not_know_hands_nothing_over() -> None:
    whole = config("TeacherSamplesDataModule", module={"pretrained": "a"}, teacher=None, **UNGUIDED)
    hand_over(whole)
    check_agreement(whole)
    assert whole.data.init_args.teacher is None
    no_data = Namespace(model=Namespace(class_path="x.Y"), data=None)
    hand_over(no_data)
    check_agreement(no_data)


@pytest.mark.parametrize(
    ("option", "value", "source"),
    [("teacher", "mine", "teacher is 'a'"), ("sampling.guidance_scale", 2.0, "sampling.guidance_scale is 7.5")],
)
def test_data_of_another_teacher_or_guidance_are_refused_by_name(option: str, value: Any, source: str) -> None:
    whole = config("TeacherSamplesDataModule", teacher="a", sampling=Namespace(guidance_scale=7.5))
    whole.data.init_args[option] = value
    with pytest.raises(ConfigurationError, match=rf"data\.{option} is {value!r}, but model\.{source}"):
        check_agreement(whole)


def test_two_spellings_of_one_folder_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").mkdir()
    check_agreement(
        config("TeacherSamplesDataModule", teacher=str(tmp_path / "a"), sampling=Namespace(guidance_scale=7.5))
    )
    check_agreement(config("InstructionDataModule", model="another with the same tokens"))


@pytest.mark.parametrize("kind", [TeacherSamplesDataModule, CachedLatentsDataModule, InstructionDataModule])
def test_in_python_the_model_is_named(kind: Any) -> None:
    options = {"images": ImageDataModule(None, image_size=8)} if kind is CachedLatentsDataModule else {}
    with pytest.raises(ConfigurationError, match=r"^(teacher|model) is not given, nor a model\.(teacher|base)"):
        kind(**options)


def test_the_command_fills_in_before_anything_is_built(tmp_path: Path) -> None:
    """One flag changes the teacher of both; what is kept of the run says whose samples they were."""
    path = distillation_config(tmp_path)
    content = yaml.safe_load(path.read_text())
    options = {"mode": "samples", "count": 4, "val_count": 0, "sampling": {"steps": 2}, "batch_size": 2}
    options |= {"cache": {"folder": str(tmp_path / "cache")}, "compute": {"device": "cpu"}}
    content["data"] = {"class_path": "TeacherSamplesDataModule", "init_args": options}
    content["trainer"] |= {"max_steps": 1, "logger": False, "enable_checkpointing": False}
    path.write_text(yaml.safe_dump(content))
    arguments = [
        "fit",
        "--config",
        str(path),
        "--model.sampling.guidance_scale",
        "1.5",
        "--model.trained.init_samples",
        "0",
    ]
    run = main(arguments)
    assert (run.datamodule.teacher, run.datamodule.plan.guidance) == (str(tmp_path / "teacher"), 1.5)
    with pytest.raises(
        SystemExit,
        match=r"sparsight: data\.sampling\.guidance_scale is 2\.0, but model\.sampling\.guidance_scale is 1\.5",
    ):
        main([*arguments, "--data.sampling.guidance_scale", "2.0"])


@pytest.mark.parametrize(
    ("module", "kind", "remedy"),
    [
        ("AttentionDistillation", "InstructionDataModule", "serves image-text models.* give --data ImageDataModule"),
        ("SparseLayerTuning", "ImageDataModule", "serves diffusion models.* give --data InstructionDataModule"),
        ("LVLMEvaluation", "TeacherSamplesDataModule", "serves diffusion models"),
    ],
)
def test_data_of_the_other_wing_are_refused(module: str, kind: str, remedy: str) -> None:
    whole = config(kind)
    whole.model.class_path = f"lightning_modules.{module}"
    with pytest.raises(ConfigurationError, match=f"^data: {kind} {remedy}"):
        hand_over(whole)
    hand_over(config(kind))  # of a module that does not say
