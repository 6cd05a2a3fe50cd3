"""TempCompass: questions about short videos, which are asked about by frames."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from datamodules.evaluation.benchmarks.benchmark import BenchmarkTask
from datamodules.evaluation.benchmarks.frames import find_video, read_frames
from datamodules.evaluation.benchmarks.yes_no import YES_NO, yes_or_no
from sparsight.common.disk.inputs import need_folder
from sparsight.common.errors import require
from sparsight.evaluation.reform_eval.sample import Sample

Kind = Literal["multi-choice", "yes_no", "caption_matching"]
_OPTION = re.compile(r"((?:[A-Z][a-z]+ )?[A-Z\d])[.:)] (.+)")


class TempCompassTask(BenchmarkTask):
    """TempCompass (Liu et al., arXiv 2403.00476): speed, direction, order and change of what a video shows.

    Its captions are left out, as only another model could score them.

    Args:
        videos: Folder with its videos, named after ``video_id``: files, or folders of frames.
        kind: ``multi-choice``, ``yes_no`` or ``caption_matching``, each a configuration of the published data.
        frames: How many frames of a video are shown.
        common: As for ``BenchmarkTask``.

    Raises:
        ConfigurationError: An option is out of range.
    """

    hub = "lmms-eval/TempCompass"
    own_name = "tempcompass"
    needed = ("video_id", "question", "answer", "dim")
    rule = "choice"

    def __init__(
        self, path: str | None = None, *, videos: str, kind: Kind = "multi-choice", frames: int = 8, **common: Any
    ) -> None:
        require(kind in get_args(Kind), "kind", kind, ", ".join(get_args(Kind)))
        require(frames >= 1, "frames", frames, "1 or more")
        super().__init__(path, **{"config": kind, "name": f"{self.own_name}_{kind.replace('-', '_')}"} | common)
        self.videos = videos
        self.kind = kind
        self.frames = frames
        self.look = f"{frames} frames"
        self.lists_options = kind != "yes_no"
        self.sentence = "Please answer yes or no:" if kind == "yes_no" else "Please directly give the best option:"

    def check_paths(self) -> None:
        """See that the files are there, and the folder of videos."""
        super().check_paths()
        need_folder(self.videos, what=f"task {self.name}: videos", holds="the videos of TempCompass")

    def _make(self, row: Mapping[str, Any], index: int, part: int) -> Sample:
        video = find_video(Path(self.videos), self._text(row, "video_id"))
        question, right = self._text(row, "question"), str(row["answer"]).strip()
        if self.kind == "yes_no":
            options: tuple[str, ...] = YES_NO
            answer = yes_or_no(right)
        else:
            question, options, answer = split_options(question, right)
        images = read_frames(video, self.frames, max_pixels=self.max_pixels)
        return Sample(str(index), (question,), images, options, answer, categories=(str(row["dim"]),))


def split_options(question: str, right: str) -> tuple[str, tuple[str, ...], int]:
    """A question without the lines of its options, these, and the position of the right one.

    Args:
        question: With options in lines such as ``A. up`` and ``Caption B: it goes up``.
        right: The line of the right one, its mark or its text.

    Raises:
        ValueError: There are none, or none of them is right.
    """
    lines = question.split("\n")
    found = [(line.strip(), _OPTION.fullmatch(line.strip())) for line in lines]
    options = [(line, match[1], match[2].strip()) for line, match in found if match is not None]
    places = [place for place, forms in enumerate(options) if right in forms]
    if len(places) != 1:
        raise ValueError(f"the answer {right!r} is not one of the options {[line for line, _, _ in options]}")
    asked = "\n".join(line for line, match in found if match is None)
    return asked, tuple(text for _, _, text in options), places[0]
