"""Files that sources of records read: images, idx, tar shards, tables, folders with captions."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def write_idx(path: Path, array: np.ndarray, *, payload: bytes | None = None) -> Path:
    """Write an idx file, with another payload than the header says if one is given."""
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 | array.ndim, *array.shape)
    data = header + (array.tobytes() if payload is None else payload)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def png(value: int = 0, *, size: tuple[int, int] = (4, 4)) -> bytes:
    """PNG file of one grey value."""
    buffer = io.BytesIO()
    Image.new("L", size, value).save(buffer, "png")
    return buffer.getvalue()


def write_files(root: Path, files: dict[str, bytes | str]) -> Path:
    """Write files under a folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as shard:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return path


def write_shard(path: Path, first: int, count: int) -> Path:
    """Grey images whose value, caption and label is their number."""
    members: dict[str, bytes] = {}
    for number in range(first, first + count):
        members[f"{number:04d}.png"] = png(number)
        members[f"{number:04d}.txt"] = f"picture {number}\n".encode()
        members[f"{number:04d}.cls"] = str(number % 3).encode()
        members[f"{number:04d}.json"] = json.dumps({"text": f"json {number}", "kind": "ab"[number % 2]}).encode()
    return write_tar(path, members)


def write_parquet(path: Path, first: int, count: int, *, plain: bool = False) -> Path:
    pictures: list[Any] = [png(number, size=(6, 4)) for number in range(first, first + count)]
    if not plain:
        pictures = [{"bytes": picture, "path": None} for picture in pictures]
    texts = [f"picture {number}" for number in range(first, first + count)]
    pq.write_table(pa.table({"image": pictures, "text": texts, "kind": ["b", "a"] * (count // 2)}), path)
    return path


def save_images(folder: Path, count: int = 10, *, size: tuple[int, int] = (16, 16)) -> Path:
    """Coloured noise with a caption each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = ["file_name,text"]
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,a {'bcdefghij'[number % 9]} {chr(228) * (number % 3)}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
