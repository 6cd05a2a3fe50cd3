"""Wrong options: different from the right one, of its kind, the similar first, in any order."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from datamodules.evaluation.tasks.distractors import answer_distractors, arranged, distractors, near_numbers
from datamodules.evaluation.tasks.naming import NamingTask
from datamodules.evaluation.tasks.similarity import EmbeddingSimilarity, SpellingSimilarity
from tests.tiny_records import (
    BASIC,
    NAMES,
    Squares,
    is_uniform,
    right,
    samples,
)


def test_names_differ_from_the_right_one_and_from_each_other() -> None:
    names = ["cat", "Cat", "a cat", "dog ", "Dog.", "the cow", "cow", "hen", ""]
    for seed in range(20):
        wrong = distractors("cat", names[:-1], 3, rng=np.random.default_rng(seed))
        assert {name.lower().strip(" .").removeprefix("the ") for name in wrong} == {"dog", "cow", "hen"}
    with pytest.raises(ValueError, match="'cat' needs 4 wrong options, there are 3: ask for fewer options"):
        distractors("cat", names[:-1], 4, rng=np.random.default_rng(0))


def test_names_are_drawn_evenly() -> None:
    drawn = Counter(distractors("r", list("abcdr"), 1, rng=np.random.default_rng(seed))[0] for seed in range(800))
    assert is_uniform(Counter({n: drawn[name] for n, name in enumerate("abcd")}), 4)


@pytest.mark.parametrize("number", ["0", "1", "4", "100", "2.5", "0.0", "0.01"])
def test_near_numbers_are_near_different_and_not_negative(number: str) -> None:
    ranks = Counter()
    for seed in range(200):
        wrong = near_numbers(number, 3, rng=np.random.default_rng(seed))
        values = sorted(map(float, [*wrong, number]))
        step = 10.0 ** -len(number.partition(".")[2])
        assert len(set(values)) == 4 and values[0] >= 0
        assert np.allclose(np.diff(values), step), "a row of neighbours"
        assert all(len(text.partition(".")[2]) == len(number.partition(".")[2]) for text in wrong)
        ranks[values.index(float(number))] += 1
    assert is_uniform(ranks, 4) or float(number) < 3 * step


def test_open_answers_get_wrong_ones_of_their_kind() -> None:
    answers = ["yes", "no", "3", "12", "red", "blue", "a dog", "2.5"]
    rng = np.random.default_rng(0)
    assert answer_distractors("yes", answers, 3, rng=rng) == ["no"]
    assert answer_distractors("No", answers, 3, rng=rng) == ["Yes"]
    assert set(answer_distractors("red", answers, 2, rng=rng)) == {"blue", "a dog"}
    assert all(wrong.isdigit() and abs(int(wrong) - 12) <= 3 for wrong in answer_distractors("12", [], 3, rng=rng))


def test_all_orders_of_options_occur() -> None:
    orders = Counter(arranged("a", ["b", "c"], rng=np.random.default_rng(seed)) for seed in range(100))
    assert len(orders) == 6 and all(options[answer] == "a" for options, answer in orders)


def save_embeddings(path: Path, vectors: dict[str, list[float]]) -> Path:
    save_file({"embeddings": torch.tensor(list(vectors.values()))}, path, {"names": json.dumps(list(vectors))})
    return path


def test_the_most_similar_names_come_first(tmp_path: Path) -> None:
    vectors = dict(zip(NAMES, ([2, 0], [0, 3.0], [4, 1.0], [-1, 0.0], [1.0, 1], [1, 3.0]), strict=True))
    file = save_embeddings(tmp_path / "names.safetensors", vectors)
    similar = EmbeddingSimilarity(file)
    order = ["blue thing", "purple thing", "black thing", "green thing", "yellow thing"]  # cosines to red, falling
    assert distractors("red thing", NAMES, 5, rng=np.random.default_rng(0), similar=similar) == order
    for sample in samples(NamingTask(Squares(), similar=str(file), **BASIC)):
        if right(sample) == "red thing":
            assert set(sample.options) == {"red thing", *order[:3]}


def test_equally_similar_names_are_drawn() -> None:
    spelling = SpellingSimilarity()
    drawn = [
        distractors("house", ["mouse", "hat", "xylem", "kilt"], 3, rng=np.random.default_rng(seed), similar=spelling)
        for seed in range(20)
    ]
    assert {wrong[0] for wrong in drawn} == {"mouse"} and {wrong[1] for wrong in drawn} == {"hat"}
    assert {wrong[2] for wrong in drawn} == {"xylem", "kilt"}
    assert spelling("house", ["house", "xyz"]) == [1, 0]


def test_embeddings_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "names.safetensors"

    def opened() -> None:
        NamingTask(Squares(), similar=str(file), **BASIC).open()

    with pytest.raises(FileNotFoundError, match=r"names\.safetensors do not exist; set `similar`"):
        opened()
    file.write_text("no tensors")
    with pytest.raises(ValueError, match="is no safetensors file with names"):
        opened()
    save_embeddings(file, {name: [1.0] for name in NAMES[:4]})
    with pytest.raises(ValueError, match="no embedding of 2 names, such as 'black thing'"):
        opened()
    save_embeddings(file, {name: [0.0, 0.0] for name in NAMES})
    with pytest.raises(ValueError, match="zero or not finite"):
        opened()
    save_file({"embeddings": torch.ones(2, 3)}, file, {"names": '["a"]'})
    with pytest.raises(ValueError, match="not the JSON list of 2 names"):
        opened()
    save_file({"vectors": torch.ones(2, 3)}, file)
    with pytest.raises(ValueError, match="no tensor `embeddings` of two dimensions"):
        opened()


def test_the_fingerprint_follows_embeddings_not_their_path(tmp_path: Path) -> None:
    def fingerprint(name: str, value: float) -> str:
        file = save_embeddings(tmp_path / name, {thing: [1.0, value] for thing in NAMES})
        return NamingTask(Squares(), similar=str(file), **BASIC).fingerprint()

    assert fingerprint("a", 1) == fingerprint("b", 1) != fingerprint("a", 2)
