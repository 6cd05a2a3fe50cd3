"""lmms-eval from its command line to a comparison: with recorded output, and itself where it is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sparsight.common.errors import ConfigurationError
from sparsight.evaluation.compare import compare_reports
from sparsight.evaluation.harness.read import find_recorded, report_recorded
from sparsight.evaluation.harness.run import BACKENDS, LOG, Asked, run_lmms_eval
from sparsight.evaluation.reform_eval.report import read_report
from tests import tiny_benchmarks as tiny
from tests.tiny_benchmarks import write_rows
from tests.tiny_lvlm import save_tiny_lvlm

PYTHON = "SPARSIGHT_LMMS_EVAL"  # names the interpreter of an environment that has it


def sample(number: int, *, said: str = "yes", **scores: Any) -> dict[str, Any]:
    """A line of a samples file, as lmms-eval 0.7.3 writes them."""
    asked = {"doc_id": number, "target": "yes", "doc_hash": "74234e98", "input": f"Is there thing {number}?"}
    return asked | {"filtered_resps": said, "token_counts": [{"output_tokens": 4}], **scores}


def record(folder: Path, tasks: Mapping[str, list[dict[str, Any]]], *, date: str = "20261129_215312") -> Path:
    place = folder / "model"
    place.mkdir(parents=True, exist_ok=True)
    results = {"results": {name: {"accuracy,none": 0.5} for name in tasks}, "versions": {name: 0.0 for name in tasks}}
    (place / f"{date}_results.json").write_text(json.dumps(results))
    for name, samples in tasks.items():
        lines = "".join(json.dumps(each) + "\n" for each in samples)
        (place / f"{date}_samples_{name}.jsonl").write_text(lines)
    return folder


def report(folder: Path, output: Path, name: str = "m") -> dict[tuple[str, str], float]:
    report_recorded(folder, output, model={"name": name}, about={"limit": None}, date="2026-11-29T21:53:12")
    found = read_report(output)
    return {(s["name"], s["metric"]): s["value"] for s in found["scores"] if s["level"] == "task"}


def test_scores_of_samples_become_a_report(tmp_path: Path) -> None:
    pope = [sample(n, pope_accuracy={"question_id": n, "score": float(n < 3), "prediction": "yes"}) for n in range(4)]
    seed = [sample(n, seed_all={"pred": "A", "answer": "AB"[n % 2], "question_id": n}) for n in range(4)]
    mmmu = [sample(n, mmmu_acc={"id": n, "answer": "B", "parsed_pred": ["B" if n else "C"]}) for n in range(4)]
    mixed = [sample(n, exact_match=0.25 * n, submission={"answer": "x"}) for n in range(4)]
    folder = record(tmp_path / "raw", {"pope": pope, "seed": seed, "mmmu": mmmu, "textvqa_val": mixed})
    found = report(folder, tmp_path / "out")
    assert found == {
        **{("pope", "recorded"): 0.75, ("pope", "pope_accuracy"): 0.75},
        **{("seed", "recorded"): 0.5, ("seed", "seed_all"): 0.5},
        **{("mmmu", "recorded"): 0.75, ("mmmu", "mmmu_acc"): 0.75},
        **{("textvqa_val", "recorded"): 0.375, ("textvqa_val", "exact_match"): 0.375},
    }
    assert read_report(tmp_path / "out")["lmms_eval"]["results"]["pope"] == {"accuracy,none": 0.5}


def test_marks_are_no_percentages(tmp_path: Path) -> None:
    judged = [sample(n, gpt_eval_score=float(n + 1), format_ok=n % 2) for n in range(4)]
    alone = [sample(n, gpt_eval_score=float(n + 1)) for n in range(4)]
    found = report(record(tmp_path / "raw", {"detail": judged, "wild": alone}), tmp_path / "out")
    assert found == {
        **{("detail", "gpt_eval_score in points"): 2.5, ("detail", "format_ok"): 0.5, ("detail", "recorded"): 0.5},
        ("wild", "gpt_eval_score in points"): 2.5,
    }
    table = (tmp_path / "out" / "report.md").read_text()
    assert "| 2.50 (" in table and "| 50.0 (" in table and "250" not in table


def test_other_scores_are_not_compared(tmp_path: Path) -> None:
    for name, mark in (("base", 1.0), ("pruned", 3.0)):
        record(tmp_path / name, {"wild": [sample(n, mark=mark) for n in range(4)]})
        report(tmp_path / name, tmp_path / f"{name}_report", name)
    with pytest.raises(ValueError, match=r"have other scores \(.*wild mark, wild mark in points.*\): only what was"):
        compare_reports([tmp_path / "base_report", tmp_path / "pruned_report"], output=tmp_path / "no", resamples=200)


def test_two_models_are_compared_sample_by_sample(tmp_path: Path) -> None:
    for name, rights in (("base", [1, 1, 1, 0]), ("pruned", [1, 0, 1, 0])):
        record(tmp_path / name, {"gqa": [sample(n, exact_match=right) for n, right in enumerate(rights)]})
        report(tmp_path / name, tmp_path / f"{name}_report", name)
    compare_reports([tmp_path / "base_report", tmp_path / "pruned_report"], output=tmp_path / "compared", resamples=200)
    rows = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    (row,) = (r for r in rows if (r["run"], r["metric"]) == ("pruned", "exact_match"))
    assert row["difference"] == pytest.approx(-0.25) and row["kept"] == pytest.approx(2 / 3)
    assert row["difference_interval"][1] == 0  # never better in any draw
    record(tmp_path / "other", {"gqa": [sample(n + 1, exact_match=1) for n in range(4)]})
    report(tmp_path / "other", tmp_path / "other_report", "other")
    with pytest.raises(ValueError, match="differ in tasks"):
        compare_reports([tmp_path / "base_report", tmp_path / "other_report"], output=tmp_path / "no")


def test_the_newest_of_several_is_read(tmp_path: Path) -> None:
    record(tmp_path, {"a": [sample(0, x=0)]}, date="20261129_100000")
    record(tmp_path, {"a": [sample(0, x=1)]}, date="20261129_110000")
    assert find_recorded(tmp_path).samples["a"].name == "20261129_110000_samples_a.jsonl"


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no results of lmms-eval"):
        find_recorded(tmp_path)
    (record(tmp_path / "alone", {}) / "x").mkdir()
    with pytest.raises(FileNotFoundError, match="--log_samples"):
        find_recorded(tmp_path / "alone")
    with pytest.raises(ValueError, match=r"samples_a.jsonl holds no score of any sample"):
        report(record(tmp_path / "sums", {"a": [sample(0, gpt={"prediction": "x"})]}), tmp_path / "out")
    folder = record(tmp_path / "bad", {"a": [sample(0, x=1)]})
    (file,) = folder.rglob("*.jsonl")
    file.write_text(file.read_text() + '{"doc_id": 1\n')
    with pytest.raises(ValueError, match=r"a.jsonl, line 2 is no sample of lmms-eval"):
        report(folder, tmp_path / "out")


def test_the_command_line_says_all_that_was_asked(tmp_path: Path) -> None:
    asked = Asked("py", "folder", ["gqa", "pope"], options={"device": "cpu"}, limit=5, include="own", batch_size=2)
    text = " ".join(asked.command(tmp_path))
    assert text.startswith("py ") and "--model huggingface --model_args pretrained=folder,device=cpu" in text
    assert "--tasks gqa,pope --batch_size 2 --log_samples" in text and "--limit 5 --include_path own" in text
    assert "--model vllm --model_args model=folder" in " ".join(asked._replace(backend="vllm").command(tmp_path))


def test_an_interpreter_without_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be started"):
        run_lmms_eval(Asked(str(tmp_path / "none"), "m", ["gqa"]), tmp_path / "out")
    script = tmp_path / "python"  # as fast as a real one is slow to import transformers
    script.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'lmms_eval'\"\nexit 1\n")
    script.chmod(0o755)
    with pytest.raises(ConfigurationError, match="has no lmms-eval: `make lmms-eval` makes"):
        run_lmms_eval(Asked(str(script), "m", ["gqa"]), tmp_path / "out")
    script.write_text("#!/bin/sh\necho one\necho CUDA out of memory\nexit 3\n")
    with pytest.raises(ConfigurationError, match=rf"ended with 3; .*{LOG} has all that it said: .*one \| CUDA out of"):
        run_lmms_eval(Asked(str(script), "m", ["gqa"]), tmp_path / "out")


@pytest.mark.parametrize(
    ("said", "told"),
    [  # as lmms-eval 0.7.3 wrote them, in colours, and ended with 0
        ("Tasks not found: popo. Try `lmms-eval", "tasks: give names that it knows, and the folder of your own"),
        ("Found no NVIDIA driver on your system", "--model_args device=cpu,device_map=cpu"),
        ("'NoneType' object is not callable", "vLLM cannot be imported in that environment"),
        ("Unexpected kwargs: {'nonsense': 1}", "leave out what its backend does not take"),
        ("RetryError[<Future state=finished raised ConnectionError>]", "cannot be reached"),
        ("something new", "evaluated nothing; .*lmms_eval.log has all that it said: something new$"),
    ],
)
def test_a_failure_that_ends_with_0_is_told(said: str, told: str, tmp_path: Path) -> None:
    script = tmp_path / "python"
    line = f"\x1b[1mERROR   \x1b[0m - \x1b[31mError during evaluation: {said}. Please set `--verbosity=DEBUG`\x1b[0m"
    (tmp_path / "said").write_text(f"Traceback\n{line}\nModel Responding: 0%\n")
    script.write_text(f"#!/bin/sh\ncat {tmp_path / 'said'}\n")
    script.chmod(0o755)
    with pytest.raises(ConfigurationError, match=told) as caught:
        run_lmms_eval(Asked(str(script), "m", ["popo"], backend="vllm"), tmp_path / "out")
    assert said in str(caught.value) and "\x1b" not in str(caught.value)


TASK = """\
task: tiny_pope
dataset_path: parquet
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs: {max_new_tokens: 4, temperature: 0, do_sample: false}
process_results: !function utils.results
metric_list: [{metric: accuracy, aggregation: mean, higher_is_better: true}]
metadata: {version: 0.0}
"""
UTILS = """\
def visual(doc):
    return [doc["image"].convert("RGB")]


