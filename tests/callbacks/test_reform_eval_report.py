"""Evaluations end to end on a tiny image-text model: answers kept, resumed, shared among processes, reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from transformers import LlavaForConditionalGeneration

from callbacks import ReformEvalReport
from datamodules import InstructionDataModule, ReformEvalDataModule, TextQuestions
from lightning_modules import LVLMEvaluation
from sparsight.common.errors import ConfigurationError
from sparsight.common.finite import NonFiniteError
from sparsight.evaluation.compare import compare_reports
from sparsight.evaluation.questions import answer
from sparsight.evaluation.reform_eval.report import read_report
from sparsight.lvlm.answer.write import Written
from tests import tiny_evaluation as questions
from tests.tiny_evaluation import BOTH, GreyTask, evaluate, scores
from tests.tiny_lvlm import save_tiny_lvlm, tiny_lvlm
from tests.tiny_processors import family_processor
from tests.tiny_rows import few


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_lvlm(tmp_path_factory.mktemp("model") / "tiny", "llava")


def test_every_question_is_answered_scored_and_reported(model: Path, tmp_path: Path) -> None:
    folder = evaluate(model, tmp_path / "out", protocol=BOTH | {"runs": 2})
    report = read_report(folder)
    assert report["complete"]
    keys = [(a["method"], a["task"], a["sample"], a["run"]) for a in report["answers"]]
    assert len(set(keys)) == len(keys) == 2 * (6 + 4) + 2 * (6 + 5 + 4 + 4)
    found = scores(folder)
    right = [a for a in report["answers"] if a["task"] == "greys" and a["method"] == "likelihood"]
    expected = sum(a["choice"] == a["answer"] for a in right) / len(right)
    assert found["likelihood", "task", "greys", "accuracy"] == pytest.approx(expected)
    for a in right:
        assert a["choice"] == max(range(4), key=lambda n, a=a: a["log_likelihoods"][n])
    assert (
        found["generation", "dimension", "scene_text", "score"] == found["generation", "task", "words", "word_accuracy"]
    )
    of_all = (
        found["generation", "task", "greys", "accuracy"] + found["generation", "task", "words", "word_accuracy"]
    ) / 2
    assert found["generation", "all", "", "score"] == pytest.approx(of_all)  # neither captions nor texts are in it
    assert ("likelihood", "task", "greys", "instability") in found
    assert (folder / "dimensions.png").read_bytes()[:4] == b"\x89PNG"
    assert "dimension coarse_perception" in (folder / "report.md").read_text()
    assert set(report["prompts"]) == {f"{m}/{t}" for m in BOTH["methods"] for t in ("greys", "facts")} | {
        "generation/words",
        "generation/captions",
    }


def test_shuffled_answers_are_mapped_back_to_the_samples_own_options(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that always takes the second option shown is right as often as the right one stands there."""

    def second(model: Any, tokenizer: Any, inputs: Any, *, new_tokens: int) -> list[Written]:
        shown = [tokenizer.decode(row).rpartition("Options: ")[2] for row in inputs["input_ids"]]
        return [Written(f"({text.split(';')[1].strip()[1]})", opened=False) for text in shown]

    monkeypatch.setattr(answer, "write_answers", second)
    report = read_report(
        evaluate(
            model, tmp_path / "out", tasks=[GreyTask(count=8)], protocol=BOTH | {"runs": 5, "methods": ["generation"]}
        )
    )
    assert len({tuple(a["order"]) for a in report["answers"]}) > 5
    assert {a["marks"] for a in report["answers"]} == {"upper", "lower", "number"}
    assert all(a["in_format"] and a["choice"] == a["order"][1] for a in report["answers"])
    found = scores(tmp_path / "out")
    right = [a["order"][1] == a["answer"] for a in report["answers"]]
    assert found["generation", "task", "greys", "accuracy"] == pytest.approx(sum(right) / len(right))
    assert found["generation", "task", "greys", "instability"] > 0.5


@pytest.mark.parametrize("family", few(["fast_vlm", "qwen3_vl", "qwen2_5_vl"], "qwen3_vl"))
def test_padding_changes_no_answer(tmp_path: Path, family: str) -> None:
    """Questions of a batch have images or not, and other lengths: shorter ones are padded on the left."""
    tiny = tmp_path / "tiny"
    tiny_lvlm(family).save_pretrained(tiny)
    family_processor(family).save_pretrained(tiny)
    protocol = BOTH | {"example": False}
    one, many = (
        read_report(evaluate(tiny, tmp_path / str(size), batch_size=size, protocol=protocol))["answers"]
        for size in (1, 7)
    )
    for alone, padded in zip(one, many, strict=True):
        assert alone.get("text") == padded.get("text")
        expected = pytest.approx(padded.get("log_likelihoods", []), rel=1e-3, abs=1e-3)
        assert alone.get("log_likelihoods", []) == expected


def test_captions_are_left_out_where_only_likelihoods_are_asked_for(model: Path, tmp_path: Path) -> None:
    tasks = [GreyTask("captions", "description", "Generation", count=3), GreyTask()]
    report = read_report(evaluate(model, tmp_path / "out", tasks=tasks, protocol={"methods": ["likelihood"]}))
    assert report["complete"]
    assert {a["task"] for a in report["answers"]} == {"greys"}


