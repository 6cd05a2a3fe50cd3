"""Runs of the command that are killed at a chosen moment: in a process that has all imports behind it.

A process is forked from a server that imported the command once, so a run of a tiny model takes a second or two.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.tiny_processes import server

CHANGES = {
    "os.rename": (0, 1),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.mkdir": (0,),
    "os.link": (1,),
    "os.symlink": (1,),
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
PATIENCE = 180.0  # seconds; a run that has not ended by then hangs


@dataclass(frozen=True)
class Moment:
    """When a run is killed: right before its n-th change of the folder that it works in, or after so many seconds."""

    change: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"change {self.change}" if self.change else f"{self.seconds:.2f} s"


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit code (negative: by that signal), changes that it made, seconds, and what it printed."""

    code: int
    changes: int
    seconds: float
    text: str


class Runs:
    """Starts runs of the command, one after the other."""

    def __init__(self) -> None:
        self._context = server()

    def run(
        self,
        arguments: Sequence[str],
        folder: Path,
        *,
        killed: Moment | None = None,
        before: Callable[[], object] | None = None,
        environment: dict[str, str] | None = None,
    ) -> Ended:
        """Run the command in ``folder`` and wait for its end.

        Args:
            arguments: Of the command.
            folder: Where it works; what it prints goes to ``log`` in it.
            killed: When it is killed; never if not given.
            before: Called in the process first; a function of a module.
            environment: Variables of the process.
        """
        changes = self._context.Value("i", 0)
        at = killed.change if killed else 0
        process = self._context.Process(
            target=_run, args=(list(arguments), folder, changes, at, before, environment or {})
        )
        begun = time.monotonic()
        process.start()
        _wait(
            process, killed.seconds if killed and killed.seconds else PATIENCE, wanted=bool(killed and killed.seconds)
        )
        assert process.exitcode is not None
        text = (folder / "log").read_text(errors="replace")
        return Ended(process.exitcode, changes.value, time.monotonic() - begun, text)


def _wait(process: ForkServerProcess, seconds: float, *, wanted: bool) -> None:
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        assert wanted, f"the run had not ended after {seconds} s"


def _run(
    arguments: list[str],
    folder: Path,
    changes: Any,
    at: int,
    before: Callable[[], object] | None,
    environment: dict[str, str],
) -> None:
    os.environ.update({"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"} | environment)
    os.chdir(folder)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    import torch

    torch.set_num_threads(1)
    sys.addaudithook(_killer(folder.resolve(), changes, at))
    from sparsight.__main__ import main

    if before is not None:
        before()
    sys.argv = ["sparsight", *arguments]
    main(arguments)


def _killer(folder: Path, changes: Any, at: int) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that counts changes below a folder, and kills the process before one of them."""
    root = f"{folder}{os.sep}"

    def inside(path: Any) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        return os.path.abspath(os.fsdecode(path)).startswith(root)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool((flags or 0) & WRITING)
            changed = writes and inside(path)
        else:
            changed = event in CHANGES and any(inside(arguments[position]) for position in CHANGES[event])
        if changed:
            with changes.get_lock():
                changes.value += 1
                now = changes.value
            if now == at:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook
