"""A line that tells where work is: live in a terminal, written now and then elsewhere."""

from __future__ import annotations

import math
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

_BETWEEN_UPDATES = 0.2  # seconds, of a terminal


class ProgressLine:
    """Lines of the parts of a run.

    Args:
        seconds: Between lines where there is no terminal.
        console: Where to; standard output if not given.

    Attributes:
        enabled: Whether anything is told.
    """

    def __init__(self, seconds: float, console: Console | None) -> None:
        self.seconds, self.enabled = seconds, True
        self._console = console
        self._live: Progress | None = None
        self._tasks: dict[str, TaskID] = {}  # by part of the run
        self._told = 0.0  # when the last line was written

    def __getstate__(self) -> dict[str, Any]:
        """Without the terminal, which is of this process."""
        return self.__dict__ | {"_live": None, "_console": None, "_tasks": {}}

    @property
    def console(self) -> Console:
        """Where lines go."""
        if self._console is None:
            self._console = Console()
        return self._console

    def print(self, *args: Any) -> None:
        """Print above the line."""
        if self.enabled:
            self.console.print(*(str(each) for each in args), markup=False, highlight=False)

    def begin(self) -> None:
        """Count the time to the next line from now."""
        self._told = time.monotonic()

    def is_time(self, *, last: bool) -> bool:
        """Whether enough time has passed since something was shown; if so, it counts as shown now."""
        if not self.enabled:
            return False
        between = _BETWEEN_UPDATES if self.console.is_terminal else self.seconds
        now = time.monotonic()
        if now - self._told < between and not last:
            return False
        self._told = now
        return True

    def show(self, part: str, what: str, done: float, total: float, rest: str) -> None:
        """Tell where a part is.

        Args:
            part: Each has a line of its own; ``train`` counts steps, others batches.
            what: What it is called.
            done: Steps or batches.
            total: Of them; may be infinite.
            rest: What else there is to tell.
        """
        if not self.enabled:
            return
        of_total = f"{done:.0f}" if math.isinf(total) else f"{done:.0f}/{total:.0f}"
        if not self.console.is_terminal:
            if done:
                self.print(
                    ", ".join(filter(None, [f"{what}, {'step' if part == 'train' else 'batch'} {of_total}", rest]))
                )
            return
        if self._live is None:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
                TextColumn("{task.fields[of_total]}"),
                TextColumn("{task.fields[rest]}", table_column=Column(overflow="ellipsis", no_wrap=True)),
                console=self.console,
                expand=True,
                auto_refresh=False,
            )
            self._live.start()
        shown: dict[str, Any] = {
            "description": what,
            "completed": done,
            "total": None if math.isinf(total) else total,
            "of_total": of_total,
            "rest": rest,
        }
        if part in self._tasks:
            self._live.update(self._tasks[part], **shown)
        else:
            self._tasks[part] = self._live.add_task(**shown)
        self._live.refresh()

    def drop(self, part: str) -> None:
        """Take the live line of a part away."""
        if self._live is not None and part in self._tasks:
            self._live.remove_task(self._tasks.pop(part))
            if not self._tasks:
                self.stop()

    def stop(self) -> None:
        """End the live line, which stays as it is, without parts of a validation that was broken off."""
        if self._live is not None:
            for part in self._tasks.keys() - {"train"}:
                self._live.remove_task(self._tasks[part])
            self._live.stop()
        self._live, self._tasks = None, {}
