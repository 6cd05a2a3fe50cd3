"""The ``evaluate`` verb: standard benchmarks by name, asked here or by lmms-eval."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sparsight.command.arguments import check_there
from sparsight.common.disk.files import write_text
from sparsight.common.disk.inputs import may_be_hub_id
from sparsight.common.errors import ConfigurationError
from sparsight.common.near import did_you_mean
from sparsight.common.tables import json_text
from sparsight.common.text import read_json
from sparsight.evaluation.harness.run import BACKENDS, Asked, run_lmms_eval
from sparsight.lvlm.export.merge import ADAPTERS, merge_adapters

TASKS = {
    "pope": "POPETask",
    "mme": "MMETask",
    "gqa": "GQATask",
    "vqav2": "VQAv2Task",
    "textvqa": "TextVQATask",
    "scienceqa": "ScienceQATask",
    "seed": "SEEDTask",
    "mmbench": "MMBenchTask",
    "mmmu": "MMMUTask",
}
PIXELS = "_pixels"  # behind a task's name: its text as pixels
MADE = "made_from.json"  # in a folder that was exported or merged here
NEW_TOKENS = 16


def check(arguments: Sequence[str]) -> None:
    """See that tasks and model are there, without importing torch; options that ask for help are answered.

    Args:
        arguments: Of the command line, without the verb.

    Raises:
        ConfigurationError: No task is named, there is none of that name, or its files are not there, or the model is
            neither there nor a name of the hub.
    """
    given = _parser().parse_args(arguments)
    if Path(given.model, "model_index.json").is_file():
        raise ConfigurationError(
            f"model: {given.model} is a diffusion pipeline, and benchmarks ask image-text models: `sparsight validate` "
            "and `test` measure pipelines, with the config of a run"
        )
    _named_tasks(given)
    if not may_be_hub_id(given.model):
        check_there("model", given.model)


def main(arguments: Sequence[str]) -> None:
    """Evaluate a model.

    Args:
        arguments: Of the command line, without the verb.
    """
    given = _parser().parse_args(arguments)
    try:
        _evaluate(given)
    except (ConfigurationError, FileNotFoundError, ValueError) as error:
        raise SystemExit(f"sparsight: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparsight evaluate",
        description="Standard benchmarks, by generation and by likelihood; with --python, that interpreter's "
        "lmms-eval asks them. Both write a report that `sparsight compare` reads.",
        epilog=f"tasks here: {', '.join(TASKS)}, and each with {PIXELS} behind it; with --python those of lmms-eval",
    )
    parser.add_argument("model", help="folder or hub id of a model, folder of adapters, or checkpoint of a run")
    parser.add_argument("--tasks", required=True, help="names with commas between them")
    parser.add_argument("--output", help="folder for the report; runs/evaluate/<model> if not given")
    parser.add_argument("--data", help="folder with <task> (a folder of parquet files) or <task>.parquet; else the hub")
    parser.add_argument("--limit", type=int, help="samples of each task; all if not given")
    parser.add_argument("--methods", nargs="+", default=["generation", "likelihood"], help="generation, likelihood")
    parser.add_argument("--new_tokens", type=int, default=NEW_TOKENS, help="most tokens of a written answer")
    parser.add_argument("--batch_size", type=int, help="questions at once; 8 here, 1 with lmms-eval")
    parser.add_argument("--dtype", default="float32", help="precision of the weights, here")
    parser.add_argument("--python", help="interpreter that has lmms-eval (`make lmms-eval`)")
    parser.add_argument("--backend", choices=list(BACKENDS), default="transformers", help="of lmms-eval")
    parser.add_argument("--model_args", default="", help="further options of its backend: device=cpu,device_map=cpu")
    parser.add_argument("--task_folder", help="folder with further tasks for lmms-eval")
    return parser


def _evaluate(given: argparse.Namespace) -> None:
    names, tasks = _named_tasks(given)
    output = Path(given.output or Path("runs", "evaluate", _stem(given.model)))
    model = _whole_model(given.model, output)
    if given.python is None:
        _ask_here(given, model, tasks, output)
    else:
        _ask_there(given, model, names, output)


def _named_tasks(given: argparse.Namespace) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of the tasks, and the tasks that are asked here."""
    names = [name.strip() for name in given.tasks.split(",") if name.strip()]
    if not names:
        raise ConfigurationError("tasks is empty: give names with commas between them")
    if given.python is None:
        return names, [named_task(name, given.data) for name in names]
    check_there("python", given.python)
    if given.task_folder is not None:
        check_there("task_folder", given.task_folder)
    return names, []


