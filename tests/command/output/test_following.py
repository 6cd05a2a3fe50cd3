"""What a verb leads to: commands of what was typed, which the command takes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from sparsight.command.output.following import following, kept


def next_of(typed: str, root: Path, **options: object) -> list[str]:
    denoiser = bool(options.pop("denoiser", False))
    return following(typed.split(), options, root=root, denoiser=denoiser)


def test_options_of_other_verbs_are_left_and_values_stay() -> None:
    typed = ["test", "--config", "a", "--batches", "2", "--model.lr=1", "--data.shift", "-1", "--trainer.callbacks+=X"]
    assert kept(typed) == ["--config", "a", "--model.lr=1", "--data.shift", "-1", "--trainer.callbacks+=X"]
    assert kept(["test", "--database", "x", "-c", "a"]) == ["-c", "a"]


@pytest.mark.parametrize("verb", ["validate", "test", "predict", "analyze"])
def test_a_checkpoint_that_was_looked_at_is_exported(verb: str, tmp_path: Path) -> None:
    typed = [verb, "--config", "a", "--ckpt_path", "b.ckpt", "--images.folder", "c"]
    said = [following(typed, {"ckpt_path": "b.ckpt"}, root=tmp_path, averaged=each) for each in (True, False)]
    exported = "  sparsight export --config a --ckpt_path b.ckpt"
    assert said == [["Next:", exported], ["Next:", f"{exported} --weights raw"]]
    assert next_of("test --config a", tmp_path) == [], "an untrained model"


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_what_was_measured_untrained_is_trained(verb: str, tmp_path: Path) -> None:
    module = SimpleNamespace(class_path="lightning_modules.SparseLayerTuning", init_args={})
    data = SimpleNamespace(init_args={"train": object()})
    typed = f"{verb} --config a --model.lr 1"
    assert next_of(typed, tmp_path, model=module, data=data) == ["Next:", "  sparsight fit --config a --model.lr 1"]
    assert next_of(typed, tmp_path, model=module, data=SimpleNamespace(init_args={"train": None})) == []
    before = f"{typed} --trainer.default_root_dir runs/before --trainer.logger=false --trainer.devices 2"
    _, said = next_of(before, tmp_path, model=module, data=data)
    assert said == "  sparsight fit --config a --model.lr 1 --trainer.devices 2", (
        "what was measured before keeps its folder"
    )
    scores = tmp_path / "scores_val.json"
    for reference, there in ((None, False), (None, True), ("other.json", True)):
        if there:
            scores.touch()
        module.init_args = {"evaluation": {"reference": reference}}
        _, said = next_of(before, tmp_path, model=module, data=data)
        assert said.endswith(f"--model.evaluation.reference {scores}") == (there and reference is None)
    asked = SimpleNamespace(class_path="lightning_modules.LVLMEvaluation")
    assert next_of(typed, tmp_path, model=asked, data=data) == []


def test_an_analysis_of_a_denoiser_leads_to_a_budget_and_its_plan_to_a_run(tmp_path: Path) -> None:
    typed = "analyze --config experiment/quickstart --config analyze/candidates --batches 2"
    folder = tmp_path / "analysis"
    folder.mkdir()
    for least, budget in ((0.3, "0.8"), (0.849, "0.925")):
        (folder / "analysis.json").write_text(json.dumps({"least_flops": least}))
        assert next_of(typed, tmp_path, denoiser=True) == ["Next:", f"  sparsight {typed} --budget {budget}"]
    more = next_of(f"{typed} --prediction_batches 0", tmp_path, denoiser=True)
    assert more == ["Next:", f"  sparsight {typed} --budget 0.925"], "a budget asks for errors of the prediction"
    (folder / "analysis.json").write_text(json.dumps({"least_flops": 1.0}))
    assert next_of(typed, tmp_path, denoiser=True) == [], "no candidate costs less"
    _, candidates = next_of("analyze --config a", tmp_path, denoiser=True)
    assert candidates == "  sparsight analyze --config a --config analyze/candidates"
    plan = tmp_path / "analysis" / "plan.yaml"
    _, of_a_run = next_of("analyze --config experiment/quickstart", tmp_path, denoiser=True, budget=0.7, ckpt_path="b")
    assert (
        of_a_run
        == f"  sparsight fit --config experiment/quickstart --config {plan} --trainer.default_root_dir {folder / 'run'}"
    )
    assert next_of(f"{typed} --budget 0.7", tmp_path, denoiser=True, budget=0.7) == [
        "Next:",
        f"  sparsight fit --config experiment/quickstart --config {plan}",
    ]
    (tmp_path / "student").mkdir()
    _, said = next_of("analyze --config experiment/quickstart --budget 0.7", tmp_path, denoiser=True, budget=0.7)
    assert said.endswith(f"--trainer.default_root_dir {folder / 'run'}"), "a student is there already"


def test_scores_of_layers_lead_to_a_run_that_tunes_the_best(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(json.dumps({"scores": {"block_influence": {}}}))
    model = SimpleNamespace(class_path="lightning_modules.SparseLayerTuning", init_args={})
    _, said = next_of("analyze --config a", tmp_path, model=model, output=str(tmp_path))
    assert said.startswith("  sparsight fit --config a --model.layers ") and "block_influence" in said
    assert next_of("analyze --config a", tmp_path, model=model, output=str(tmp_path), maps=object()) == []
    assert next_of("analyze --config a", tmp_path, model=SimpleNamespace(class_path="LVLMEvaluation")) == []
    model.init_args["prune"] = object()
    assert next_of("analyze --config a", tmp_path, model=model, output=str(tmp_path)) == [], (
        "it removes, and asks itself"
    )


def test_a_benchmark_leads_to_the_export_of_a_run_or_to_one(tmp_path: Path) -> None:
    assert next_of("benchmark --config a --runs 3", tmp_path) == ["Next:", "  sparsight fit --config a"]
    _, tested = next_of("benchmark --model LVLMEvaluation --model.base b", tmp_path)
    assert tested == "  sparsight test --config reform_eval/offline --model LVLMEvaluation --model.base b"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    config = tmp_path / "config.yaml"
    assert next_of(f"benchmark --config {config}", tmp_path) == [
        "Next:",
        f"  sparsight export --config {config} --ckpt_path {tmp_path}/checkpoints/last.ckpt --weights raw",
    ]


def test_an_export_tells_how_it_is_loaded(tmp_path: Path) -> None:
    loaded, *following = next_of("export --config a", tmp_path)
    assert "AutoModelForImageTextToText" in loaded
    assert following == ["Next:", f"  sparsight evaluate {tmp_path}/export --tasks pope"]
    (tmp_path / "model_index.json").touch()
    (line,) = next_of("export --config a", tmp_path, output=str(tmp_path))
    assert line.startswith(f'Load it: DiffusionPipeline.from_pretrained("{tmp_path}", trust_remote_code=True)')
