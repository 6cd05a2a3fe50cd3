"""Frames of videos: of files, of animated images, and of folders of frames."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from PIL import Image, ImageSequence

from datamodules.sources.decoding import IMAGE_SUFFIXES, decode_image
from datamodules.sources.records import CorruptRecord

ANIMATED = (".gif", ".webp")
VIDEOS = (".mp4", ".avi", ".mkv", ".webm", ".mov")


def find_video(folder: Path, name: str) -> Path:
    """A video by its name without suffix: a file, or a folder with its frames.

    Raises:
        CorruptRecord: There is none, or it lies elsewhere.
    """
    for path in (folder / name, *(folder / f"{name}{suffix}" for suffix in (*VIDEOS, *ANIMATED))):
        if path.exists() and path.resolve().is_relative_to(folder.resolve()):
            return path
    raise CorruptRecord(f"{folder} has no video {name!r}: neither a folder of frames nor {name}.mp4 or the like")


def read_frames(path: Path, count: int, *, max_pixels: int) -> tuple[Image.Image, ...]:
    """Frames from the middles of equally long parts of a video, in RGB; all of them where there are fewer.

    Args:
        path: Of a folder of images, in the order of their names, an animated image, or a video, for which the package
            ``av`` is needed.
        count: How many.
        max_pixels: Images with more pixels are refused.

    Raises:
        CorruptRecord: There are none, or they cannot be decoded.
        ModuleNotFoundError: A video cannot be decoded without ``av``.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise CorruptRecord(f"{path} holds no frames")
        return tuple(decode_image(files[n], max_pixels=max_pixels).convert("RGB") for n in spread(len(files), count))
    if path.suffix.lower() in ANIMATED:
        try:
            with Image.open(path) as image:
                frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]
        except OSError as error:
            raise CorruptRecord(f"{path} cannot be decoded: {error}") from error
        return tuple(frames[n] for n in spread(len(frames), count))
    return tuple(_of_video(path, count))


def spread(total: int, count: int) -> list[int]:
    """Positions in the middles of ``count`` equally long parts of ``total``, or all."""
    if total <= count:
        return list(range(total))
    return [int((place + 0.5) * total / count) for place in range(count)]


def _of_video(path: Path, count: int) -> Iterator[Image.Image]:
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} needs the package av: pip install 'sparsight[video]', or store its frames as images in a folder "
            f"{path.with_suffix('')}"
        ) from error
    try:
        with av.open(str(path)) as video:
            total = sum(1 for _ in video.decode(video=0))
        wanted = spread(total, count)
        with av.open(str(path)) as video:
            for number, frame in enumerate(islice(video.decode(video=0), wanted[-1] + 1 if wanted else 0)):
                if number in wanted:
                    yield frame.to_image()
    except (av.error.FFmpegError, IndexError) as error:
        raise CorruptRecord(f"{path} cannot be decoded: {error}") from error
    if not total:
        raise CorruptRecord(f"{path} holds no frames")
