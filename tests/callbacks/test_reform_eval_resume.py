"""Answers of an evaluation are used again where model, protocol and question are the same, and nowhere else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lightning_modules import LVLMEvaluation
from sparsight.evaluation.reform_eval import prompt
from sparsight.evaluation.reform_eval.report import read_report
from tests.tiny_evaluation import BOTH, GreyTask, evaluate, scores
from tests.tiny_lvlm import save_tiny_lvlm


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_lvlm(tmp_path_factory.mktemp("model") / "tiny", "llava")


def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_report(evaluate(model, tmp_path / "whole"))
    folder = evaluate(model, tmp_path / "parts", limit=3)
    first = read_report(folder)
    assert not first["complete"]
    assert first["answered"] == 9
    assert "Not finished: 9 of" in (folder / "report.md").read_text()
    with (folder / "answers-0.jsonl").open("a") as file:
        file.write('{"key": "likelihood/greys')  # killed while it wrote
    asked: list[Any] = []
    step = LVLMEvaluation.test_step
    monkeypatch.setattr(
        LVLMEvaluation,
        "test_step",
        lambda self, batch, number: (asked.extend(batch["questions"]), step(self, batch, number))[1],
    )
    evaluate(model, tmp_path / "parts", batch_size=2)
    assert len(asked) == whole["asked"] - 9
    assert read_report(folder)["complete"]
    assert [a["sample"] for a in read_report(folder)["answers"]] == [a["sample"] for a in whole["answers"]]
    assert scores(folder) == pytest.approx(scores(tmp_path / "whole"))


def test_a_finished_evaluation_is_reported_again_without_asking_all(model: Path, tmp_path: Path) -> None:
    evaluate(model, tmp_path / "out")
    before = (tmp_path / "out" / "answers-0.jsonl").read_text()
    evaluate(model, tmp_path / "out", resamples=200)
    assert (tmp_path / "out" / "answers-0.jsonl").read_text() == before
    assert read_report(tmp_path / "out")["complete"]


def test_captions_alone_are_reported_again_too(model: Path, tmp_path: Path) -> None:
    captions = {"tasks": [GreyTask("captions", "description", "Generation", count=3)]}
    evaluate(model, tmp_path / "out", **captions)
    evaluate(model, tmp_path / "out", resamples=200, **captions)
    assert read_report(tmp_path / "out")["complete"]


@pytest.mark.parametrize("other", [{"seed": 1}, {"protocol": BOTH | {"runs": 2}}])
def test_answers_to_questions_put_otherwise_are_not_mixed(model: Path, tmp_path: Path, other: dict[str, Any]) -> None:
    evaluate(model, tmp_path / "out", tasks=[GreyTask()])
    with pytest.raises(ValueError, match="was begun with protocol"):
        evaluate(model, tmp_path / "out", tasks=[GreyTask()], **other)


def test_answers_to_other_instructions_of_the_suite_are_not_mixed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(model, tmp_path / "out", tasks=[GreyTask()])
    monkeypatch.setattr(prompt, "_ANSWER", ("Say it.",) * 5)
    with pytest.raises(ValueError, match=r"was begun with protocol\.suite"):
        evaluate(model, tmp_path / "out", tasks=[GreyTask()])


def kept(folder: Path) -> int:
    """Answers on disk."""
    return len((folder / "answers-0.jsonl").read_text().splitlines()) - 1


@pytest.mark.slow
def test_after_a_task_was_mended_the_answers_of_others_are_kept(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    facts = GreyTask("facts", "text_only", count=4, pictures=False)
    folder = evaluate(model, tmp_path / "out", tasks=[GreyTask(), facts])
    first = read_report(folder)
    assert kept(folder) == 20
    caplog.clear()
    with caplog.at_level("INFO"):
        evaluate(model, tmp_path / "out", tasks=[GreyTask(pictures=False), facts])
    second = read_report(folder)
    assert kept(folder) == 20 + 12 and second["complete"]
    assert "8 answers are in" in caplog.text
    assert "12 answers in" in caplog.text and "have changed since, of greys: these questions are asked" in caplog.text
    assert {a["pictures"] for a in second["answers"]} == {0}
    assert second["answers"] != first["answers"]
    (before,) = folder.glob("before-*")
    assert read_report(before) == first
    assert (before / "report.md").is_file() and (before / "dimensions.png").is_file()

    evaluate(model, tmp_path / "out", tasks=[GreyTask(), facts])  # mended back: nothing is asked
    assert kept(folder) == 20 + 12
    assert read_report(folder)["answers"] == first["answers"]


@pytest.mark.slow
def test_with_a_higher_limit_only_new_samples_are_asked(model: Path, tmp_path: Path) -> None:
    evaluate(model, tmp_path / "out", tasks=[GreyTask()], limit_samples=2)
    assert kept(tmp_path / "out") == 4
    evaluate(model, tmp_path / "out", tasks=[GreyTask()], limit_samples=5)
    assert kept(tmp_path / "out") == 10 and read_report(tmp_path / "out")["complete"]


def test_answers_of_another_model_are_not_mixed(model: Path, tmp_path: Path) -> None:
    evaluate(model, tmp_path / "out", tasks=[GreyTask()])
    other = save_tiny_lvlm(tmp_path / "other" / "tiny", "fast_vlm")
    with pytest.raises(ValueError, match="was begun with model"):
        evaluate(other, tmp_path / "out", tasks=[GreyTask()])


def test_answers_that_other_processes_left_are_not_mixed_either(model: Path, tmp_path: Path) -> None:
    """On fewer processes than before, and after the first file was deleted, as its message says."""
    evaluate(model, tmp_path / "out", tasks=[GreyTask()])
    (tmp_path / "out" / "answers-0.jsonl").rename(tmp_path / "out" / "answers-1.jsonl")
    other = save_tiny_lvlm(tmp_path / "other" / "tiny", "fast_vlm")
    with pytest.raises(ValueError, match=r"answers-1\.jsonl was begun with model"):
        evaluate(other, tmp_path / "out", tasks=[GreyTask()])
    assert not (tmp_path / "out" / "answers-0.jsonl").exists()
    evaluate(model, tmp_path / "out", tasks=[GreyTask()])
    assert len((tmp_path / "out" / "answers-0.jsonl").read_text().splitlines()) == 1  # nothing was asked again


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("processor_config.json", {"image_processor": {"image_mean": [0.1, 0.2, 0.3]}}, "begun with processor"),
        ("config.json", {"text_config": {"rms_norm_eps": 0.5}}, "begun with model"),
    ],
)
def test_a_model_folder_that_was_changed_by_hand_is_another(
    model: Path, tmp_path: Path, file: str, change: dict[str, Any], message: str
) -> None:
    """Its name and weights are the same."""
    copy = shutil.copytree(model, tmp_path / "copy" / model.name)
    evaluate(copy, tmp_path / "out", tasks=[GreyTask()])
    content = json.loads((copy / file).read_text())
    for name, value in change.items():
        content[name] = content[name] | value if isinstance(value, dict) else value
    (copy / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        evaluate(copy, tmp_path / "out", tasks=[GreyTask()])
