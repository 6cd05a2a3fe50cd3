"""The ``sparsight`` command and ``python -m sparsight``: quick answers first, then start-up checks, then the CLI."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sparsight import __version__

HELP = """\
usage: sparsight [--help] [--version] VERB [--config CONFIG] [OPTIONS]

Make pretrained vision models cheaper: replace the self-attention of diffusion models by token mixers and distil them;
tune a sparse set of an image-text model's layers and remove others. Measure, and export to Hugging Face folders.

verbs:
  check        try all that `fit` would do, a few steps of every stage with it, and show the data
  fit          train: distil a student from its teacher, train a teacher, or tune (and prune) an image-text model
  validate     evaluate on the validation data
  test         evaluate on the test data
  predict      sample images
  export       write a trained model as Hugging Face folders, and compare them after reloading
  benchmark    FLOPs, parameters, latency and memory, per site and whole, against the untouched model
  analyze      look into a model on real data: an image-text model's decoder layers, a denoiser's self-attentions
  inspect      print conversations as an image-text model will see them, and which tokens carry the loss
  reformulate  write the tasks of an evaluation, with their options, as files in ReForm-Eval's format
  list         name what there is to choose from: token mixers, sources of data, scores, metrics, callbacks and more
  schema       write a JSON schema of configs, with which editors complete and check them
  completion   print a script by which bash or zsh completes verbs, configs, options and classes
  report       one page of HTML for a run, or several beside each other: sparsight report RUN [RUN ...]
  evaluate     standard benchmarks, without a config: sparsight evaluate MODEL --tasks gqa,pope,mme
  compare      set evaluations side by side, without a config: sparsight compare REPORT REPORT --output FOLDER

CONFIG is a YAML file, or the name of a shipped one such as experiment/quickstart. Later configs and options win.

more help:
  sparsight VERB --help                       every option of a verb
  sparsight fit --model.help CLASS            every option of a class (same for --data)
  sparsight VERB --config CONFIG --print_config
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; help and version are answered before torch and Lightning are imported.

    Args:
        arguments: Command-line arguments without the program's name; none means those of the process.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    if arguments in (["--help"], ["-h"]):
        print(HELP, end="")
        return
    if arguments == ["--version"]:
        print(f"sparsight {__version__}")
        return
    if not arguments:
        print(HELP, end="", file=sys.stderr)
        raise SystemExit(2)

    with _without_collection():
        answered = _answer_early(arguments)
    if not answered:
        atexit.unregister(gc.freeze)
        _run(arguments)


@contextmanager
def _without_collection() -> Iterator[None]:
    """No search for garbage, nor as the process ends: syntax trees are many objects, and none of them is."""
    atexit.register(gc.freeze)
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _answer_early(arguments: Sequence[str]) -> bool:
    """Refuse what is wrong, and answer what needs neither torch nor Lightning; whether that was all."""
    from sparsight.common.import_path import current_folder_last

    sys.path[:] = current_folder_last(sys.path, os.getcwd())  # first, as a folder may hold a yaml.py

    from sparsight.common.training.orphans import end_with_parent, is_started_by_launcher

    if is_started_by_launcher():
        end_with_parent()

    from sparsight.command.arguments import check_arguments
    from sparsight.command.checks.input_paths import check_inputs, check_models
    from sparsight.command.checks.option_names import check_option_names
    from sparsight.common.errors import ConfigurationError

    try:
        check_arguments(arguments)
        check_option_names(arguments)
        check_models(arguments)
        check_inputs(arguments)
        if arguments[0] in ("list", "completion"):
            _print_names(arguments)
            return True
        if arguments[0] == "evaluate":
            from sparsight.command.benchmarks.evaluate import check as check_evaluation

            check_evaluation(arguments[1:])
    except (ConfigurationError, OSError) as error:
        raise SystemExit(f"sparsight: {error}") from error
    return False


def _print_names(arguments: Sequence[str]) -> None:
    """What there is to choose from; quietly cut short where the reader of a pipe, such as ``head``, has had enough."""
    from sparsight.command.listing import main as list_plugins
    from sparsight.command.output.completion import main as print_completion

    try:
        (list_plugins if arguments[0] == "list" else print_completion)(arguments[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is written as the process ends


def _run(arguments: Sequence[str]) -> None:
    if not sys.stderr.isatty():
        os.environ.setdefault(
            "TQDM_DISABLE", "1"
        )  # bars of libraries, which would fill a log file; read on their import
    from sparsight.command.startup import check_plugins, check_torch_pair

    check_plugins()
    check_torch_pair()

    if arguments[0] == "compare":
        from sparsight.evaluation.compare import main as compare

        compare(arguments[1:])
        return
    if arguments[0] == "evaluate":
        from sparsight.command.benchmarks.evaluate import main as evaluate

        evaluate(arguments[1:])
        return
    if arguments[0] == "report":
        from sparsight.report.main import main as report

        report(arguments[1:])
        return
    if arguments[0] == "schema":
        from sparsight.command.output.schema import main as schema

        schema(arguments[1:])
        return
    from sparsight.command.cli import main as run

    run(arguments)


if __name__ == "__main__":
    main()
