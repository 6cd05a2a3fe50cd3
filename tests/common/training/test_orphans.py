"""A process that waits forever ends when the one that started it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CHILD = """
import sys, time
from sparsight.common.training.orphans import end_with_parent
end_with_parent(every=0.05)
open(sys.argv[1], "w").close()
time.sleep(600)
"""
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]])
print(child.pid, flush=True)
time.sleep(600)
"""


def is_alive(process: int) -> bool:
    """Whether it runs; one that has ended and waits to be fetched does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    surroundings = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD, str(ready)], stdout=subprocess.PIPE, text=True, env=surroundings
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        end = time.monotonic() + 60
        while not ready.exists() and time.monotonic() < end:
            time.sleep(0.02)
        assert is_alive(child)
        parent.send_signal(signal.SIGKILL)
    while is_alive(child) and time.monotonic() < end:
        time.sleep(0.02)
    assert not is_alive(child)
