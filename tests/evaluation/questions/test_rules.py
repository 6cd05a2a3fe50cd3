"""Scores of benchmarks from answers that are known, by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from sparsight.evaluation.questions.answer import Answered, Weighed
from sparsight.evaluation.questions.question import Method, Question
from sparsight.evaluation.questions.rules import RULES
from sparsight.evaluation.questions.scores import Estimate, ScoreKey
from sparsight.evaluation.questions.variant import Variant
from sparsight.evaluation.reform_eval.answer import plain_answers
from sparsight.evaluation.reform_eval.report import numbers, score_lines
from sparsight.evaluation.reform_eval.scores import scores_of
from sparsight.lvlm.answer.write import Written

Found = Mapping[ScoreKey, Estimate]


def chosen(sample: str, choice: int | None, answer: int, *categories: str, **more: Any) -> dict[str, Any]:
    asked = {"method": "generation", "task": "b", "sample": sample, "run": 0, "options": ["x", "y", "z"]}
    return asked | {"choice": choice, "answer": answer, "text": "", "categories": list(categories)} | more


def scored(answers: list[dict[str, Any]], rule: str, *, resamples: int = 200) -> Found:
    tasks = [{"name": "b", "dimension": "benchmark", "formulation": "SingleChoice", "rule": rule, "samples": 1}]
    return scores_of(answers, tasks, resamples=resamples)


def value(found: Found, metric: str, category: str = "") -> float:
    level, name = ("category", f"b: {category}") if category else ("task", "b")
    return found[ScoreKey("generation", level, name, metric)].value


def test_pope_by_category() -> None:
    answers = [
        *(chosen(f"r{n}", 0, 0, "random") for n in range(2)),
        chosen("r2", 0, 1, "random"),
        chosen("p0", 1, 0, "popular"),
        chosen("p1", 1, 1, "popular"),
    ]
    found = scored(answers, "yes_no")
    expected = {"accuracy": 3 / 5, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_share": 3 / 5}
    assert {name: value(found, name) for name in expected} == pytest.approx(expected)
    assert value(found, "f1", "random") == pytest.approx(4 / 5) and value(found, "f1", "popular") == 0
    assert found[ScoreKey("generation", "dimension", "benchmark", "score")].value == pytest.approx(2 / 3)
    assert found[ScoreKey("generation", "ability", "benchmarks", "score")].value == pytest.approx(2 / 3)
    assert ScoreKey("generation", "all", "", "score") not in found  # that is the mean of ReForm-Eval


def test_mme_adds_up_accuracy_and_accuracy_of_pairs() -> None:
    """Existence: 3 of 4 questions, 1 of 2 pairs; code: 1 of 2 questions, no pair."""
    pairs = {"e0": "existence", "e1": "existence", "c0": "code_reasoning"}
    rights = {"e0": (True, True), "e1": (True, False), "c0": (True, False)}
    answers = [
        chosen(f"{name}/{n}", n if right else None, n, pairs[name], dialogue=name)
        for name, both in rights.items()
        for n, right in enumerate(both)
    ]
    found = scored(answers, "yes_no_pairs")
    assert value(found, "accuracy") == pytest.approx(4 / 6) and value(found, "accuracy_plus") == pytest.approx(1 / 3)
    assert value(found, "accuracy_plus", "existence") == 0.5
    assert value(found, "mme_perception") == pytest.approx(75 + 50)
    assert value(found, "mme_cognition") == pytest.approx(50 + 0)
    assert value(found, "mme_score") == pytest.approx(175)
    draws_R = found[ScoreKey("generation", "category", "b: existence", "accuracy_plus")].draws_R
    assert set(np.unique(draws_R)) == {0, 0.5, 1}  # pairs are drawn, not questions


def test_mmbench_counts_a_question_if_all_its_rotations_are_right() -> None:
    answers = [chosen(f"{q}/{n}", n if q == "7" or n else None, n, dialogue=q) for q in ("7", "8") for n in range(3)]
    found = scored(answers, "circular")
    assert value(found, "circular_accuracy") == 0.5 and value(found, "accuracy") == pytest.approx(5 / 6)


def test_mmmu_counts_choices_and_free_answers_together() -> None:
    free = {"method": "generation", "task": "b", "run": 0, "categories": ["Math"]}
    answers = [
        chosen("0", 1, 1, "Art"),
        chosen("1", None, 1, "Art"),
        free | {"sample": "2", "text": "So x is 12.", "references": ["12", "twelve"]},
        free | {"sample": "3", "text": "So x is 13.", "references": ["12"]},
    ]
    found = scored(answers, "choice_or_open")
    assert [value(found, "accuracy", each) for each in ("", "Art", "Math")] == [0.5, 0.5, 0.5]


def test_free_answers_are_choices_by_likelihood() -> None:
    common = {"task": "b", "sample": "0", "run": 0}
    weighed = common | {"method": "likelihood", "options": ["a", "b"], "answer": 0, "choice": 0, "choice_by_token": 1}
    written = common | {"method": "generation", "text": "a net", "references": ["net", "net", "net", "no"]}
    found = scored([weighed, written], "vqa")
    assert value(found, "vqa_accuracy") == pytest.approx((3 * 2 / 3 + 1) / 4)
    of_weighed = {key.metric: each.value for key, each in found.items() if key[:2] == ("likelihood", "task")}
    assert of_weighed == {"accuracy": 1, "accuracy_by_token": 0}
    ability = {key.method: each.value for key, each in found.items() if key.level == "ability"}
    assert ability == pytest.approx({"likelihood": 1, "generation": 0.75})


def test_recorded_scores_keep_their_names() -> None:
    common = {"method": "generation", "task": "b", "run": 0}
    answers = [common | {"sample": str(n), "recorded": {"exact_match": n % 2, "f1": 0.5}} for n in range(4)]
    found = scored(answers, "recorded")
    assert {m: value(found, m) for m in ("recorded", "exact_match", "f1")} == {
        "recorded": 0.5,
        "exact_match": 0.5,
        "f1": 0.5,
    }


def test_the_table_has_a_line_for_every_category() -> None:
    found = scored([chosen("0", 0, 0, "random"), chosen("1", 1, 0, "popular")], "yes_no")
    tasks = [{"name": "b", "formulation": "SingleChoice", "rule": "yes_no", "samples": 2}]
    listed = [key._asdict() | numbers(each) for key, each in found.items()]
    lines = {line[""]: line for line in score_lines(listed, tasks, {})}
    assert list(lines)[-3:] == ["task b", "category b: popular", "category b: random"]
    assert lines["category b: random"]["score (generation)"].startswith("100.0")  # F1, as of the task
    assert lines["task b"]["yes share (generation)"].startswith("50.0")


@pytest.mark.parametrize(
    ("rule", "text", "choice"),
    [
        ("yes_no", "Well, there is none", 0),
        ("yes_no", "not at all", 1),
        ("yes_no_pairs", "Well, there is none", None),
        ("yes_no_pairs", "No!", 1),
        ("choice", "B", 1),
        ("choice", "The answer is (A).", 0),
        ("circular", "neither", None),
        ("choice_or_open", "(B) No", 1),
    ],
)
def test_a_written_choice_is_read_by_the_rule(rule: str, text: str, choice: int | None) -> None:
    assert plain(rule, text)["choice"] == choice


def plain(rule: str, text: str, *, references: tuple[str, ...] = (), method: Method = "generation") -> dict[str, Any]:
    put = Variant(0, 0, (0, 1), "upper")
    question = Question(
        "b", "0", "Is it?", 1, ("Yes", "No"), 0, references=references, variant=put, rule=rule, categories=("k",)
    )
    weighed = Weighed([-1.0, -2.0], [1, 1]) if method == "likelihood" else None
    written = Written(text, opened=False) if method == "generation" else None
    (found,) = plain_answers([Answered(question, weighed, written)]).values()
    return found


def test_free_answers_keep_what_is_accepted_and_options_where_these_are_weighed() -> None:
    written = plain("vqa", "a net", references=("net", "net"))
    assert (written["text"], written["references"], written["categories"]) == ("a net", ["net", "net"], ["k"])
    assert "choice" not in written and "options" not in written
    weighed = plain("vqa", "", references=("net",), method="likelihood")
    assert (weighed["options"], weighed["choice"]) == (["Yes", "No"], 0) and "references" not in weighed


def test_every_rule_has_a_share_that_stands_for_it() -> None:
    for name, rule in RULES.items():
        assert name == "recorded" or rule.main("generation") in rule.measures
        assert rule.main("likelihood") in {"accuracy", "f1", "circular_accuracy"}