def test_a_model_that_computes_no_numbers_has_no_score(model: Path, tmp_path: Path) -> None:
    """Of log-likelihoods that are not numbers, the first would count as the largest."""
    broken = LlavaForConditionalGeneration.from_pretrained(model)
    broken.model.language_model.norm.weight.data[:] = 3e38  # finite, or loading would refuse it; its logits are not
    copy = shutil.copytree(model, tmp_path / "broken")
    broken.save_pretrained(copy)
    with pytest.raises(NonFiniteError, match="task greys, sample 0: log-likelihoods are"):
        evaluate(copy, tmp_path / "out", tasks=[GreyTask()])


def test_runs_are_compared_pair_by_pair(model: Path, tmp_path: Path) -> None:
    evaluate(model, tmp_path / "a", tasks=[GreyTask(count=12)])
    report = json.loads((evaluate(model, tmp_path / "b", tasks=[GreyTask(count=12)]) / "report.json").read_text())
    for given in report["answers"]:
        given["choice"] = given["answer"]  # a model that knows all
    (tmp_path / "b" / "report.json").write_text(json.dumps(report))
    text = compare_reports([tmp_path / "a", tmp_path / "b"], output=tmp_path / "c", names=["tiny", "perfect"])
    assert "difference to tiny" in text
    entries = json.loads((tmp_path / "c" / "comparison.json").read_text())
    (of_all,) = [e for e in entries if e["run"] == "perfect" and e["level"] == "all" and e["method"] == "likelihood"]
    base = scores(tmp_path / "a")["likelihood", "all", "", "score"]
    assert of_all["value"] == 1.0
    assert of_all["difference"] == pytest.approx(1 - base)
    assert of_all["difference_interval"][0] <= of_all["difference"] <= of_all["difference_interval"][1]
    assert (tmp_path / "c" / "comparison.png").is_file()


def test_unequal_or_unfinished_runs_are_not_compared(model: Path, tmp_path: Path) -> None:
    evaluate(model, tmp_path / "a", tasks=[GreyTask()])
    evaluate(model, tmp_path / "b", tasks=[GreyTask(count=5)])
    with pytest.raises(ValueError, match="differ in tasks"):
        compare_reports([tmp_path / "a", tmp_path / "b"], output=tmp_path / "c")
    evaluate(model, tmp_path / "part", tasks=[GreyTask()], limit=1)
    with pytest.raises(ValueError, match="is not finished"):
        compare_reports([tmp_path / "a", tmp_path / "part"], output=tmp_path / "c")
    with pytest.raises(FileNotFoundError, match="no evaluation at"):
        compare_reports([tmp_path / "a", tmp_path / "nothing"], output=tmp_path / "c")
    (tmp_path / "run").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"run holds no evaluation: .*scores_\*\.json.*sparsight report RUN RUN"
    ):
        compare_reports([tmp_path / "a", tmp_path / "run"], output=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_unusable_samples_are_reported_before_anything_is_computed(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 of 6 samples of task greys cannot be used: greys.json entry 2"):
        evaluate(model, tmp_path / "out", tasks=[GreyTask(broken=2)])
    assert not (tmp_path / "out").exists()


def test_what_was_left_out_is_listed(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        folder = evaluate(model, tmp_path / "out", tasks=[GreyTask(broken=2)], allowed={"corrupt_share": 0.2})
    assert "1 of 6 samples of task greys cannot be used and are left out" in caplog.text
    report = read_report(folder)
    assert report["complete"] and len(report["answers"]) == 2 * 5
    (reason,) = report["left_out"]["greys"]
    assert reason.startswith("greys.json entry 2") and reason in (folder / "report.md").read_text()


def test_more_options_than_marks_are_found_before_anything_is_computed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "GREYS", tuple(f"grey {number}" for number in range(12)))
    with pytest.raises(ValueError, match=r"6 of 6 samples .*: sample 0 of task greys: 12 options are more than there"):
        evaluate(model, tmp_path / "out", tasks=[GreyTask()], protocol=BOTH | {"marks": "number"})
    evaluate(model, tmp_path / "out", tasks=[GreyTask()], protocol=BOTH | {"marks": "random"})


def test_it_is_for_evaluations_of_image_text_models(model: Path, tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[ReformEvalReport()], default_root_dir=str(tmp_path))
    items = InstructionDataModule(str(model), None, test=TextQuestions(["opposites"]))
    with pytest.raises(
        ConfigurationError, match=r"needs data of class ReformEvalDataModule .* got InstructionDataModule"
    ):
        trainer.test(LVLMEvaluation(str(model)), items)


def test_nothing_is_trained(model: Path, tmp_path: Path) -> None:
    items = InstructionDataModule(str(model), TextQuestions(["opposites"]))
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=str(tmp_path))
    with pytest.raises(ConfigurationError, match="LVLMEvaluation trains nothing"):
        trainer.fit(LVLMEvaluation(str(model)), items)
    with pytest.raises(ValueError, match="nothing to fit on"):
        trainer.fit(LVLMEvaluation(str(model)), ReformEvalDataModule([GreyTask()]))
