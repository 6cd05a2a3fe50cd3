"""Maps of attention over images, as an option of ``analyze``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from blocks.tokens.base import Edit
from sparsight.common.disk.files import write_text, write_whole
from sparsight.common.tables import json_text

FORMAT = "sparsight image maps 1"


@runtime_checkable
class Mapped(Protocol):
    """A module whose attention on images can be drawn."""

    def image_maps(self, maps: ImageMaps, batches: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
        """Draw samples of calibration batches into a folder."""
        ...


class ImageMaps:
    """Attention on every image token, drawn over the image, with tokens that a recipe has dropped left blank.

    Args:
        layers: Decoder layers that are drawn; some from the first to the last if not given.
        samples: How many samples with images are drawn.
        asks: Whose attention: ``answer``, mean over the words of the first answer as they are predicted, or ``last``,
            the last token of the prompt. Without answers it is the latter.

    Raises:
        ValueError: There would be nothing to draw, or nobody asks so.
    """

    def __init__(self, layers: list[int] | None = None, samples: int = 4, asks: str = "answer") -> None:
        if samples < 1 or (layers is not None and (not layers or len(set(layers)) < len(layers))):
            raise ValueError(f"maps need a sample and different layers; got samples={samples}, layers={layers}")
        if asks not in ("answer", "last"):
            raise ValueError(f"asks is {asks!r}; allowed are answer, last")
        self.layers, self.samples, self.asks = layers, samples, asks

    def draw(
        self,
        model: Any,
        batches: Iterable[Mapping[str, Any]],
        folder: Path,
        *,
        methods: Sequence[Edit] = (),
        decode: Callable[[list[int]], str] | None = None,
        title: str = "",
    ) -> list[Path]:
        """Write ``maps.json`` and a PNG for each sample into a folder, which is made if missing.

        Args:
            model: Of a family that recipes serve.
            batches: Of the instruction datamodule.
            folder: For the files.
            methods: That work meanwhile.
            decode: Makes text of tokens; without it numbers of tokens are written.
            title: Names the model.

        Returns:
            The PNGs.

        Raises:
            ConfigurationError: Layers do not attend, or no sample has an image.
            ValueError: The family is not served.
        """
        from sparsight.lvlm.scores.maps.draw import draw_sample, numbers_of  # matplotlib is slow to import
        from sparsight.lvlm.scores.maps.measure import view_attention

        views = view_attention(
            model,
            batches,
            methods=methods,
            layers=self.layers,
            samples=self.samples,
            asks="answer" if self.asks == "answer" else "last",
        )
        read = decode or (lambda ids: " ".join(map(str, ids)))
        names = " + ".join(type(method).__name__ for method in methods)
        heading = f"{title}, {names}" if names else title
        written, numbers = [], []
        for number, view in enumerate(views):
            texts = (read(view.ids), read(view.answer) if view.answer else "")
            path = folder / f"map_{number:03d}.png"
            write_whole(path, partial(_draw, draw_sample, view, heading, texts))
            written.append(path)
            numbers.append({"image": path.name, **numbers_of(view, texts)})
        about = {"format": FORMAT, "model": title, "methods": [type(method).__name__ for method in methods]}
        write_text(folder / "maps.json", json_text({**about, "samples": numbers}))
        return written


def _draw(draw: Callable[..., None], view: Any, title: str, texts: tuple[str, str], path: Path) -> None:
    draw(view, path, title=title, texts=texts)
