"""lmms-eval as a process of another Python."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from sparsight.common.errors import ConfigurationError

LAUNCH = Path(__file__).with_name("launch.py")  # never imported here: it is for the other Python
Backend = Literal["transformers", "vllm"]
BACKENDS: Mapping[Backend, tuple[str, str]] = {  # lmms-eval's name of each, and of its option for the model
    "transformers": ("huggingface", "pretrained"),
    "vllm": ("vllm", "model"),
}
LOG = "lmms_eval.log"
_SHOWN = 3  # last lines of a process that failed
_LONGEST = 300  # characters of what it says itself: some of its messages list all models
_FAILED = re.compile(r"Error during evaluation: (.*?)(?:\. Please set `--verbosity|$)", re.MULTILINE)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_REMEDIES = {  # what lmms-eval says, and what to do about it here
    "Tasks not found": "tasks: give names that it knows, and the folder of your own as --task_folder",
    "NVIDIA driver": "model_args: on a processor say --model_args device=cpu,device_map=cpu",
    "Unexpected kwargs": "model_args: leave out what its backend does not take",
    "ConnectionError": "tasks: their data are on the hub, which cannot be reached",
}
_OF_VLLM = {
    "'NoneType' object is not callable": "backend: vLLM cannot be imported in that environment: install it there"
}


class Asked(NamedTuple):
    """What lmms-eval is to do.

    Args:
        python: Interpreter of its environment.
        model: Folder or hub id.
        tasks: Its own names of them.
        backend: What runs the model.
        options: Further options of the backend, such as ``{"device": "cpu", "device_map": "cpu"}``.
        limit: Samples of each task; all if not given.
        include: Folder with further tasks.
        batch_size: Samples at once.
    """

    python: str
    model: str
    tasks: Sequence[str]
    backend: Backend = "transformers"
    options: Mapping[str, str] = {}
    limit: int | None = None
    include: str | None = None
    batch_size: int = 1

    def command(self, output: Path) -> list[str]:
        """Its command line; samples are logged."""
        name, key = BACKENDS[self.backend]
        model = {key: self.model, **self.options}
        more = [] if self.limit is None else ["--limit", str(self.limit)]
        more += [] if self.include is None else ["--include_path", self.include]
        return [
            *(self.python, str(LAUNCH), "eval", "--model", name),
            *("--model_args", ",".join(f"{option}={value}" for option, value in model.items())),
            *("--tasks", ",".join(self.tasks), "--batch_size", str(self.batch_size)),
            *("--log_samples", "--output_path", str(output), *more),
        ]


def run_lmms_eval(asked: Asked, output: Path) -> None:
    """Let lmms-eval ask a model; what it says goes into ``lmms_eval.log``.

    Args:
        asked: What it is to do.
        output: Folder for what it writes.

    Raises:
        ConfigurationError: It is not installed there, or has failed; the message ends with what it said last. It ends
            with 0 also where it evaluated nothing, so that only its file of results tells.
    """
    output.mkdir(parents=True, exist_ok=True)
    command, log = asked.command(output), output / LOG
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # ours is not for it
    with log.open("w", encoding="utf-8") as stream:
        stream.write(f"{shlex.join(command)}\n")
        stream.flush()
        try:
            code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment).returncode
        except OSError as error:
            raise ConfigurationError(f"python: {asked.python!r} cannot be started: {error.strerror}") from error
    if code == 0 and any(output.rglob("*_results.json")):
        return
    said = log.read_text(encoding="utf-8", errors="replace").strip().split("\n")
    if any(f"No module named {name}" in line for line in said for name in ("lmms_eval", "'lmms_eval'")):
        raise ConfigurationError(
            f"python: {asked.python!r} has no lmms-eval: `make lmms-eval` makes .venv-lmms-eval, which has"
        )
    failed = _FAILED.findall(_COLOURS.sub("", "\n".join(said)))
    why = failed[-1][:_LONGEST] if failed else " | ".join(said[-_SHOWN:])
    causes = _REMEDIES | (_OF_VLLM if asked.backend == "vllm" else {})
    remedies = "".join(f" {remedy}." for cause, remedy in causes.items() if failed and cause in failed[-1])
    how = f"ended with {code}" if code else "evaluated nothing"
    raise ConfigurationError(f"lmms-eval {how};{remedies} {log} has all that it said: {why}")
