"""Any task with the text of its questions as pixels."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from datamodules.evaluation.task import EvaluationTask
from datamodules.sources.records import CorruptRecord, digest
from sparsight.common.disk.inputs import need_file
from sparsight.common.errors import require
from sparsight.evaluation.questions.question import Method
from sparsight.evaluation.questions.variant import Variant
from sparsight.evaluation.reform_eval.prompt import Prompt
from sparsight.evaluation.reform_eval.sample import Sample
from sparsight.lvlm.chat.conversation import IMAGE, Turn

ASKED = "Answer the question that is written in the last picture."
_PRINTABLE = set(string.ascii_letters + string.digits + string.punctuation + " \n")  # what the font surely has
_PLAIN = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014\u2212\u2026\t", "''\"\"---. ")
_LEADING = 1.35  # of lines, in sizes of the font


class PixelsTask(EvaluationTask):
    """A task whose questions, with options and instruction, are a picture (PixelWorld: Lyu et al., arXiv 2501.19339).

    The picture comes behind the images of the question. Earlier turns and examples stay text. Beside the task itself in
    one suite, ``sparsight compare`` of their categories tells what reading costs.

    Args:
        task: The task.
        width: Of the picture in pixels; its height is what the text needs.
        size: Of the font in pixels.
        font: File of another font, for texts beyond ASCII; Pillow's own if not given.
        name: Of the task; that of the other with ``_pixels`` behind it if not given.

    Raises:
        ConfigurationError: An option is out of range.
    """

    def __init__(
        self, task: EvaluationTask, width: int = 512, size: int = 20, font: str | None = None, name: str | None = None
    ) -> None:
        super().__init__(
            name=name or f"{task.name}_pixels",
            dimension=task.dimension,
            formulation=task.formulation,
            instructions=task.instructions,
        )
        require(size >= 6, "size", size, "6 or more pixels")
        require(width >= 8 * size, "width", width, f"{8 * size} or more pixels, for letters of {size}")
        self.task = task
        self.width = width
        self.size = size
        self.font = font
        self.rule = task.rule
        self.source = task.source
        self.seed = task.seed
        self.remedy = task.remedy
        self.look = f"{task.look} as pixels: {width}, {size}, {font}"

    def check_paths(self) -> None:
        """See that the task's files are there, and the font."""
        self.task.check_paths()
        if self.font is not None:
            need_file(self.font, what=f"task {self.name}: font", holds="a font")

    def prepare(self) -> None:
        """Download what the task needs."""
        self.task.prepare()

    def _open(self) -> None:
        self.task.open()

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.task)

    def dialogues(self) -> list[list[int]]:
        """As in the task."""
        return self.task.dialogues()

    def where(self, index: int) -> str:
        """As in the task."""
        return self.task.where(index)

    def __getitem__(self, index: int) -> Sample:
        """A sample of the task; its picture is drawn where it is asked, as that depends on how."""
        return self.task[index]

    def fingerprint(self) -> str:
        """Covers the task and the look of the text."""
        return digest([self.task.fingerprint(), self.look])

    def asked_by(self, method: Method, *, with_images: bool) -> Sequence[str]:
        """As in the task."""
        return self.task.asked_by(method, with_images=with_images)

    def candidates(self, sample: Sample, put: Variant) -> tuple[str, ...]:
        """As in the task."""
        return self.task.candidates(sample, put)

    def prompt(self, sample: Sample, put: Variant, *, instruction: str, method: Method, example: bool) -> Prompt:
        """The task's prompt with its last turn as a picture.

        Raises:
            CorruptRecord: The text has characters that the font lacks.
        """
        own = self.task.prompt(sample, put, instruction=instruction, method=method, example=example)
        *before, last = own.turns
        picture = draw_text(last.text.replace(IMAGE, ""), width=self.width, size=self.size, font=self.font)
        asked = Turn("user", IMAGE * (last.text.count(IMAGE) + 1) + ASKED)
        images = sample.images if own.images is None else own.images
        return Prompt((*before, asked), own.begun, (*images, picture))


def draw_text(text: str, *, width: int, size: int, font: str | None = None) -> Image.Image:
    """A text in black on white, in RGB, as high as it needs.

    Args:
        text: Lines that are too long are broken between words, and words that are, between letters.
        width: In pixels, with a margin of half a size on both sides.
        size: Of the font in pixels.
        font: File of a font; Pillow's own, which knows ASCII, if not given.

    Raises:
        CorruptRecord: The text is empty, or has characters that Pillow's own font lacks.
    """
    text = unicodedata.normalize("NFC", text).translate(_PLAIN).strip()
    if not text:
        raise CorruptRecord("there is no text to draw")
    odd = sorted({*text} - _PRINTABLE) if font is None else []
    if odd:
        raise CorruptRecord(f"the text has {odd[0]!r}, which the font lacks: set font to one that has it")
    face = ImageFont.load_default(size=size) if font is None else ImageFont.truetype(Path(font), size)
    lines = [part for line in text.split("\n") for part in _broken(line, face, width - size)]
    image = Image.new("RGB", (width, round(_LEADING * size * len(lines)) + size), "white")
    drawing = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        drawing.text((size / 2, size / 2 + _LEADING * size * number), line, fill="black", font=face)
    return image


def _broken(line: str, face: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> list[str]:
    """Parts of a line that fit, at least one."""
    parts = [""]
    for word in line.split(" "):
        joined = f"{parts[-1]} {word}" if parts[-1] else word
        if face.getlength(joined) <= room:
            parts[-1] = joined
            continue
        if parts[-1]:
            parts.append("")
        for letter in word:
            if parts[-1] and face.getlength(parts[-1] + letter) > room:
                parts.append("")
            parts[-1] += letter
    return parts
