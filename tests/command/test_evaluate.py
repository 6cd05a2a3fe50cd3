"""`sparsight evaluate`: names of benchmarks, a config made of them, and what model is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText

from datamodules import POPETask
from sparsight.command.arguments import check_arguments, resolve_configs
from sparsight.command.benchmarks.evaluate import MADE, TASKS, check, main, named_task
from sparsight.command.checks.input_paths import check_inputs
from sparsight.command.cli import main as command
from sparsight.common.errors import ConfigurationError
from sparsight.evaluation.compare import compare_reports
from sparsight.evaluation.reform_eval.report import read_report
from sparsight.lvlm.export.merge import merge_adapters
from tests import tiny_benchmarks as tiny
from tests.tiny_benchmarks import write_rows
from tests.tiny_lvlm import save_tiny_lvlm
from tests.tiny_tuning import tuning_config


@pytest.mark.slow
def test_benchmarks_are_asked_by_name(tmp_path: Path) -> None:
    model = save_tiny_lvlm(tmp_path / "tiny", "llava")
    write_rows(tmp_path / "data" / "pope.parquet", tiny.pope_rows())
    more = ["--data", str(tmp_path / "data"), "--limit", "2", "--new_tokens", "3", "--methods", "likelihood"]
    main([str(model), "--tasks", "pope,pope_pixels", "--output", str(tmp_path / "out"), *more])
    report = read_report(tmp_path / "out")
    assert report["complete"] and [t["name"] for t in report["about"]["tasks"]] == ["pope", "pope_pixels"]
    assert report["about"]["model"]["name"] == "tiny" and len(report["answers"]) == 4
    config = yaml.safe_load((tmp_path / "out" / "evaluate.yaml").read_text())  # `sparsight test` takes it, too
    assert config["model"]["init_args"]["base"] == str(model)
    compare_reports([tmp_path / "out"] * 2, output=tmp_path / "compared", names=["a", "b"], resamples=100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "popee"], "tasks: 'popee' is none of those that are asked here; did you mean pope?"),
        (["--tasks", "refcoco"], "give --python an interpreter that has it"),
        (["--tasks", " , "], "tasks is empty"),
        (
            ["--tasks", "pope", "--data", "."],
            "data: '.' has neither a folder pope nor a file pope.parquet: put the published files there",
        ),
        (["--tasks", "any", "--python", "none/python"], "python: 'none/python' does not exist"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["model", *arguments])
    assert message in str(stop.value)


def test_a_diffusion_student_is_no_model_to_ask(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"is a diffusion pipeline, .*`sparsight validate` and `test` measure"):
        check([str(tmp_path), "--tasks", "pope", "--data", "not/there"])


def test_a_checkpoint_of_no_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"model: 'none.ckpt' does not exist"):
        main(["none.ckpt", "--tasks", "pope"])
    Path("some.ckpt").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"no checkpoint of a run: there is no .*config.yaml"):
        main(["some.ckpt", "--tasks", "pope"])


def test_adapters_are_merged_into_their_base(tmp_path: Path) -> None:
    base = save_tiny_lvlm(tmp_path / "base", "llava")
    model = AutoModelForImageTextToText.from_pretrained(base)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    tuned.save_pretrained(tmp_path / "adapters")
    merge_adapters(tmp_path / "adapters", tmp_path / "merged")
    ids = torch.tensor([[3, 4, 5]])
    tuned.eval()
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(input_ids=ids).logits, tuned(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


def test_another_model_in_the_folder_is_not_taken_for_this_one(tmp_path: Path) -> None:
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    (adapters / "adapter_config.json").write_text("{}")
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / MADE).write_text('{"source": "elsewhere"}')
    with pytest.raises(SystemExit, match="holds another model"):
        main([str(adapters), "--tasks", "pope", "--output", str(tmp_path / "out")])


def test_its_data_are_no_config(tmp_path: Path) -> None:
    arguments = ["evaluate", "model", "--tasks", "pope", "--data", str(tmp_path / "data")]
    check_arguments(arguments)
    check_inputs(arguments)
    assert resolve_configs(arguments) == arguments


def test_every_name_is_a_class() -> None:
    import datamodules

    assert all(name in datamodules.__all__ for name in TASKS.values())


def test_names_become_tasks_of_local_files_or_of_the_hub(tmp_path: Path) -> None:
    write_rows(tmp_path / "pope.parquet", tiny.pope_rows())
    task = named_task("pope", str(tmp_path))
    assert task == {"class_path": "datamodules.POPETask", "init_args": {"path": str(tmp_path / "pope.parquet")}}
    assert POPETask(**task["init_args"])[0].answer == 0
    pixels = {"task": {"class_path": "datamodules.GQATask", "init_args": {}}}
    assert named_task("gqa_pixels", None) == {"class_path": "datamodules.PixelsTask", "init_args": pixels}


@pytest.mark.slow
@pytest.mark.usefixtures("reload_here")
def test_a_checkpoint_is_exported_first_and_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tuning_config(tmp_path)
    command(["fit", "--config", str(run)])
    (saved,) = (tmp_path / "run").rglob("step=4.ckpt")
    saved.resolve().parents[1].joinpath("config.yaml").write_text(run.read_text())
    write_rows(tmp_path / "pope.parquet", tiny.pope_rows())
    arguments = [str(saved), "--tasks", "pope", "--data", str(tmp_path), "--limit", "2", "--methods", "likelihood"]
    for _ in range(2):
        main([*arguments, "--output", str(tmp_path / "out")])
    assert "test/likelihood" not in capsys.readouterr().out, "tables behind the report hide its next command"
    report = read_report(tmp_path / "out")
    assert report["complete"] and report["about"]["model"]["name"] == "model"
    assert (tmp_path / "out" / "model" / "config.json").is_file() and (tmp_path / "out" / MADE).is_file()
