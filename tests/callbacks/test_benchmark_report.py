"""Standard benchmarks end to end on a tiny image-text model: asked in both ways, reported, and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules import (
    GQATask,
    GroundingTask,
    MMBenchTask,
    MMETask,
    MMMUTask,
    PixelsTask,
    POPETask,
    ScienceQATask,
    SEEDTask,
    VQAv2Task,
)
from sparsight.evaluation.compare import compare_reports
from sparsight.evaluation.reform_eval.report import read_report
from tests import tiny_benchmarks as tiny
from tests.tiny_benchmarks import write_rows
from tests.tiny_evaluation import evaluate, scores
from tests.tiny_lvlm import save_tiny_lvlm


def tasks(folder: Path) -> list[Any]:
    questions, images = tiny.gqa_rows()
    write_rows(folder / "gqa" / "testdev_balanced_images" / "testdev.parquet", images)
    write_rows(folder / "gqa" / "testdev_balanced_instructions" / "testdev.parquet", questions)
    return [
        POPETask(str(write_rows(folder / "pope.parquet", tiny.pope_rows()))),
        MMETask(str(write_rows(folder / "mme.parquet", tiny.mme_rows()))),
        GQATask(str(folder / "gqa")),
        VQAv2Task(str(write_rows(folder / "vqa.parquet", tiny.vqa_rows()))),
        ScienceQATask(str(write_rows(folder / "scienceqa.parquet", tiny.scienceqa_rows()))),
        SEEDTask(str(write_rows(folder / "seed.parquet", tiny.seed_rows()))),
        MMBenchTask(str(write_rows(folder / "mmbench.parquet", tiny.mmbench_rows()))),
        MMMUTask(str(write_rows(folder / "mmmu.parquet", tiny.mmmu_rows()))),
        GroundingTask(str(write_rows(folder / "boxes.parquet", tiny.box_rows()))),
        PixelsTask(POPETask(str(folder / "pope.parquet"))),
    ]


def test_benchmarks_are_asked_in_both_ways_and_compared(tmp_path: Path) -> None:
    files = (("pope", tiny.pope_rows()[:3]), ("vqa", tiny.vqa_rows()[:2]), ("mmbench", tiny.mmbench_rows()))
    pope, vqa, mmbench = (str(write_rows(tmp_path / f"{name}.parquet", rows)) for name, rows in files)
    model = save_tiny_lvlm(tmp_path / "model", "llava")
    folder = evaluate(model, tmp_path / "out", tasks=[POPETask(pope), VQAv2Task(vqa), MMBenchTask(mmbench)])
    report = read_report(folder)
    assert report["complete"] and [t["rule"] for t in report["about"]["tasks"]] == ["yes_no", "vqa", "circular"]
    found = scores(folder)
    for method in ("likelihood", "generation"):
        of = [a for a in report["answers"] if a["method"] == method]
        asked = [a for a in of if a["task"] == "pope"]
        said = [a["choice"] == 0 for a in asked]
        hits = sum(yes and a["answer"] == 0 for yes, a in zip(said, asked, strict=True))
        assert found[method, "task", "pope", "yes_share"] == pytest.approx(sum(said) / 3)
        assert found[method, "task", "pope", "recall"] == pytest.approx(hits / 2)
        assert (method, "category", "pope: random", "f1") in found
        assert len({a["dialogue"] for a in of if a["task"] == "mmbench"}) == 2
        assert len([a for a in of if a["task"] == "mmbench"]) == 5
    assert ("generation", "task", "vqav2", "vqa_accuracy") in found
    assert ("likelihood", "task", "vqav2", "accuracy") in found
    table = compare_reports([folder, folder], output=tmp_path / "compared", names=["a", "b"], resamples=100)
    assert "category pope: random" in table and "; +0.0 (+0.0 to +0.0)" in table


@pytest.mark.slow
def test_every_benchmark_runs(tmp_path: Path) -> None:
    model = save_tiny_lvlm(tmp_path / "model", "llava")
    folder = evaluate(model, tmp_path / "out", tasks=tasks(tmp_path / "data"))
    assert {task["rule"] for task in read_report(folder)["about"]["tasks"]} == {
        *("yes_no", "yes_no_pairs", "exact", "vqa", "choice", "circular", "choice_or_open", "boxes")
    }
    found = scores(folder)
    for method in ("likelihood", "generation"):
        parts = found[method, "task", "mme", "mme_perception"] + found[method, "task", "mme", "mme_cognition"]
        assert found[method, "task", "mme", "mme_score"] == pytest.approx(parts)
        assert (method, "category", "pope_pixels: random", "f1") in found
    assert ("generation", "task", "grounding", "box_iou") in found
    assert ("generation", "task", "gqa", "exact_match") in found and ("likelihood", "task", "gqa", "accuracy") in found
