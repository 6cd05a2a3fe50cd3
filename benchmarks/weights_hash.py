"""How fast weights are hashed that a file's cache holds: 2 GB in bfloat16, as a denoiser's.

    python -m benchmarks.weights_hash      exits with 1 under 2 GB for a second of processor time

What the wall clock says depends on what else the machine does; both are printed. So is what a start takes that knows
the base by its files: the first one, which reads them, and those that remember.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sparsight.common.disk.remembered_hash import FOLDER, SETTLED, remembered_hash
from sparsight.common.disk.stored_state import StoredState
from sparsight.common.hashes import kind_of, state_hash

LAYERS, SIDE = 16, 8192  # 2.1 GB
LEAST = 2.0  # GB/s


def main() -> None:
    """Write the file, read it once, and hash it three times from the cache."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights.safetensors")
        save_file({f"{i}.weight": torch.randn(SIDE, SIDE).bfloat16() for i in range(LAYERS)}, path)
        count = path.stat().st_size
        speeds = []
        for _ in range(4):
            wall, processor = time.perf_counter(), time.process_time()
            found = state_hash(load_file(path))
            speeds.append((count / (time.perf_counter() - wall), count / (time.process_time() - processor)))
        os.environ[FOLDER] = folder
        starts = []
        time.sleep(SETTLED)  # what was written a moment ago is not remembered
        for _ in range(2):
            wall = time.perf_counter()
            remembered_hash(StoredState([path]))
            starts.append(time.perf_counter() - wall)
    best = max(processor for _, processor in speeds[1:]) / 1e9
    told = ", ".join(f"{wall / 1e9:.2f} ({processor / 1e9:.2f})" for wall, processor in speeds)
    print(f"{count / 1e9:.2f} GB: {told} GB/s of time (of processor time), {kind_of(found)}")
    print(f"at a first start {starts[0]:.2f} s, at a later one {starts[1] * 1e3:.2f} ms")
    sys.exit(int(best < LEAST))


if __name__ == "__main__":
    main()
