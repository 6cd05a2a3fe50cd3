"""Idx files, the form of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from PIL import Image

from datamodules.sources.decoding import MAX_PIXELS
from datamodules.sources.labels import check_labels
from datamodules.sources.records import Record, RecordSource, array_digest, digest
from sparsight.common.disk.inputs import need_file

_PIECE = 1 << 20  # bytes


def read_idx(path: str | Path, *, dims: int) -> np.ndarray:
    """Read an idx file of unsigned bytes, gzipped or not.

    Args:
        path: File; one that starts with the gzip signature is unpacked.
        dims: Number of dimensions that is expected: 3 for images (N, H, W), 1 for labels (N).

    Returns:
        uint8 array of the shape that the file's header states.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the header is not that of such a file, or the payload is shorter or longer than it says.
    """
    path = Path(path)
    need_file(path, what="images" if dims == 3 else "labels", holds="numbers, idx or idx.gz")
    with _open_maybe_gzip(path) as file:
        try:
            return _parse_idx(file, path=path, dims=dims)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"idx file {path} of {path.stat().st_size} bytes is damaged: {error}") from error


def _open_maybe_gzip(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path, "rb")) if zipped else path.open("rb")


def _parse_idx(file: BinaryIO, *, path: Path, dims: int) -> np.ndarray:
    expected_magic = 0x0800 | dims
    header = file.read(4)
    magic = int.from_bytes(header, "big")
    if len(header) == 4 and magic != expected_magic:
        raise ValueError(
            f"idx file {path} starts with {magic:#010x}, expected {expected_magic:#010x} "
            f"(unsigned bytes, {dims} dimensions); are the image and label files swapped?"
        )
    header += file.read(4 * dims)
    if len(header) < 4 + 4 * dims:
        raise ValueError(f"idx file {path} ends after {len(header)} bytes; its header alone takes {4 + 4 * dims}")
    shape = struct.unpack(f">{dims}I", header[4:])
    if not all(shape[1:]) or math.prod(shape[1:]) > MAX_PIXELS:
        raise ValueError(f"idx file {path} has pictures of {shape[1:]} pixels; allowed: 1 to {MAX_PIXELS}")
    expected = math.prod(shape)
    payload = bytearray()  # grows with the file, whatever its header promises
    while len(payload) <= expected and (piece := file.read(min(_PIECE, expected + 1 - len(payload)))):
        payload += piece
    if len(payload) != expected:
        found = f"{len(payload)} bytes" if len(payload) < expected else "more"
        raise ValueError(f"idx file {path} has {found} of data where its shape {shape} needs {expected} bytes")
    return np.frombuffer(payload, dtype=np.uint8).reshape(shape)


class IdxRecords(RecordSource):
    """Grey images and labels from a pair of idx files, as MNIST and Fashion-MNIST come.

    Args:
        images: idx or idx.gz file of shape (N, H, W).
        labels: idx or idx.gz file of shape (N), or ``None``.
        classes: Names of the classes in the order of their numbers.
    """

    def __init__(self, images: str | Path, labels: str | Path | None = None, classes: list[str] | None = None) -> None:
        self.images = images
        self.labels = labels
        self._classes = classes
        self._images_NHW = np.empty((0, 0, 0), dtype=np.uint8)
        self._labels_N: np.ndarray | None = None

    def check_paths(self) -> None:
        """See that the files are there."""
        need_file(self.images, what="images", holds="numbers, idx or idx.gz")
        if self.labels is not None:
            need_file(self.labels, what="labels", holds="numbers, idx or idx.gz")

    def _open(self) -> None:
        if self._classes is not None and self.labels is None:
            raise ValueError(f"`classes` is given for {self.images} but `labels` is not; give both or neither")
        self._images_NHW = read_idx(self.images, dims=3)
        if self.labels is None:
            return
        self._labels_N = labels_N = read_idx(self.labels, dims=1)
        if len(labels_N) != len(self._images_NHW):
            raise ValueError(
                f"{self.labels} holds {len(labels_N)} labels but {self.images} holds {len(self._images_NHW)} images; "
                "give two files of the same split"
            )
        check_labels(np.unique(labels_N).tolist(), classes=self._classes, where=str(self.labels))

    @property
    def classes(self) -> list[str] | None:
        """Names given at construction."""
        return self._classes

    @property
    def highest_label(self) -> int | None:
        """Highest class number that occurs, once the files are open."""
        return None if self._labels_N is None or not len(self._labels_N) else int(self._labels_N.max())

    def __len__(self) -> int:
        """Number of images."""
        self.open()
        return len(self._images_NHW)

    def __getitem__(self, index: int) -> Record:
        """Grey image (mode L) and its label."""
        label = self.label_of(index)
        return Record(id=str(index), image=Image.fromarray(self._images_NHW[index]), label=label)

    def where(self, index: int) -> str:
        """File and position."""
        return f"record {index} of {self.images}"

    def label_of(self, index: int) -> int | None:
        """Class number of one image."""
        self.open()
        return None if self._labels_N is None else int(self._labels_N[index])

    def fingerprint(self) -> str:
        """Covers every pixel and label."""
        return digest(self.content())

    def content(self) -> Iterator[object]:
        """Every pixel and label."""
        self.open()
        arrays = [self._images_NHW] if self._labels_N is None else [self._images_NHW, self._labels_N]
        return ((array.shape, array_digest(array)) for array in arrays)