def _ask_here(given: argparse.Namespace, model: str, tasks: list[dict[str, Any]], output: Path) -> None:
    from sparsight.command.cli import main as run

    protocol = {"methods": given.methods, "new_tokens": given.new_tokens}
    data = {"tasks": tasks, "protocol": protocol, "limit": given.limit}
    config = {
        "trainer": {
            "logger": False,
            "default_root_dir": str(output),
            "callbacks": [{"class_path": "callbacks.ReformEvalReport", "init_args": {"folder": str(output)}}],
        },
        "model": {
            "class_path": "lightning_modules.LVLMEvaluation",
            "init_args": {"base": model, "loading": {"dtype": given.dtype}},
        },
        "data": {
            "class_path": "datamodules.ReformEvalDataModule",
            "init_args": data | {"batch_size": given.batch_size or 8},
        },
    }
    file = output / "evaluate.yaml"
    write_text(file, yaml.safe_dump(config, sort_keys=False))
    quiet = ["--report", "false", "--verbose", "false"]  # the callback tells what was found and written
    run(["test", "--config", str(file), *quiet], alone=False)


def _ask_there(given: argparse.Namespace, model: str, names: Sequence[str], output: Path) -> None:
    pairs = [part.partition("=") for part in given.model_args.split(",") if part]
    asked = Asked(
        given.python,
        model,
        names,
        backend=given.backend,
        options={name: value for name, _, value in pairs},
        limit=given.limit,
        include=given.task_folder,
        batch_size=given.batch_size or 1,
    )
    from sparsight.evaluation.harness.read import report_recorded
    from sparsight.evaluation.reform_eval.report import written_to

    date = time.strftime("%Y-%m-%dT%H:%M:%S")
    folder = output / "lmms_eval" / date.replace(":", "-")
    run_lmms_eval(asked, folder)
    facts = {"name": _stem(given.model), "hash": _weights_hash(model)}
    about = {"backend": given.backend, "options": dict(asked.options), "limit": given.limit}
    print(report_recorded(folder, output, model=facts, about=about, date=date))
    print(f"\n{written_to(output)}")


def named_task(name: str, data: str | None) -> dict[str, Any]:
    """A task as a config has it.

    Raises:
        ConfigurationError: There is no such task, or its files are not there.
    """
    plain = name.removesuffix(PIXELS)
    if plain not in TASKS:
        close = did_you_mean(plain, list(TASKS))
        raise ConfigurationError(
            f"tasks: {name!r} is none of those that are asked here{close}: {', '.join(TASKS)}. Others have a config "
            "(docs/benchmarks.md), or are lmms-eval's: give --python an interpreter that has it"
        )
    options: dict[str, Any] = {}
    if data is not None:
        places = [place for place in (Path(data, plain), Path(data, f"{plain}.parquet")) if place.exists()]
        if not places:
            raise ConfigurationError(
                f"data: {str(data)!r} has neither a folder {plain} nor a file {plain}.parquet: put the "
                "published files there, or leave --data out to read them from the hub"
            )
        options["path"] = str(places[0])
    task = {"class_path": f"datamodules.{TASKS[plain]}", "init_args": options}
    return task if name == plain else {"class_path": "datamodules.PixelsTask", "init_args": {"task": task}}


def _whole_model(named: str, output: Path) -> str:
    """A model that transformers loads: as it is, with its adapters merged, or exported from a checkpoint."""
    path = Path(named)
    if path.is_dir() and (path / ADAPTERS).is_file() and not (path / "config.json").is_file():
        return _made(path, output / "model", lambda folder: merge_adapters(path, folder))
    if (path.is_dir() and (path / "config.json").is_file()) or (not path.exists() and path.suffix != ".ckpt"):
        return named  # an id of the hub is looked for by transformers
    check_there("model", named)
    config = path.resolve().parents[1] / "config.yaml"
    if not config.is_file():
        raise ConfigurationError(
            f"model: {named} is no folder with config.json, and no checkpoint of a run: there is no {config}. Export "
            "it with `sparsight export`, and evaluate that folder"
        )

    def export(folder: Path) -> None:
        from sparsight.command.cli import main as run

        averaged = "TrainableEMA" in config.read_text(encoding="utf-8")  # the run keeps a moving average
        weights = "ema" if averaged else "raw"
        typed = ["export", "--config", str(config), "--ckpt_path", str(path)]
        run([*typed, "--weights", weights, "--output", str(folder)], alone=False)

    return _made(path, output / "model", export)


def _made(source: Path, folder: Path, make: Any) -> str:
    """A folder made from a file or the files of a folder, or the one that was made from it before.

    Raises:
        ConfigurationError: There is a folder of something else.
    """
    from sparsight.common.hashes import files_hash

    files = sorted(file for file in source.rglob("*") if file.is_file()) if source.is_dir() else [source]
    told = {"source": str(source.resolve()), "hash": files_hash(iter(files))}
    note = folder.with_name(MADE)
    if folder.exists():
        if not note.is_file() or read_json(note) != told:
            raise ConfigurationError(
                f"output: {folder} holds another model than that of {source}: give another --output"
            )
        return str(folder)
    make(folder)
    write_text(note, json_text(told))
    return str(folder)


def _weights_hash(model: str) -> str | None:
    from sparsight.common.hashes import files_hash

    path = Path(model)
    return files_hash(iter(sorted(path.glob("*.safetensors")))) if path.is_dir() else None


def _stem(model: str) -> str:
    path = Path(model)
    return path.resolve().name if path.is_dir() else path.name.removesuffix(".ckpt")
