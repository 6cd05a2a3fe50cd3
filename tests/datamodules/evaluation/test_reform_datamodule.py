"""Options of evaluations: which samples are asked about, by what processor, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from datamodules import NamingTask, ReformEvalDataModule
from datamodules.evaluation.task import EvaluationTask
from lightning_modules import LVLMEvaluation
from sparsight.common.errors import ConfigurationError
from sparsight.evaluation.reform_eval.sample import Sample
from tests.tiny_evaluation import GreyTask
from tests.tiny_lvlm import save_tiny_lvlm, tiny_processor
from tests.tiny_records import captioned


class Talks(GreyTask):
    """Dialogues of two questions each."""

    def dialogues(self) -> list[list[int]]:
        return [[first, first + 1] for first in range(0, self.count, 2)]

    def __getitem__(self, index: int) -> Sample:
        return replace(super().__getitem__(index), turn=index % 2, dialogue=f"talk {index // 2}")


class Repeating(GreyTask):
    """The last sample has the id of the one before it."""

    def __getitem__(self, index: int) -> Sample:
        return replace(super().__getitem__(index), id=str(min(index, self.count - 2)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that holds no more than a processor."""
    folder = tmp_path_factory.mktemp("model")
    tiny_processor("llava").save_pretrained(folder)
    return str(folder)


def opened(model: str, *tasks: EvaluationTask, **options: Any) -> ReformEvalDataModule:
    data = ReformEvalDataModule(list(tasks or [GreyTask()]), model, **options)
    data.setup("test")
    return data


def asked(data: ReformEvalDataModule) -> list[str]:
    """Ids of the samples that are put to a model."""
    data.leave_out(tuple)
    return [asked.sample for batch in data.test_dataloader() for asked in batch["questions"]]


def test_a_limit_draws_samples_with_the_seed(model: str) -> None:
    assert len(asked(opened(model, GreyTask(count=20)))) == 20
    drawn = [asked(opened(model, GreyTask(count=20), limit=5, seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 5 and drawn[0] == sorted(drawn[0], key=int)


def test_a_limit_keeps_dialogues_whole(model: str) -> None:
    data = opened(model, Talks(count=20), limit=3)
    data.leave_out(tuple)
    asked = [question for batch in data.test_dataloader() for question in batch["questions"]]
    assert [question.turn for question in asked] == [0, 1] * 3
    assert len({question.dialogue for question in asked}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": []}, r"tasks is \[\]; allowed: one or more"),
        ({"tasks": [GreyTask("a"), GreyTask("b"), GreyTask("a")]}, "tasks have the same name: a; give each its own"),
        ({"protocol": {"methods": []}}, r"methods is \[\]; allowed: likelihood, generation"),
        ({"protocol": {"methods": ["likelyhood"]}}, r"methods is \['likelyhood'\]; allowed: likelihood, generation"),
        ({"protocol": {"methods": ["generation", "generation"]}}, "allowed: likelihood, generation"),
        ({"protocol": {"marks": "uper"}}, "marks is uper; allowed: number, lower, upper, random"),
        ({"protocol": {"runs": 0}}, "runs is 0; allowed: 1 or more"),
        ({"limit": 0}, "limit is 0; allowed: 1 or more, or null"),
        ({"tasks": [GreyTask(formulation="OCROpenEnded", dimension="scene_text")]}, "no task has options to weigh"),
    ],
)
def test_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReformEvalDataModule(**{"tasks": [GreyTask()], **options})


def test_samples_of_one_id_are_refused(model: str) -> None:
    with pytest.raises(ValueError, match=r"5.*: it and .*4.* have the same id '4'"):
        opened(model, Repeating())


def test_empty_tasks_are_refused(model: str) -> None:
    with pytest.raises(ValueError, match="task greys has no samples"):
        opened(model, GreyTask(count=0))
    nothing = NamingTask(captioned(), name="names", dimension="coarse_perception")
    with pytest.raises(ValueError, match="task 'names': its source Pictures has no records"):
        opened(model, nothing)


def test_another_chat_template_is_used(model: str) -> None:
    template = "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{{ p.text if p.text else '<image>' }}"
    template += "{% endfor %}</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    plain, other = (opened(model, **options).describe("test", 0) for options in ({}, {"chat": {"template": template}}))
    assert "[user]" in other and "[user]" not in plain


def test_options_of_the_processor_are_used(model: str) -> None:
    dark = {"image_mean": [0.9, 0.9, 0.9]}
    plain, other = (opened(model, **options).example() for options in ({}, {"chat": {"processor_options": dark}}))
    assert plain is not None and other is not None
    assert not torch.allclose(plain["pixel_values"], other["pixel_values"])


def test_answers_that_nothing_keeps_are_not_computed(tmp_path: Path) -> None:
    module = LVLMEvaluation(str(save_tiny_lvlm(tmp_path / "tiny", "llava")))
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"nothing keeps the answers: add callbacks\.ReformEvalReport"):
        trainer.test(module, ReformEvalDataModule([GreyTask()]), verbose=False)


def test_the_suite_tells_options_of_tasks_and_sources_and_their_instructions(model: str) -> None:
    task = NamingTask(
        captioned("red", "green", "blue", "grey"), name="names", dimension="coarse_perception", seed=3, options=2
    )
    own = GreyTask("own")
    own.instructions = ["Look."]
    reading = GreyTask("words", "scene_text", "OCROpenEnded")
    suite = opened(model, task, own, reading, protocol={"methods": ["likelihood", "generation"]}).suite()
    assert {name: suite["names"][name] for name in ("class", "seed", "options", "limit")} == {
        "class": "NamingTask",
        "seed": 3,
        "options": 2,
        "limit": None,
    }
    assert suite["names"]["source"]["class"] == "Pictures"
    assert set(suite["words"]["instructions"]) == {"generation"}
    assert suite["own"]["instructions"]["likelihood"] == {"with_pictures": ["Look."], "without_pictures": ["Look."]}
    by_generation = suite["names"]["instructions"]["generation"]
    assert len(by_generation["with_pictures"]) == 5
    assert not any(re.search("picture|seen", text) for text in by_generation["without_pictures"])
