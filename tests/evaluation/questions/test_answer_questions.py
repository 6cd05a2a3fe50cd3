"""The choice among candidates, against plain forward passes, and what is kept of a better model's scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsight.command.cli import main
from sparsight.common.finite import NonFiniteError
from sparsight.evaluation.questions.answer import answer_questions
from sparsight.evaluation.questions.question import Question
from sparsight.evaluation.questions.task_scores import Item, TaskScores
from tests.tiny_batches import alone, alone_log_likelihoods, left_padded
from tests.tiny_lvlm import tiny_inputs, tiny_lvlm
from tests.tiny_tokens import SPECIAL, VOCABULARY, tiny_tokenizer
from tests.tiny_tuning import tuning_config

LENGTHS = [[1, 4, 2, 3], [2, 2, 2]]  # tokens of the candidates of two questions


def answer_items(model: Any, tokenizer: Any, batch: dict[str, Any]) -> list[Item]:
    """What is kept of a model's answers, whose options are weighed."""
    answered = answer_questions(model, tokenizer, batch, methods=["likelihood"], new_tokens=0)
    return [Item.of(each) for each in answered]


def batch_of(inputs: dict[str, torch.Tensor], candidates: list[list[list[int]]], answers: list[int]) -> dict[str, Any]:
    """What an InstructionDataModule gives an evaluation; the second question counts as one without an image."""
    return {
        "inputs": left_padded(inputs),
        "candidates": candidates,
        "questions": [
            Question(task, f"record {index}", images=images, options=tuple(map(str, ids)), answer=right, position=index)
            for task, index, images, ids, right in zip(
                ("naming", "opposites"), (7, 3), (1, 0), candidates, answers, strict=True
            )
        ],
    }


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_the_likeliest_candidate_is_chosen_whichever_is_right(family: str) -> None:
    model = tiny_lvlm(family)
    inputs = tiny_inputs(family, model)
    torch.manual_seed(3)
    chosen = set()
    for _ in range(4):
        candidates = [[torch.randint(len(SPECIAL), VOCABULARY, (n,)).tolist() for n in row] for row in LENGTHS]
        sums = [torch.tensor(row) for row in alone_log_likelihoods(model, inputs, candidates, family)]
        means = [row / torch.tensor(lengths) for row, lengths in zip(sums, LENGTHS, strict=True)]
        for answers in ([0, 0], [1, 2], [3, 1]):
            items = answer_items(model, tiny_tokenizer(), batch_of(inputs, candidates, answers))
            assert [item.likeliest for item in items] == [int(row.argmax()) for row in sums]
            assert [item.likeliest_by_token for item in items] == [int(row.argmax()) for row in means]
            assert [item.answer for item in items] == answers and [item.candidates for item in items] == [4, 3]
            assert [item.tokens for item in items] == [row[a] for row, a in zip(LENGTHS, answers, strict=True)]
            expected = [float(row[a]) for row, a in zip(sums, answers, strict=True)]
            assert [item.log_likelihood for item in items] == pytest.approx(expected, abs=1e-3)
            assert [(item.index, item.task, item.visual) for item in items] == [
                (7, "naming", True),
                (3, "opposites", False),
            ]
        chosen |= {(item.index, item.likeliest) for item in items} | {
            (item.index, item.likeliest_by_token) for item in items
        }
    assert len(chosen) > 3  # not the same places every time


@torch.no_grad()
def test_a_long_candidate_of_likely_tokens_wins_by_token_alone() -> None:
    model = tiny_lvlm("llava")
    inputs = tiny_inputs("llava", model)
    prompt = alone(inputs, 0)
    long: list[int] = []
    logs = []
    for _ in range(4):
        ids = torch.cat([prompt["input_ids"], torch.tensor([long], dtype=torch.long)], 1)
        logs.append(
            model(**prompt | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[0, -1].log_softmax(-1)
        )
        long.append(int(logs[-1].argmax()))
    total = sum(float(log_V.max()) for log_V in logs)
    short = int((logs[0] - 0.5 * (total + total / 4)).abs().argmin())
    assert total < float(logs[0][short]) < total / 4  # less likely than the long one's tokens are on average
    batch = batch_of(inputs, [[long, [short]], [[9], [10]]], [1, 0])
    scores = TaskScores()
    scores.add(answer_items(model, tiny_tokenizer(), batch))
    found = scores.accuracies()
    assert found["likelihood/naming"] == 1.0 and found["likelihood_by_token/naming"] == 0.0


@pytest.mark.slow
def test_what_is_kept_is_the_share_of_the_references_score(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    main(["validate", "--config", str(tuning_config(tmp_path))])
    own, best = TaskScores.load(tmp_path / "run" / "scores_val.json"), TaskScores()
    best.add(replace(item, likeliest=item.answer) for item in own.items.values())
    best.save(tmp_path / "best.json")
    found = own.accuracies()
    assert 0 < found["likelihood/visual"] < 1
    config = tuning_config(tmp_path, evaluation={"reference": str(tmp_path / "best.json")})
    with caplog.at_level("INFO"):
        cli = main(["validate", "--config", str(config)])
    for name in ("likelihood/visual", "likelihood/naming", "likelihood/yes_no", "likelihood/text"):
        assert float(cli.trainer.callback_metrics[f"val/kept/{name}"]) == pytest.approx(found[name])
    assert f"likelihood/visual {found['likelihood/visual']:.1%}" in caplog.text


@torch.no_grad()
def test_likelihoods_that_are_no_numbers_choose_nothing() -> None:
    model = tiny_lvlm("llava")
    model.lm_head.weight[9] = torch.nan
    batch = batch_of(tiny_inputs("llava", model), [[[10], [11]], [[12], [13]]], [0, 0])
    with pytest.raises(NonFiniteError, match=r"task naming, sample record 7: log-likelihoods are \[nan, nan\]"):
        answer_items(model, tiny_tokenizer(), batch)
