"""How similar names are: by their spelling, by their images, or by embeddings that the user brings."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from datamodules.sources.records import array_digest, digest

SPELLING = "spelling"
IMAGES = "images"
_ARTICLES = ("a", "an", "the")


def plain(text: str) -> str:
    """A text without what does not make it another answer: capitals, spaces, a leading article, end marks."""
    words = text.casefold().strip().rstrip(".!?").split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in _ARTICLES else words)


class Similarity(ABC):
    """Scores how similar names are; more is more similar."""

    @abstractmethod
    def __call__(self, name: str, others: Sequence[str]) -> Sequence[float]:
        """Similarity of ``name`` to each of ``others``."""

    @abstractmethod
    def check(self, names: Iterable[str]) -> None:
        """See that all names can be scored.

        Raises:
            ValueError: One cannot.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Text that changes when the scores do."""


class SpellingSimilarity(Similarity):
    """Dice coefficient of the pairs of neighbouring letters, word ends included."""

    def __call__(self, name: str, others: Sequence[str]) -> list[float]:
        """Similarities in [0, 1]; 1 is the same spelling."""
        mine = _pairs(name)
        return [2 * len(mine & theirs) / (len(mine) + len(theirs)) for theirs in map(_pairs, others)]

    def check(self, names: Iterable[str]) -> None:
        """All can be scored."""

    def fingerprint(self) -> str:
        """There is one such rule."""
        return SPELLING


class EmbeddingSimilarity(Similarity):
    """Cosine of embeddings from a file.

    The file is a safetensors file with a tensor ``embeddings`` (N, C) and, in its metadata under ``names``, the JSON
    list of the N names in the same order: ``save_file({"embeddings": e}, f, metadata={"names": json.dumps(names)})``.

    Args:
        file: The safetensors file.

    Raises:
        FileNotFoundError: It is missing.
        ValueError: It is not of this form, or a vector is zero or not finite.
    """

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        check_similar(str(file))
        names, vectors_NC = _read(self.file)
        lengths_N1 = np.linalg.norm(vectors_NC, axis=1, keepdims=True)
        if not (np.isfinite(lengths_N1) & (lengths_N1 > 0)).all():
            raise ValueError(f"{file} has an embedding that is zero or not finite")
        self._vectors_NC = vectors_NC / lengths_N1
        self._row = {plain(name): row for row, name in enumerate(names)}

    def __call__(self, name: str, others: Sequence[str]) -> list[float]:
        """Cosines in [-1, 1]."""
        rows = [self._row[plain(other)] for other in others]
        return (self._vectors_NC[rows] @ self._vectors_NC[self._row[plain(name)]]).tolist()

    def check(self, names: Iterable[str]) -> None:
        """See that every name has an embedding.

        Raises:
            ValueError: One has none.
        """
        missing = sorted(name for name in names if plain(name) not in self._row)
        if missing:
            raise ValueError(f"{self.file} has no embedding of {len(missing)} names, such as {missing[0]!r}; add them")

    def fingerprint(self) -> str:
        """Covers names and vectors."""
        return digest([list(self._row), array_digest(self._vectors_NC)])


class ImageSimilarity(Similarity):
    """Closeness of the mean images of two names: the negative root mean square difference of small thumbnails.

    Args:
        names: All that can be scored.
        thumbnails: Gives those of a name, (N, C) each, from a few of its images; none where none can be read.
    """

    def __init__(self, names: Iterable[str], thumbnails: Callable[[str], np.ndarray]) -> None:
        found = {name: thumbnails(name) for name in names}
        self._means = {plain(name): each_NC.mean(0) for name, each_NC in found.items() if len(each_NC)}

    def __call__(self, name: str, others: Sequence[str]) -> list[float]:
        """Similarities up to 0; 0 is the same mean image."""
        rest_NC = np.stack([self._means[plain(other)] for other in others])
        return (-np.sqrt(np.square(rest_NC - self._means[plain(name)]).mean(1))).tolist()

    def check(self, names: Iterable[str]) -> None:
        """See that every name has an image that can be read.

        Raises:
            ValueError: One has none.
        """
        missing = sorted(name for name in names if plain(name) not in self._means)
        if missing:
            raise ValueError(f"similar: images needs one of every name; none of {missing[0]!r} can be read")

    def fingerprint(self) -> str:
        """Covers names and mean images."""
        return digest([(name, array_digest(mean_C)) for name, mean_C in sorted(self._means.items())])


def check_similar(similar: str | None) -> None:
    """See that the file of embeddings is there, if one is named.

    Raises:
        FileNotFoundError: It is not.
    """
    if similar not in (None, SPELLING) and not Path(str(similar)).is_file():
        raise FileNotFoundError(
            f"embeddings {similar} do not exist; set `similar` to a safetensors file or 'spelling'; tasks about images "
            "with names know 'images' too"
        )


def load_similarity(similar: str | None) -> Similarity | None:
    """Similarity by ``"spelling"`` or by a file of embeddings.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no file of embeddings.
    """
    if similar is None:
        return None
    return SpellingSimilarity() if similar == SPELLING else EmbeddingSimilarity(similar)


def _pairs(text: str) -> set[str]:
    marked = f"^{plain(text)}$"
    return {marked[at : at + 2] for at in range(len(marked) - 1)}


def _read(file: Path) -> tuple[list[str], np.ndarray]:
    try:
        with safe_open(file, framework="pt") as tensors:
            names: Any = json.loads((tensors.metadata() or {}).get("names", "null"))
            found = tensors.get_tensor("embeddings") if "embeddings" in tensors.keys() else None  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is no safetensors file with names: {error}") from error
    if found is None or found.dim() != 2:
        raise ValueError(f"{file} has no tensor `embeddings` of two dimensions (names, channels)")
    if not isinstance(names, list) or len(names) != len(found) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"metadata `names` of {file} is not the JSON list of {len(found)} names, one an embedding")
    return names, found.float().numpy()