def text(doc):
    return doc["question"]


def results(doc, results):
    return {"accuracy": float(results[0].strip().lower() == doc["answer"])}
"""


@pytest.mark.slow
@pytest.mark.skipif(PYTHON not in os.environ, reason=f"needs lmms-eval: set {PYTHON} to .venv-lmms-eval/bin/python")
def test_lmms_eval_asks_a_tiny_model(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "pope.parquet", tiny.pope_rows())
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny_pope.yaml").write_text(TASK.replace("FILE", str(file)))
    (tmp_path / "tasks" / "utils.py").write_text(UTILS)
    model = save_tiny_lvlm(tmp_path / "model", "llava")
    asked = Asked(
        os.environ[PYTHON],
        str(model),
        ["tiny_pope"],
        options={"device": "cpu", "device_map": "cpu"},
        include=str(tmp_path / "tasks"),
    )
    run_lmms_eval(asked, tmp_path / "raw")
    found = report(tmp_path / "raw", tmp_path / "out")
    assert found.keys() == {("tiny_pope", "recorded"), ("tiny_pope", "accuracy")}
    assert len(read_report(tmp_path / "out")["answers"]) == 6
    assert sys.executable != os.environ[PYTHON]


@pytest.mark.slow
@pytest.mark.skipif(PYTHON not in os.environ, reason=f"needs lmms-eval: set {PYTHON} to .venv-lmms-eval/bin/python")
def test_lmms_eval_knows_the_backends_by_these_names() -> None:
    code = "from lmms_eval.models import MODEL_REGISTRY_V2 as known; print(*known.list_model_names())"
    names = subprocess.run([os.environ[PYTHON], "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name for name, _ in BACKENDS.values()} <= set(names)
