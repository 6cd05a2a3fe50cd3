"""Computed samples on disk: safetensors shards beside a manifest of the settings behind them.

A folder of caches holds one folder for every key, which is a hash of the settings:

    <root>/<key>/manifest.json       the settings
    <root>/<key>/00000.safetensors   samples 0 to shard_size - 1, one row each; checksum and versions in its header
    <root>/<key>/.00000.lock         held by the process that makes the shard
    <root>/<key>/verified.json       when each shard was last compared with its checksum
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from huggingface_hub.utils import WeakFileLock
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsight.common.disk.cache_settings import (
    MANIFEST,
    cache_key,
    differences,
    has_former,
    plain_settings,
    read_settings,
)
from sparsight.common.disk.files import write_text, write_whole
from sparsight.common.hashes import is_state, state_hash
from sparsight.common.tables import json_text

VERIFIED = "verified.json"
NOT_MADE = "not made yet"
_SECOND = 10**9
_DAY = 24 * 3600
_LOCK_SECONDS = 0.05  # how long to try for a shard before turning to the next one


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


def cut(*groups: int, size: int) -> list[Shard]:
    """Shards of at most ``size`` consecutive samples; those of different groups, given by their counts, share none."""
    shards: list[Shard] = []
    start = 0
    for count in groups:
        for first in range(start, start + count, size):
            shards.append(Shard(len(shards), first, min(size, start + count - first)))
        start += count
    return shards


class SampleCache:
    """The cache of one set of settings.

    Args:
        root: Folder of caches, or one cache's own folder, which is then used or refused, never ignored.
        settings: All that decides what the shards hold, as JSON data.
        former: Makes the settings as earlier versions wrote them, with SHA-256 of weights: a cache of theirs is used.
        verify_days: Shards are compared with their checksums when they were not for so many days, as bits that rot
            leave no trace in the time of a file: 0 for every time, none for never.

    Attributes:
        folder: Where manifest and shards are.

    Raises:
        ValueError: The folder's manifest is unreadable or tells of other settings.
    """

    def __init__(
        self,
        root: Path,
        settings: Mapping[str, Any],
        *,
        former: Callable[[], Mapping[str, Any]] | None = None,
        verify_days: int | None = 30,
    ) -> None:
        self.root = root
        self.verify_days = verify_days
        self.settings: dict[str, Any] = plain_settings(settings)
        if former is not None and not self._is_there(self.settings) and has_former(root):
            before = plain_settings(former())
            self.settings = before if self._is_there(before) else self.settings
        self.folder = root if (root / MANIFEST).is_file() else root / cache_key(self.settings)
        self._check_manifest()

    def path(self, number: int) -> Path:
        """File of a shard."""
        return self.folder / shard_name(number)

    def unusable(self, wanted: Sequence[Shard]) -> dict[Shard, str]:
        """Shards that must be made, with the reason.

        What has changed on disk since it was written, and what was not verified for ``verify_days``, is read whole.
        """
        verified = self._read_verified()
        known = dict(verified)
        missing = {shard: reason for shard in wanted if (reason := self._fault(shard, verified)) is not None}
        if verified != known:
            with suppress(OSError):  # a cache that cannot be written is verified again next time
                write_text(self.folder / VERIFIED, json_text(verified))
        return missing

    def _fault(self, shard: Shard, verified: dict[str, int]) -> str | None:
        path = self.path(shard.number)
        if not path.is_file():
            return NOT_MADE
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata() or {}
                if int(facts["samples"]) < shard.count:
                    return NOT_MADE
                written = int(facts["written"])
                last = max(written // _SECOND, verified.get(shard.name, 0))
                due = self.verify_days is not None and time.time() - last >= self.verify_days * _DAY
                if path.stat().st_mtime_ns == written and not due:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                intact = is_state(facts["hash"], tensors)
                intact = intact and all(len(tensor) == int(facts["samples"]) for tensor in tensors.values())
                if intact:
                    verified[shard.name] = int(time.time())
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            return f"it is damaged: {error}"
        return None if intact else "its checksum is wrong: changed on disk"

    def _read_verified(self) -> dict[str, int]:
        """When shards were last verified, in seconds since 1970; nothing where that cannot be read."""
        try:
            found = json.loads((self.folder / VERIFIED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        now = time.time()
        known = found.items() if isinstance(found, dict) else ()
        return {name: when for name, when in known if isinstance(when, int) and when <= now}

    # -- writing -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Make the folder and its manifest.

        Raises:
            ValueError: The folder cannot be written, or was made with other settings meanwhile.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise ValueError(f"cannot write to {self.folder} ({error}): choose another cache.folder") from error
        if not (self.folder / MANIFEST).is_file():
            write_text(self.folder / MANIFEST, json_text({"settings": self.settings}))
        self._sweep()

    def _sweep(self) -> None:
        """Remove what processes left that were killed while they wrote: of shards that none is making now."""
        for part in self.folder.glob(".*.part.safetensors"):
            number = part.name.split(".")[1]
            if number.isdigit():
                with self._lock(Shard(int(number), 0, 0), wait=False) as held:
                    if held:
                        part.unlink(missing_ok=True)

    def fill(self, missing: Iterable[Shard], make: Callable[[Shard], Mapping[str, Tensor]]) -> None:
        """Make what is missing, and return when all is there; after ``begin``.

        Any number of processes may do this at once, of one run or of several, on one machine or on many that share the
        folder: a shard is made by whoever holds its lock, and one that was given up in the middle by the next.

        Args:
            missing: What ``unusable`` found.
            make: Makes a shard's tensors, with one row for every sample.
        """
        left = list(missing)
        for wait in (False, True):
            taken: list[Shard] = []
            for shard in left:
                with self._lock(shard, wait=wait) as held:
                    if not held:
                        taken.append(shard)
                    elif self._fault(shard, {}) is not None:  # no other process has made it meanwhile
                        self._write(shard, make(shard))
            left = taken

    @contextmanager
    def _lock(self, shard: Shard, *, wait: bool) -> Iterator[bool]:
        with ExitStack() as stack:
            try:
                lock = self.folder / f".{self.path(shard.number).stem}.lock"
                stack.enter_context(WeakFileLock(lock, timeout=None if wait else _LOCK_SECONDS))
            except TimeoutError:
                yield False
                return
            yield True

    def _write(self, shard: Shard, tensors: Mapping[str, Tensor]) -> None:
        assert all(len(tensor) == shard.count for tensor in tensors.values())
        path = self.path(shard.number)
        for left_over in self.folder.glob(f".{path.stem}.*.part*"):  # of a process that was killed while it wrote
            left_over.unlink()
        content = {name: tensor.contiguous() for name, tensor in tensors.items()}
        written = int(time.time()) * _SECOND  # whole seconds, which every file system keeps
        facts = {"samples": str(shard.count), "hash": state_hash(content), "written": str(written)} | _versions()

        def write(part: Path) -> None:
            save_file(content, part, metadata=facts)
            os.utime(part, ns=(written, written))

        write_whole(path, write)

    # -- settings ------------------------------------------------------------------------------------------------

    def _is_there(self, settings: Mapping[str, Any]) -> bool:
        folders = (self.root, self.root / cache_key(settings))
        return any(read_settings(folder / MANIFEST) == settings for folder in folders)

    def _check_manifest(self) -> None:
        path = self.folder / MANIFEST
        if not path.is_file():
            return
        theirs = read_settings(path)
        if theirs is None:
            raise ValueError(
                f"{path} is unreadable: delete {self.folder} to make it anew, or choose another cache.folder"
            )
        if theirs != self.settings:
            raise ValueError(
                f"{self.folder} was made with other settings and is not used:\n"
                f"{differences(theirs, self.settings)}\n"
                "Choose another cache.folder, or the settings that it was made with"
            )

    def others(self, *, same: str | None = None) -> dict[Path, str]:
        """Caches beside this one, and in what their settings differ.

        Args:
            same: A setting; caches that differ in it are for something else and left out.
        """
        found = {path.parent: read_settings(path) for path in sorted(self.root.glob(f"*/{MANIFEST}"))}
        return {
            folder: differences(theirs, self.settings)
            for folder, theirs in found.items()
            if theirs is not None
            and folder != self.folder
            and (same is None or theirs.get(same) == self.settings[same])
        }


def fill_progress(unit: str) -> Progress:
    """A bar for what ``SampleCache.fill`` makes in this process."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    return Progress(*columns, TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn())


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"{number:05d}.safetensors"


def _versions() -> dict[str, str]:
    # Told, not part of the key: a newer sampler of the same name walks the same trajectory up to rounding or a bug fix,
    # and the teacher is asked again about every state when training.
    import diffusers

    return {"diffusers": diffusers.__version__, "torch": torch.__version__}
