"""The region study's driver: rows, rules that were written before the runs, and what goes on from rows alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from benchmarks import region_runs
from benchmarks.region_arms import ARMS, FULL_RATES, arm_options
from benchmarks.region_choice import best_rate, counting_tasks, decide_tasks, read_tasks, sweep_key, wilson
from benchmarks.region_data import CHANCE, CLOTHES, EMOJI, NUMBER, questions, tasks_of
from benchmarks.region_rows import Budget, Rows, above_chance, outcomes
from benchmarks.region_start import put_projector, take_projector
from benchmarks.region_study import Study
from datamodules import MixedRecords
from sparsight.evaluation.questions.task_scores import Item, TaskScores
from tests.tiny_records import Squares
from tests.tiny_tuning import tuning_config


def right(share: float, total: int = 100) -> str:
    ones = round(share * total)
    return "1" * ones + "0" * (total - ones)


def swept(rows: Rows, arm: str, shares: Iterable[float], rates: tuple[float, ...] = FULL_RATES) -> None:
    for rate, share in zip(rates, shares, strict=True):
        found = {split: dict.fromkeys(CHANCE, right(share)) for split in ("rates", "tasks")}
        rows.add("rates", sweep_key(arm, rate), arm=arm, rate=rate, right=found)


def test_rows_are_read_again_and_a_broken_line_at_the_end_is_none(tmp_path: Path) -> None:
    rows = Rows(tmp_path)
    assert rows.read("rates") == {}
    rows.add("rates", "all 0.1", rate=0.1)
    file = tmp_path / "rates.jsonl"
    with file.open("a", encoding="utf-8") as stream:
        stream.write('{"key": "all 0.2", "ra')  # a run was killed
    assert set(rows.read("rates")) == {"all 0.1"}
    rows.add("rates", "all 0.3", rate=0.3)
    found = rows.read("rates")
    assert set(found) == {"all 0.1", "all 0.3"} and found["all 0.1"]["torch"] == torch.__version__
    file.write_text("nonsense\n" + file.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"rates\.jsonl line 1 is no row"):
        rows.read("rates")


def test_outcomes_are_in_the_order_of_the_source() -> None:
    scores = TaskScores()
    for index, likeliest in ((5, 1), (2, 0), (9, 1)):
        rest: dict[str, Any] = {"visual": True, "candidates": 4, "log_likelihood": -1.0, "tokens": 1}
        scores.add([Item(index=index, task="a", answer=1, likeliest=likeliest, likeliest_by_token=0, **rest)])
    assert outcomes(scores) == {"a": "011"}


def test_intervals_are_wilsons() -> None:
    # R: prop.test(31, 100, correct = FALSE)$conf.int
    assert wilson(right(0.31)) == pytest.approx((0.2277, 0.4063), abs=1e-4)
    assert wilson(right(0.0))[0] == pytest.approx(0, abs=1e-12)


def test_a_task_counts_if_it_is_surely_above_chance() -> None:
    found = counting_tasks(
        {"easy": right(0.4), "chance": right(0.3), "yes_no": right(0.55)}, {"easy": 0.25, "chance": 0.25, "yes_no": 0.5}
    )
    assert {name: each["counts"] for name, each in found.items()} == {"easy": True, "chance": False, "yes_no": False}


def test_rates_are_chosen_by_the_share_above_chance_once_all_are_run(tmp_path: Path) -> None:
    rows = Rows(tmp_path)
    swept(rows, "all", [0.6, 0.7], FULL_RATES[:2])
    assert best_rate(rows.read("rates"), "all", FULL_RATES, ["naming"]) is None
    swept(rows, "all", [0.6, 0.7, 0.65])
    assert best_rate(rows.read("rates"), "all", FULL_RATES, ["naming"]) == FULL_RATES[1]
    assert above_chance({"a": right(0.55), "b": right(0.75)}, {"a": 0.1, "b": 0.5}, ["a", "b"]) == pytest.approx(0.5)


def test_what_counts_is_decided_once_and_by_the_reference_at_its_best(tmp_path: Path) -> None:
    rows = Rows(tmp_path)
    assert decide_tasks(rows, FULL_RATES) is None
    with pytest.raises(SystemExit, match=r"tasks\.json is not there: run `--only rates tasks --arms all` first"):
        read_tasks(rows)
    swept(rows, "all", [0.3, 0.45, 0.2])
    file = decide_tasks(rows, FULL_RATES)
    assert file is not None and json.loads(file.read_text(encoding="utf-8"))["rate"] == FULL_RATES[1]
    assert set(read_tasks(rows)) == {name for name, chance in CHANCE.items() if chance < 0.5}
    before = file.read_bytes()
    swept(rows, "all", [0.9, 0.9, 0.9])
    assert decide_tasks(rows, FULL_RATES) == file and file.read_bytes() == before
    swept(Rows(tmp_path / "none"), "all", [0.05, 0.05, 0.05])
    decide_tasks(Rows(tmp_path / "none"), FULL_RATES)
    with pytest.raises(SystemExit, match="no task counts"):
        read_tasks(Rows(tmp_path / "none"))


def test_no_run_begins_that_would_not_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("benchmarks.region_rows.time.monotonic", lambda: now[0])
    budget = Budget(10)
    assert budget.allows("arms", guess=600) and not budget.allows("arms", guess=601)
    budget.note("arms", 120)
    now[0] = 480
    assert budget.allows("arms", guess=999) and not budget.allows("rates", guess=121)
    assert Budget(None).allows("arms", guess=1e9)


def test_a_study_goes_on_from_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.region_study.start_from", None)  # takes minutes
    rows = Rows(tmp_path)
    swept(rows, "all", [0.5, 0.7, 0.6])
    study = Study(tmp_path / "root", rows, Budget(0))
    options: dict[str, Any] = {"arms": ["all"], "rates": None, "seeds": [1]}
    assert study.do("rates", **options) and study.do("tasks", **options)
    assert not study.do("rates", **(options | {"arms": ["all", "uniform"]})), "time is up before uniform begins"
    (tmp_path / "tasks.json").unlink()
    assert not study.do("rates", **(options | {"arms": ["by_block_influence"]})), "time is up before layers are scored"
    assert read_tasks(rows), "decided before another arm begins"
    with pytest.raises(SystemExit, match=r"tasks\.json is not there"):
        Study(tmp_path / "root", Rows(tmp_path / "none"), Budget(0)).do("rates", **(options | {"arms": ["top"]}))
    assert study.do("arms", **(options | {"arms": ["uniform"]})), "its rates are not known: passed over"
    assert not study.do("rates", **(options | {"arms": ["untuned"]})), "time is up"
    rows.add("arms", "all 1", arm="all")
    assert study.do("arms", **options)
    assert not (tmp_path / "root").exists(), "no model was made"


def test_no_image_is_on_two_sides() -> None:
    for spans, total in ((CLOTHES, 10_000), (EMOJI, 1405)):
        taken = []
        for skip, limit in spans.values():
            source = MixedRecords([Squares(total)], limits=[limit], skips=[skip], seed=7)
            taken.append({source.where(index) for index in range(len(source))})
        assert sum(map(len, taken)) == len(set.union(*taken)) == total
    assert len(set(NUMBER.values())) == 4, "rendered words are drawn by other seeds"
    for task in ("counting", "naming", "yes_no"):
        found = [json.dumps(tasks_of(split)[task]) for split in NUMBER]
        assert len(set(found)) == 4


def test_questions_are_plain_data_of_the_tasks_asked_for() -> None:
    asked = questions("arms", tasks=["digits", "naming"], text=True)["init_args"]
    kinds = [each["class_path"].removeprefix("datamodules.") for each in asked["sources"]]
    assert kinds == ["TaskQuestions", "LabelledQuestions", "TextQuestions"]
    assert asked["limits"] == [250, 250, None] and set(tasks_of("train")) == set(CHANCE)
    json.dumps(questions("train"))


def test_every_arm_has_options_with_both_rates() -> None:
    for name, arm in ARMS.items():
        options = arm_options(name, rate=0.01, seed=3, scores=Path("scores.json"))
        (stage,) = json.loads(options[options.index("--model.stages") + 1])
        assert stage["projector_lr"] == (0.01 if name == "projector" else 5e-4) and stage["lr"] == 0.01
        assert ("--model.lora" in options) == arm.lora and "--data.seed=3" in options
        assert len(arm.rates) == 3


def test_a_projector_is_kept_and_put_back(tmp_path: Path) -> None:
    weights = {"model.multi_modal_projector.w": torch.randn(3, 2), "lm.w": torch.randn(2).to(torch.bfloat16)}
    save_file(weights, tmp_path / "aligned.safetensors")
    take_projector(tmp_path / "aligned.safetensors", tmp_path / "kept" / "projector.safetensors")
    fresh = {name: torch.zeros_like(value) for name, value in weights.items()}
    save_file(fresh, tmp_path / "model.safetensors")
    put_projector(tmp_path / "model.safetensors", tmp_path / "kept" / "projector.safetensors")
    found = load_file(tmp_path / "model.safetensors")
    expected = weights["model.multi_modal_projector.w"].to(torch.bfloat16).float()
    assert torch.equal(found["model.multi_modal_projector.w"], expected) and torch.equal(found["lm.w"], fresh["lm.w"])
    save_file({"lm.w": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(SystemExit, match="take it away"):
        put_projector(tmp_path / "other.safetensors", tmp_path / "kept" / "projector.safetensors")


@pytest.mark.slow
def test_a_run_becomes_a_row_and_a_folder_and_goes_on_where_it_was_broken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tuning_config(tmp_path)
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    content["trainer"]["callbacks"][0]["init_args"]["save_last"] = True
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    source = content["data"]["init_args"]["train"]["init_args"]["source"]
    items: dict[str, Any] = {"source": source, "tasks": ["naming"], "vary": False}

    def tiny(split: str, **asked: Any) -> dict[str, Any]:
        return {"class_path": "datamodules.LabelledQuestions", "init_args": items | {"per_record": len(asked) or 1}}

    monkeypatch.setattr(region_runs, "CONFIG", str(config))
    monkeypatch.setattr(region_runs, "questions", tiny)
    monkeypatch.setattr(region_runs, "arm_options", lambda *_, **__: [f"--trainer.max_steps={steps[0]}"])
    rows, folder, kept = Rows(tmp_path / "rows"), tmp_path / "rates" / "all", tmp_path / "tuned" / "all"
    start, scores = tmp_path / "base", tmp_path / "scores.json"
    steps = [4]
    options: dict[str, Any] = {"arm": "all", "rate": 0.05, "seed": 0, "start": start}
    splits: Any = {"rates": {}, "arms": {"tasks": ["naming"], "text": True}}
    region_runs.run_once(rows, "rates", "all 0.05", folder=folder, splits=splits, kept=kept, **options)
    row = rows.read("rates")["all 0.05"]
    assert {split: {task: len(bits) for task, bits in each.items()} for split, each in row["right"].items()} == {
        "rates": {"naming": 24},
        "arms": {"naming": 48},
    }
    assert row["layers"] == [1, 4] and row["rate"] == 0.05 and set(row["loss"]) == {"rates", "arms"}
    assert not folder.exists() and (kept / "model.safetensors").is_file()
    with pytest.raises(SystemExit, match="holds no checkpoint"):
        region_runs.answer([], folder, "rates")
    region_runs.judge_start(rows, "arms", start=start, folder=folder, split="arms", text=True)
    assert {task: len(bits) for task, bits in rows.read("arms")["untuned"]["right"]["arms"].items()} == {"naming": 24}
    steps[0] = 2  # broken off
    region_runs.tune(start, folder, arm="all", rate=0.05, seed=0, scores=scores)
    (folder / "facts.json").unlink()
    steps[0] = 4
    again = tmp_path / "again"
    region_runs.tune_again(start, folder, again, arm="all", rate=0.05, seed=0, scores=scores)
    wanted, got = (load_file(each / "model.safetensors") for each in (kept, again))
    assert all(torch.equal(value, got[name]) for name, value in wanted.items())
