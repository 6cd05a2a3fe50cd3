"""What every test stands on: no network, few threads, the same random numbers each time."""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

# Read when the libraries are imported, so they are set before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_MODE"] = "offline"
os.environ["MPLBACKEND"] = "Agg"
# Threads of each process, and of those that it starts. Tiny models gain nothing from more than one, and beside other
# work threads wait for each other; `make test-portable` asks for four, as results must not depend on it.
THREADS = os.environ["OMP_NUM_THREADS"] = os.environ.get("SPARSIGHT_TEST_THREADS", "1")

import numpy as np
import pytest
import torch

torch.set_num_threads(int(THREADS))
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are defined: without a GPU they run in the interpreter


# Rooms whose files take long, begun first: a long file that comes last leaves all processes but one without work.
LONG = ("recipes", "lightning_modules", "faults", "lvlm", "command", "callbacks", "benchmarks", "diffusion")


def pytest_configure(config: pytest.Config) -> None:
    """Have pytest-xdist begin files in their order here, not those with many tests first, which are quick ones."""
    config.option.loadscopereorder = False


def _begun(item: pytest.Item) -> int:
    room = item.path.relative_to(Path(__file__).parent).parts[0]
    return LONG.index(room) if room in LONG else len(LONG)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first; tests that need a GPU are skipped, with that reason, where there is none."""
    items.sort(key=_begun)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """What was imported stays: the collector need not walk through its 600 000 objects again and again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Other libraries complain at the end about what is never let go."""
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def _own_memory(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What would be remembered for later runs, such as hashes of files, is this run's alone."""
    os.environ["SPARSIGHT_CACHE"] = str(tmp_path_factory.mktemp("remembered"))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that `datasets` reads are prepared in a folder of the test's own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def reload_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are checked as ever but not in a process of their own, which takes long to start."""
    from tests.tiny_reload import read_back_here

    read_back_here(monkeypatch.setattr)


@pytest.fixture(autouse=True)
def _same_random_numbers() -> Iterator[None]:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    os.environ.pop("PL_GLOBAL_SEED", None)  # Lightning leaves it there, and runs are compared by it
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    """A class that other tests compiled for other models has a graph for each, and `fullgraph` refuses the ninth."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
