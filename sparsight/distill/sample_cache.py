"""Teacher samples on disk: safetensors shards, and a manifest of their checksums and the settings behind them.

A folder of caches holds one folder for every key, which is a hash of the settings:

    <root>/<key>/manifest.json       the settings; samples, SHA-256 and versions of every finished shard
    <root>/<key>/00000.safetensors   samples 0 to shard_size - 1, one row each
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import diffusers
import torch
from huggingface_hub.utils import WeakFileLock
from safetensors.torch import save
from torch import Tensor

from sparsight.analysis.tables import json_text, write_text, write_whole
from sparsight.hyperparameters import flatten

MANIFEST = "manifest.json"
NOT_MADE = "not made yet"
_SHOWN_DIFFERENCES = 8


@dataclass(frozen=True)
class Shard:
    """Consecutive samples that share a file."""

    number: int
    first: int
    count: int

    @property
    def name(self) -> str:
        """File name."""
        return shard_name(self.number)

    @property
    def ids(self) -> Tensor:
        """Sample ids, int64 (count,)."""
        return torch.arange(self.first, self.first + self.count)


class SampleCache:
    """The cache of one set of settings.

    Args:
        root: Folder of caches, or one cache's own folder, which is then used or refused, never ignored.
        settings: All that decides what the shards hold, as JSON data; ``shard_size`` is the samples of a shard.

    Attributes:
        folder: Where manifest and shards are.

    Raises:
        ValueError: The folder's manifest is unreadable or tells of other settings.
    """

    def __init__(self, root: Path, settings: Mapping[str, Any]) -> None:
        self.root = root
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.folder = root if (root / MANIFEST).is_file() else root / cache_key(self.settings)
        self._read_manifest()

    def shards(self, total: int) -> list[Shard]:
        """Shards of samples 0 to ``total - 1``; the last one may be smaller."""
        size = self.settings["shard_size"]
        return [Shard(number, first, min(size, total - first)) for number, first in enumerate(range(0, total, size))]

    def path(self, number: int) -> Path:
        """File of a shard."""
        return self.folder / shard_name(number)

    def unusable(self, wanted: list[Shard]) -> dict[Shard, str]:
        """Shards that must be made, with the reason; every file that is there is read and its checksum compared."""
        return {shard: reason for shard in wanted if (reason := self._fault(shard)) is not None}

    def _fault(self, shard: Shard) -> str | None:
        finished, path = self._finished.get(shard.name), self.path(shard.number)
        if finished is None or finished["samples"] < shard.count:
            return NOT_MADE
        if not path.is_file():
            return "its file is gone"
        return None if file_hash(path) == finished["sha256"] else "its checksum is wrong: truncated or changed on disk"

    # -- writing -------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the cache alone, so that runs started together make it once; others wait.

        Raises:
            ValueError: The folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise ValueError(f"cannot write to {self.folder} ({error}): choose another cache_dir") from error
        with WeakFileLock(self.folder / ".lock"):
            self._read_manifest()
            for left_over in self.folder.glob(".*.part*"):  # of a process that was killed while it wrote
                left_over.unlink()
            yield

    def write(self, shard: Shard, tensors: Mapping[str, Tensor]) -> None:
        """Add a shard; inside :meth:`writing`.

        Args:
            shard: Which one.
            tensors: Tensors with one row for every sample.
        """
        assert all(len(tensor) == shard.count for tensor in tensors.values())
        content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        write_whole(self.path(shard.number), lambda part: part.write_bytes(content))
        checksum = hashlib.sha256(content).hexdigest()
        self._finished[shard.name] = {"samples": shard.count, "sha256": checksum, "made_with": _versions()}
        write_text(self.folder / MANIFEST, json_text({"settings": self.settings, "shards": self._finished}))

    # -- settings ------------------------------------------------------------------------------------------------

    def _read_manifest(self) -> None:
        path = self.folder / MANIFEST
        self._finished: dict[str, dict[str, Any]] = {}
        if not path.is_file():
            return
        manifest = read_manifest(path)
        if manifest is None:
            raise ValueError(f"{path} is unreadable: delete {self.folder} to make it anew, or choose another cache_dir")
        if manifest["settings"] != self.settings:
            raise ValueError(
                f"{self.folder} was made with other settings and is not used:\n"
                f"{differences(manifest['settings'], self.settings)}\n"
                "Choose another cache_dir, or the settings that it was made with"
            )
        self._finished = manifest["shards"]

    def others(self) -> dict[Path, str]:
        """Caches beside this one, and in what their settings differ."""
        manifests = {path.parent: read_manifest(path) for path in sorted(self.root.glob(f"*/{MANIFEST}"))}
        return {
            folder: differences(manifest["settings"], self.settings)
            for folder, manifest in manifests.items()
            if manifest is not None and folder != self.folder
        }


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"{number:05d}.safetensors"


def cache_key(settings: Mapping[str, Any]) -> str:
    """Name of the cache of these settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def read_manifest(path: Path) -> dict[str, Any] | None:
    """A manifest, or ``None`` if the file is none."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(manifest, dict) and all(isinstance(manifest.get(key), dict) for key in ("settings", "shards"))
    return manifest if whole else None


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The settings that differ, a line each."""
    there, here = flatten(theirs), flatten(ours)
    lines = [
        f"  {key}: {str(there.get(key))[:60]} there, {str(here.get(key))[:60]} asked for"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]
    more = len(lines) - _SHOWN_DIFFERENCES
    return "\n".join(lines[:_SHOWN_DIFFERENCES] + ([f"  and {more} more"] if more > 0 else []))


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    # Told, not part of the key: a newer sampler of the same name walks the same trajectory up to rounding or a bug fix,
    # and the teacher is asked again about every state when training.
    return {"diffusers": diffusers.__version__, "torch": torch.__version__}
