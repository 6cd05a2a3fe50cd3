"""Processes of a distributed run end soon after the one that started them is gone.

A process that was killed cannot tell the others. Lightning's launcher notices a killed child within seconds, but a
child of a killed launcher would wait for it in a collective operation, for half an hour by default.
"""

from __future__ import annotations

import os
import sys
import threading
import time

FAILED = 1  # exit code


def end_with_parent(*, every: float = 2.0) -> None:
    """End this process at once when its parent is gone, which is looked for in a thread every so many seconds."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        sys.stderr.write(f"sparsight: the process that started this one ({parent}) is gone: ending\n")
        sys.stderr.flush()
        os._exit(FAILED)  # an exception would not reach the main thread, which may wait in a collective operation

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def is_started_by_launcher() -> bool:
    """Whether Lightning or torchrun started this process beside others."""
    return "LOCAL_RANK" in os.environ
