"""`sparsight test` and `sparsight compare`: a plain folder, a run's checkpoint, an export; on one and two processes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from jsonargparse import Namespace

from sparsight.command.cli import SparsightCLI, main
from sparsight.evaluation.compare import main as compare
from sparsight.evaluation.reform_eval.report import read_report
from tests.tiny_evaluation import scores
from tests.tiny_files import write_idx
from tests.tiny_lvlm import save_tiny_lvlm
from tests.tiny_processes import run_command
from tests.tiny_tuning import tuning_config

PLAIN = ("--model", "LVLMEvaluation", "--model.base")


def overlay(folder: Path, **options: Any) -> Path:
    """What `configs/reform_eval` holds: data and callback, but no model."""
    pictures = np.repeat(np.arange(12, dtype=np.uint8) % 4 * 80, 256).reshape(12, 16, 16)
    files = {
        "images": write_idx(folder / "pictures", pictures),
        "labels": write_idx(folder / "greys", pictures[:, 0, 0] // 80),
    }
    source = {name: str(path) for name, path in files.items()} | {"classes": ["black", "dark", "light", "white"]}
    greys = {"source": {"class_path": "IdxRecords", "init_args": source}, "name": "greys", "limit": 6}
    words = {"class_path": "RenderedTextRecords", "init_args": {"words": ["one", "two", "three", "four", "five"]}}
    tasks = [
        {"class_path": "NamingTask", "init_args": greys | {"dimension": "coarse_perception"}},
        {"class_path": "ReadingTask", "init_args": {"source": words, "name": "words", "dimension": "scene_text"}},
    ]
    init = {"tasks": tasks, "protocol": {"methods": ["likelihood", "generation"], "new_tokens": 4}}
    config = {
        "trainer": {
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "callbacks": [{"class_path": "callbacks.ReformEvalReport", "init_args": {"resamples": 100}}],
        },
        "data": {"class_path": "ReformEvalDataModule", "init_args": init | {"batch_size": 2} | options},
    }
    path = folder / "overlay.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def only_report(root: Path) -> Path:
    (found,) = (root / "reform_eval").iterdir()
    return found


def command(config: Path, model: Path, root: Path, *more: str) -> list[str]:
    return ["test", "--config", str(config), *PLAIN, str(model), "--trainer.default_root_dir", str(root), *more]


@pytest.mark.slow
def test_two_processes_answer_as_one_and_any_number_goes_on(tmp_path: Path) -> None:
    model, config = save_tiny_lvlm(tmp_path / "tiny", "fast_vlm"), overlay(tmp_path)
    two = ("--trainer.devices=2", "--trainer.strategy=ddp")
    main(command(config, model, tmp_path / "one"))
    run_command(command(config, model, tmp_path / "two", *two))
    run_command(command(config, model, tmp_path / "mixed", *two, "--trainer.limit_test_batches=1"))
    assert read_report(only_report(tmp_path / "mixed"))["answered"] == 4
    main(command(config, model, tmp_path / "mixed"))
    one, *others = (read_report(only_report(tmp_path / name)) for name in ("one", "two", "mixed"))
    for other in others:
        assert [a["sample"] for a in other["answers"]] == [a["sample"] for a in one["answers"]]
        assert other["about"] == one["about"]
        assert other["complete"]
        for a, b in zip(one["answers"], other["answers"], strict=True):
            assert a.get("text") == b.get("text")
            assert a.get("log_likelihoods", []) == pytest.approx(b.get("log_likelihoods", []), abs=1e-3)
    lines = [(only_report(tmp_path / "two") / f"answers-{n}.jsonl").read_text().count("\n") - 1 for n in (0, 1)]
    assert one["asked"] <= sum(lines) <= one["asked"] + len(one["about"]["protocol"]["methods"])
    assert min(lines) >= 6


@pytest.mark.slow
@pytest.mark.usefixtures("reload_here")
def test_checkpoints_and_exports_are_evaluated_like_any_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = tuning_config(tmp_path), overlay(tmp_path)
    main(["fit", "--config", str(run)])
    (saved,) = (tmp_path / "run").rglob("step=4.ckpt")
    root = f"--trainer.default_root_dir={tmp_path / 'tuned'}"
    main(["test", "--config", str(run), "--config", str(config), "--ckpt_path", str(saved), root])
    main(
        [
            "export",
            "--config",
            str(run),
            "--ckpt_path",
            str(saved),
            "--weights=raw",
            "--output",
            str(tmp_path / "export"),
        ]
    )
    main(command(config, tmp_path / "export", tmp_path / "exported"))
    main(command(config, tmp_path / "base", tmp_path / "base_run"))
    tuned, exported, base = (only_report(tmp_path / name) for name in ("tuned", "exported", "base_run"))
    assert scores(tuned) == pytest.approx(scores(exported), abs=1e-3)
    for a, b in zip(read_report(tuned)["answers"], read_report(exported)["answers"], strict=True):
        assert a.get("log_likelihoods", []) == pytest.approx(b.get("log_likelihoods", []), abs=1e-2)
    assert read_report(tuned)["about"]["model"]["checkpoint"]
    capsys.readouterr()
    compare([str(base), str(tuned), str(exported), "--output", str(tmp_path / "compared")])
    assert "difference to base" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit, match="needs two or more"):
        compare([str(base), "--output", str(tmp_path / "compared")])


def test_the_questions_can_be_looked_at_without_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, config = save_tiny_lvlm(tmp_path / "tiny", "llava"), overlay(tmp_path)
    look = ["inspect", "--config", str(config), "--split=test", "--model=LVLMEvaluation", f"--model.base={model}"]
    main([*look, "--index=5", "--count=2"])
    shown = capsys.readouterr().out
    likelihood, generation = (part for part in shown.split("\n\n") if part.strip())
    assert likelihood.startswith("likelihood, task greys, ")
    options = re.findall(r"^  ([* ]) (\w+)$", likelihood, re.MULTILINE)
    assert sorted(name for _, name in options) == ["black", "dark", "light", "white"]
    assert [mark for mark, _ in options].count("*") == 1
    assert generation.startswith("generation, task greys, ")
    assert re.search(r"Options: \(A\) \w+; \(B\) \w+; \(C\) \w+; \(D\) \w+\.", generation)
    assert "Loading weights" not in capsys.readouterr().err


def test_questions_are_looked_at_by_the_processor_that_the_model_has() -> None:
    loading = {"revision": "v2", "trust_remote_code": True}
    config = Namespace(
        model=Namespace(
            class_path="LVLMEvaluation", init_args=Namespace(base="owner/name", loading=Namespace(loading))
        ),
        data=Namespace(init_args=Namespace(model=None, loading=Namespace(revision=None, trust_remote_code=False))),
    )
    SparsightCLI._do_without_weights(config)
    assert config.data.init_args.as_dict() == {"model": "owner/name", "loading": loading}


@pytest.mark.slow
def test_tasks_are_stored_with_their_options_and_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, config = save_tiny_lvlm(tmp_path / "tiny", "llava"), overlay(tmp_path)
    main(["reformulate", "--config", str(config), *PLAIN, str(model), "--output", str(tmp_path / "stored")])
    assert "greys.json: 6 samples" in capsys.readouterr().out
    tasks = [
        {
            "file": str(tmp_path / "stored" / "greys.json"),
            "dimension": "coarse_perception",
            "formulation": "SingleChoice",
        },
        {"file": str(tmp_path / "stored" / "words.json"), "dimension": "scene_text", "formulation": "OCROpenEnded"},
    ]
    stored = overlay(tmp_path, tasks=[{"class_path": "PublishedTask", "init_args": task} for task in tasks])
    main(command(stored, model, tmp_path / "from_files"))
    main(command(overlay(tmp_path), model, tmp_path / "from_sources"))
    files, sources = (read_report(only_report(tmp_path / name)) for name in ("from_files", "from_sources"))
    assert files["answers"] == sources["answers"]


def test_a_processor_without_chat_template_is_refused(tmp_path: Path) -> None:
    model, config = save_tiny_lvlm(tmp_path / "tiny", "llava"), overlay(tmp_path)
    (model / "chat_template.jinja").unlink()
    with pytest.raises(SystemExit, match="comes without a chat template"):
        main(command(config, model, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
