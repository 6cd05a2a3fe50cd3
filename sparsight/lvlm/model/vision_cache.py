"""Outputs of a frozen vision tower, kept in main memory by the images' content."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsight.common.plain import setting
from sparsight.lvlm.model.bypass import replaced_forward
from sparsight.lvlm.model.tower import Parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GIB = 2**30
Row = dict[str, Any]  # by field of the tower's output: the tensor of one image, or a tuple of tensors and gaps


class VisionCache:
    """Lets a vision tower compute each image once.

    Of its hidden states only those are kept that the model's ``vision_feature_layer`` names.

    Args:
        model: Its vision tower returns one row for each image.
        parts: Its parts.
        gib: Main memory in GiB; images beyond that are computed every time.

    Attributes:
        hits: Images that were not computed so far.

    Raises:
        ValueError: The model has several vision towers.
    """

    def __init__(self, model: PreTrainedModel, parts: Parts, *, gib: float) -> None:
        if len(parts.vision) != 1:
            raise ValueError(f"compute.vision_cache_gib needs one vision tower, but there are {list(parts.vision)}")
        (self.tower,) = parts.vision.values()
        layers = setting(model.config, "vision_feature_layer")
        self.layers = [layers] if isinstance(layers, int) else layers
        self.room = int(gib * GIB)
        self.hits = 0
        self.kept: dict[str, Row] = {}
        self._kind: Any = None

    @contextmanager
    def serving(self, keys: Sequence[Sequence[str]], *, tower: nn.Module | None = None) -> Iterator[None]:
        """The tower returns what is kept here while a batch passes.

        Args:
            keys: Hash of every image's content, for each sample.
            tower: Another model's tower that is run in its place, and must give what the own one gives.

        Raises:
            ValueError: Inside, if the tower is not called with one row for each of these images.
        """
        flat = [key for sample in keys for key in sample]
        tower = self.tower if tower is None else tower
        compute = tower.forward

        def kept(*args: Any, **kwargs: Any) -> Any:
            if not flat:  # a spare image, for which processes wait
                return compute(*args, **kwargs)
            pixels: Tensor = args[0] if args else kwargs.pop("pixel_values")
            if len(pixels) != len(flat):
                raise ValueError(
                    f"compute.vision_cache_gib: {type(tower).__name__} was called with {len(pixels)} rows for "
                    f"{len(flat)} images; models that cut images up or lay patches end to end cannot be cached: set it "
                    "to 0"
                )
            missing = [row for row, key in enumerate(flat) if key not in self.kept]
            self.hits += len(flat) - len(missing)
            fresh = {}
            if missing:
                output = compute(pixels[missing], *args[1:], **kwargs)
                fresh = {flat[row]: self._row(output, place) for place, row in enumerate(missing)}
                self._keep(fresh)
            return self._joined([fresh[key] if key in fresh else self.kept[key] for key in flat], pixels.device)

        with replaced_forward(tower, kept):
            yield

    def _row(self, output: Any, place: int) -> Row:
        self._kind = type(output)
        row: Row = {name: value[place].detach().cpu() for name, value in output.items() if isinstance(value, Tensor)}
        if self.layers is not None and output.get("hidden_states") is not None:
            states = output["hidden_states"]
            wanted = {layer % len(states) for layer in self.layers}
            row["hidden_states"] = tuple(h[place].detach().cpu() if i in wanted else None for i, h in enumerate(states))
        return row

    def _keep(self, fresh: dict[str, Row]) -> None:
        for key, row in fresh.items():
            tensors = [t for value in row.values() for t in (value if isinstance(value, tuple) else (value,))]
            size = sum(t.nbytes for t in tensors if t is not None)
            if size <= self.room:
                self.kept[key] = {name: _own(value) for name, value in row.items()}
                self.room -= size

    def _joined(self, rows: Sequence[Row], device: torch.device) -> Any:
        return self._kind(**{name: _stacked([row[name] for row in rows], device) for name in rows[0]})


def _own(value: Any) -> Any:
    """A value copied out of the memory of the batch that it is a part of."""
    if isinstance(value, tuple):
        return tuple(_own(part) for part in value)
    return None if value is None else value.clone()


def _stacked(values: Sequence[Any], device: torch.device) -> Any:
    if values[0] is None:
        return None
    if isinstance(values[0], tuple):
        return tuple(_stacked(column, device) for column in zip(*values, strict=True))
    return torch.stack(list(values)).to(device, non_blocking=True)
