"""What the command imports before it answers: counted in modules, as times differ between machines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sparsight.command.plugins import HOME
from tests.tiny_tuning import tuning_config

HEAVY = ("torch", "lightning", "numpy", "diffusers", "transformers", "matplotlib")
WHERE_USED = (
    "diffusers",
    "peft",
    "accelerate",
    "timm",
    "datasets",
    "gguf",
    "tensorboard",
    "transformers.modeling_utils",
)
ENOUGH = 900  # modules of ours and of small libraries beside torch and Lightning; with diffusers they are 1800


def imported(*arguments: str, folder: Path) -> tuple[int, str, set[str]]:
    """Exit status, output and imported modules of a command that runs alone."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=_environment())
    return done.returncode, done.stdout + done.stderr, set(re.findall(r"^import time:.*\| *(\S+)$", done.stderr, re.M))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(HOME), "HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--help"], 0, "verbs:"),
        (["help"], 0, "verbs:"),
        (["list", "mixers"], 0, "DeltaConvBlock"),
        (["fitt"], 1, "did you mean fit"),
        (["fit", "--config", "experiment/quickstrat"], 1, "did you mean experiment/quickstart"),
        (["fit", "--config", "quickstart"], 1, "did you mean experiment/quickstart?"),
        (["schema", "--ouput", "x.json"], 1, "schema: there is no option --ouput; did you mean --output?"),
        (["fit", "--model", "no/such.yaml"], 1, "no config 'no/such.yaml'"),
        (["fit", "--config=experiment/quickstart", "--ckpt_path", "no.ckpt"], 1, "ckpt_path: 'no.ckpt' does not exist"),
        (
            ["fit", "--config=experiment/quickstart", "--model.teacher", "./no/dit"],
            1,
            "model.teacher: './no/dit' does not exist",
        ),
        (["fit", "--config=experiment/own_tune"], 1, "data.train.file: 'data/own/train.json' does not exist"),
        (["compare", "no_report", "--output", "compared"], 1, "compare: 'no_report' does not exist"),
        (["evaluate", "model", "--tasks", "popee"], 1, "did you mean pope?"),
        (["evaluate", "./no", "--tasks", "pope"], 1, "model: './no' does not exist"),
        (["list", "mixer"], 1, "did you mean mixers"),
        (["fit", "--confg=experiment/quickstart"], 1, "there is no option --confg; did you mean --config"),
        (
            ["fit", "--config=experiment/quickstart", "--model.techer=x"],
            1,
            "model.techer: AttentionDistillation has",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_help_lists_and_refusals_import_nothing_heavy(
    arguments: list[str], status: int, said: str, tmp_path: Path
) -> None:
    code, output, modules = imported("-m", "sparsight", *arguments, folder=tmp_path)
    assert (code, said in output) == (status, True), output[-2000:]
    assert "sparsight.command.arguments" in modules or arguments in (["--help"], ["help"])
    assert not modules.intersection(HEAVY)


def test_a_reader_that_has_had_enough_ends_a_list_quietly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sparsight", "list"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, env=_environment(), **pipes) as process:  # type: ignore[call-overload]
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 0


@pytest.mark.slow  # imports torch in a fresh process
def test_the_command_imports_little_and_looking_at_conversations_nothing_of_the_other_wing(tmp_path: Path) -> None:
    script = (
        "import sys, torch, lightning.pytorch; before = set(sys.modules); import sparsight.command.cli;"
        "print(*(set(sys.modules) - before)); from sparsight.__main__ import main; main(sys.argv[1:]);"
        "print(); print(*sys.modules)"
    )
    inspect = ["inspect", "--config", str(tuning_config(tmp_path))]
    done = subprocess.run(
        [sys.executable, "-c", script, *inspect], cwd=tmp_path, capture_output=True, text=True, env=_environment()
    )
    assert done.returncode == 0 and "train record 0" in done.stdout, done.stderr[-2000:]
    first, *_, last = done.stdout.splitlines()
    added = set(first.split())
    assert "sparsight.command.cli" in added
    assert not added.intersection(WHERE_USED)
    assert len(added) < ENOUGH
    assert "sparsight.lvlm.chat.show" in last.split()
    assert not {"diffusers", "peft", "datasets"}.intersection(last.split())
