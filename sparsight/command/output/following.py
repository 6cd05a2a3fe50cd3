"""The command that comes after a verb, made of what the reader has typed."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsight.command.arguments import FILE_OPTIONS, read_config
from sparsight.common.text import read_json

BUDGET = 0.8  # that pages speak of
CANDIDATES = "analyze/candidates"  # a config
_ROOT = "--trainer.default_root_dir"
STUDENT = "student"  # what ExportAtEnd makes of a distillation in the folder of a run
_OF_A_MEASUREMENT = (_ROOT, "--trainer.logger")  # options that keep what is measured before a run apart from it
_SHARED = (*FILE_OPTIONS, "--model", "--data", "--trainer")  # options that all verbs have


def following(
    arguments: Sequence[str], options: Mapping[str, Any], *, root: Path, averaged: bool = False, denoiser: bool = False
) -> list[str]:
    """Lines that tell what may be done now; none where nothing follows.

    Args:
        arguments: Of the command, the verb first.
        options: Of the verb, as they were understood.
        root: The trainer's root folder, below which verbs write if nothing else is said.
        averaged: The run keeps a moving average, which an export takes.
        denoiser: The module has a denoiser.
    """
    verb, typed, checkpoint = arguments[0], kept(arguments), options.get("ckpt_path")
    command = ""
    if verb == "export":
        return _after_export(Path(options.get("output") or root / "export"))
    if verb == "analyze" and (checkpoint is None or options.get("budget") is not None):
        folder = Path(options.get("output") or root / ("analysis" if denoiser else "scores"))
        command = _after_analysis(arguments, options, folder, denoiser=denoiser)
    elif verb == "benchmark":
        command = _after_benchmark(typed, averaged=averaged)
    elif verb in ("validate", "test", "predict", "analyze") and checkpoint is not None:
        command = exporting(typed, str(checkpoint), averaged=averaged)
    elif verb in ("validate", "test") and _trains(options):
        command = _line("fit", _without(typed, *_OF_A_MEASUREMENT), *_compared_with(options, root))
    return ["Next:", f"  {command}"] if command else []


def kept(arguments: Sequence[str]) -> list[str]:
    """What was said of model, data and trainer, which other verbs take as well."""
    return [word for group in _options(arguments) if _name(group) in _SHARED for word in group]


def exporting(typed: Sequence[str], checkpoint: str, *, averaged: bool) -> str:
    """The command that exports a checkpoint: its last weights where there is no average of them."""
    return _line("export", typed, "--ckpt_path", checkpoint, *([] if averaged else ["--weights", "raw"]))


def _trains(options: Mapping[str, Any]) -> bool:
    """Whether module and data are of a training."""
    module, data = options.get("model"), options.get("data")
    told = module is not None and str(module.class_path).endswith(("AttentionDistillation", "SparseLayerTuning"))
    return bool(told and data and data.init_args.get("train"))


def _compared_with(options: Mapping[str, Any], root: Path) -> list[str]:
    """The option that lets training be compared with what was measured before it, where that wrote scores."""
    scores, evaluation = root / "scores_val.json", options["model"].init_args.get("evaluation")
    if evaluation is None or evaluation.get("reference") is not None or not scores.is_file():
        return []
    return ["--model.evaluation.reference", str(scores)]


def _after_export(folder: Path) -> list[str]:
    """How it is loaded, and what an image-text model is asked next."""
    if (folder / "model_index.json").is_file():
        return [f'Load it: DiffusionPipeline.from_pretrained("{folder}", trust_remote_code=True); {folder}/README.md']
    loaded = f'Load it: AutoModelForImageTextToText.from_pretrained("{folder}"); {folder}/README.md'
    return [loaded, "Next:", f"  {shlex.join(['sparsight', 'evaluate', str(folder), '--tasks', 'pope'])}"]


def _after_analysis(arguments: Sequence[str], options: Mapping[str, Any], folder: Path, *, denoiser: bool) -> str:
    typed = kept(arguments)
    if denoiser and options.get("budget") is None:
        return _planning(arguments, float(read_json(folder / "analysis.json")["least_flops"]))
    if denoiser:
        trained = options.get("ckpt_path") is not None or (folder.parent / STUDENT).exists()
        more = [_ROOT, str(folder / "run")] if trained else []  # the old run stays as it is
        return _line("fit", _of_a_run(typed), "--config", str(folder / "plan.yaml"), *more)
    tunes = str(options["model"].class_path).endswith("SparseLayerTuning")
    if not tunes or (options.get("maps") is not None and options.get("scores") is None):
        return ""
    if options["model"].init_args.get("prune") is not None:  # which asks its score itself
        return ""
    scores = folder / "scores.json"
    return _line("fit", typed, *_best_layers(scores, next(iter(read_json(scores)["scores"]))))


def _planning(arguments: Sequence[str], least: float) -> str:
    """The analysis with a budget that its mixers can keep; with candidates, if none of its own costs less."""
    budget = BUDGET if least < BUDGET else math.ceil((least + 1) / 2 * 1000) / 1000
    if budget >= 1:
        return "" if CANDIDATES in arguments else shlex.join(["sparsight", *arguments, "--config", CANDIDATES])
    without = (group for group in _options(arguments) if _name(group) != "--prediction_batches" or int(_value(group)))
    return shlex.join(["sparsight", *(word for group in without for word in group), "--budget", f"{budget:g}"])


def _best_layers(scores: Path, score: str) -> list[str]:
    """Options of ``fit`` that tune a quarter of the layers."""
    chosen = {"--model.layers": "sparsight.lvlm.surgery.selection.TopK"}
    chosen |= {"--model.layers.scores": str(scores), "--model.layers.score": score, "--model.layers.ratio": "0.25"}
    return [word for option in chosen.items() for word in option]


def _after_benchmark(typed: Sequence[str], *, averaged: bool) -> str:
    """The export of a run, the training of what is none yet, the test of what cannot be trained."""
    configs = [Path(_value(group)) for group in _options(typed) if _name(group) in FILE_OPTIONS]
    trained = [each.parent / "checkpoints" / "last.ckpt" for each in configs]
    if found := next((each for each in trained if each.is_file()), None):
        return exporting(typed, str(found), averaged=averaged)
    if any("LVLMEvaluation" in word for word in typed):
        return _line("test", ["--config", "reform_eval/offline", *typed])
    return _line("fit", typed)


def _of_a_run(typed: Sequence[str]) -> list[str]:
    """Without configs that say something to ``analyze`` alone."""
    return [word for group in _options(typed) if _is_of_a_run(group) for word in group]


def _is_of_a_run(group: Sequence[str]) -> bool:
    if _name(group) not in FILE_OPTIONS:
        return True
    return not {"model", "data", "trainer"}.isdisjoint(read_config(_value(group)))


def _options(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Options with their values, each as a list of words."""
    group: list[str] = []
    for word in arguments:
        if group and (word.startswith("--") or word == "-c"):
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _without(typed: Sequence[str], *names: str) -> list[str]:
    """What was typed but for these options."""
    return [word for group in _options(typed) if group[0].partition("=")[0] not in names for word in group]


def _name(group: Sequence[str]) -> str:
    """The option without its value and what lies below it."""
    return group[0].partition("=")[0].partition(".")[0]


def _value(group: Sequence[str]) -> str:
    """The last word of an option, without its name."""
    return group[-1].rpartition("=")[2]


def _line(verb: str, typed: Sequence[str], *more: str) -> str:
    return shlex.join(["sparsight", verb, *typed, *more])
