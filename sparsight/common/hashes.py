"""Hashes that say which weights something was made from, and whether files are what they were."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import xxhash
from torch import Tensor

_BLOCK = 1 << 20
XXH3, SHA256 = "xxh3-128", ""
"""Kinds of hashes of weights; SHA-256 is told by no name, as earlier versions wrote it."""
_THREADS = 4  # some of which wait for the disk


def files_hash(paths: Iterable[Path]) -> str:
    """SHA-256 over the bytes of files, one after the other, read in blocks."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def state_hash(state: Mapping[str, Tensor], *, like: str | None = None) -> str:
    """Hash over names, dtypes, shapes and bytes of the tensors, in the order of their names, behind its kind.

    It tells weights from others and finds damage; it is no defence against somebody who makes two of one hash.

    Args:
        state: Tensors by name; each is asked for once, and let go.
        like: A recorded hash, whose kind is taken: ``xxh3-128:...``, or SHA-256 without a kind from before there were
            several.

    Raises:
        ValueError: The recorded hash is of a kind that this version does not know.
    """
    kind = XXH3 if like is None else kind_of(like)
    if kind == SHA256:
        return _sha256(state)
    if kind != XXH3:
        raise ValueError(f"weights were recorded by a hash of the kind {kind!r}, which this version does not know")
    return _xxh3(state, lambda name: _of_tensor(name, state[name]))


def float32_hash(names: Iterable[str], read: Callable[[str], Tensor]) -> str:
    """``state_hash`` of tensors as they are in float32, of which no more than a piece of each is ever made.

    Args:
        names: Of the tensors.
        read: Gives one of them, in any precision; each is asked for once, and let go.
    """
    return _xxh3(names, lambda name: _of_float32(name, read(name)))


def _xxh3(names: Iterable[str], of_each: Callable[[str], tuple[bytes, bytes]]) -> str:
    digest = xxhash.xxh3_128()
    with ThreadPoolExecutor(_THREADS) as pool:  # hashing and reading let go of the interpreter
        for told, of_tensor in pool.map(of_each, sorted(names)):
            digest.update(told)
            digest.update(of_tensor)
    return f"{XXH3}:{digest.hexdigest()}"


def _of_tensor(name: str, tensor: Tensor) -> tuple[bytes, bytes]:
    return _told(name, tensor), xxhash.xxh3_128_digest(_bytes(tensor))


def _of_float32(name: str, tensor: Tensor) -> tuple[bytes, bytes]:
    if not tensor.is_floating_point() or tensor.dtype == torch.float32:
        return _of_tensor(name, tensor)
    digest = xxhash.xxh3_128()
    for piece in tensor.flatten().split(_BLOCK):
        digest.update(_bytes(piece.float()))
    return _told(name, torch.empty(tensor.shape, device="meta")), digest.digest()


def _sha256(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(_told(name, tensor))
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _told(name: str, tensor: Tensor) -> bytes:
    return f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes, not copied where it is contiguous and on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def is_state(recorded: object, state: Mapping[str, Tensor]) -> bool:
    """Whether a recorded hash, of whatever kind, is that of these tensors."""
    return isinstance(recorded, str) and state_hash(state, like=recorded) == recorded


def kind_of(recorded: str) -> str:
    """Kind of a recorded hash; empty for SHA-256."""
    return recorded.rpartition(":")[0]


def short_hash(recorded: object) -> str:
    """A recorded hash for people: its kind and its first digits."""
    kind, _, digits = str(recorded).rpartition(":")
    return f"{kind}:{digits[:12]}".removeprefix(":")
