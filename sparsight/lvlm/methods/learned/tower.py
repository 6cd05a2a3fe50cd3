"""Methods inside the vision tower of a model that is encoding images.

Shape legend: X rows of the tower, one for each crop of the batch, N patches, C channels, H, W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from blocks.tokens.tower import TowerEdit, TowerSight
from sparsight.common.names import named
from sparsight.common.plain import setting
from sparsight.lvlm.methods.pictures import METHOD, Pictures
from sparsight.lvlm.model.bypass import leaving, replaced_forward, replaced_method
from sparsight.lvlm.model.tower import Parts

SERVED = ("llava", "llava_next", "llava_onevision")  # whose projectors read states of one layer, crop by crop


class Tower:
    """Methods at work in a tower.

    Args:
        methods: In their order.
        model: The model.
        parts: Its parts.
        pictures: What listens to the tower.

    Raises:
        ValueError: The family is not served, or its tower has too few layers.
    """

    def __init__(self, methods: Sequence[TowerEdit], model: Any, parts: Parts, pictures: Pictures) -> None:
        self.methods, self.inner, self.config, self.pictures = list(methods), model.base_model, model.config, pictures
        self.rows: dict[int, tuple[TowerSight, list[Any]]] = {}
        check_tower(methods, model, parts)
        (self.tower,) = parts.vision.values()
        self.layers = layers_of(self.tower)
        self.projector = self.inner.multi_modal_projector

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let the model encode images with the methods."""
        encode = self.inner.get_image_features

        @wraps(encode)
        def changed(*args: Any, **given: Any) -> Any:
            bound = signature(encode).bind(*args, **given).arguments
            self._look({**bound, **bound.get("kwargs", {})})
            try:
                with self._inside():
                    return encode(*args, **given)
            finally:
                self.rows = {}

        with replaced_method(self.inner, METHOD, changed):
            yield

    @contextmanager
    def _inside(self) -> Iterator[None]:
        with ExitStack() as stack:
            for cuts in {method.cuts for method in self.methods}:
                for cut in range(cuts):
                    layer = self.layers[-(-len(self.layers) * (cut + 1) // (cuts + 1)) - 1]
                    work = partial(self._behind, layer.forward, cuts, cut)
                    stack.enter_context(replaced_forward(layer, wraps(layer.forward)(work)))
            hook = self.projector.register_forward_pre_hook(self._leave)
            stack.callback(hook.remove)
            yield

    def _behind(self, forward: Callable[..., Any], cuts: int, cut: int, *args: Any, **options: Any) -> Any:
        output = forward(*args, **options)
        states = leaving(output).clone()
        for row, (sight, seen) in self.rows.items():
            skip = states.shape[1] - sight.grid[0] * sight.grid[1]  # a class token, or none
            for method, own in zip(self.methods, seen, strict=True):
                if method.cuts == cuts:
                    states[row, skip:] = method.between(cut, states[row, skip:].clone(), sight, own)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    def _leave(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states = args[0].clone()
        for row, (sight, seen) in list(self.rows.items()):
            for method, own in zip(self.methods, seen, strict=True):
                states[row] = method.leave(states[row].clone(), sight, own)
        return (states, *args[1:])

    def _look(self, given: dict[str, Any]) -> None:
        """Find the rows of whole images, and let methods look at them."""
        pixels: Tensor = given["pixel_values"]
        patch = self.config.vision_config.patch_size
        wide = pixels if pixels.ndim == 5 else pixels[:, None]
        counts, sizes = self._crops(wide, given), given.get("image_sizes")
        row, found = 0, {}
        for number, count in enumerate(counts):
            whole = wide[number, 0]
            sharp = whole
            if count > 1:
                assert sizes is not None
                sharp = put_together(wide[number, 1:count], self._columns(sizes[number]), sizes[number].tolist())
            grid = (whole.shape[1] // patch, whole.shape[2] // patch)
            sight = TowerSight(whole, sharp, grid, self._encode)
            found[row] = (sight, [method.look(sight) for method in self.methods])
            row += count
        self.rows = found

    def _crops(self, pixels: Tensor, given: dict[str, Any]) -> list[int]:
        """How many crops of each image the tower reads."""
        if given.get("image_sizes") is None or pixels.shape[1] == 1:
            return [1] * len(pixels)
        images = given.get("batch_num_images")
        alone = [True] * len(pixels)
        if images is not None:
            alone = [int(count) == 1 for count in images for _ in range(int(count))]
        count_of = self._named("image_size_to_num_patches")
        points, side = self.config.image_grid_pinpoints, self.config.vision_config.image_size
        sizes = given["image_sizes"]
        return [int(count_of(size, points, side)) if one else 1 for size, one in zip(sizes, alone, strict=True)]

    def _columns(self, size: Tensor) -> int:
        points, side = self.config.image_grid_pinpoints, self.config.vision_config.image_size
        return int(self._named("get_anyres_image_grid_shape")(size, points, side)[1])

    def _named(self, name: str) -> Any:
        return named(f"{type(self.inner).__module__}.{name}")

    def _encode(self, views: Tensor) -> Tensor:
        """What leaves the tower for views, whose attention nobody listens to."""
        rows, self.rows = self.rows, {}
        try:
            with self.pictures.deaf():
                states = self.tower(views, output_hidden_states=True, return_dict=True).hidden_states
        finally:
            self.rows = rows
        found: Tensor = states[self.config.vision_feature_layer]
        return found[:, 1:] if self.config.vision_feature_select_strategy == "default" else found


def check_tower(methods: Sequence[TowerEdit], model: Any, parts: Parts) -> None:
    """See that methods can work in a model's vision tower.

    Raises:
        ValueError: They cannot.
    """
    for method in methods:
        name, kind = type(method).__name__, model.config.model_type
        if kind not in SERVED or len(parts.vision) != 1:
            raise ValueError(f"{name} works in the vision tower, of which {', '.join(SERVED)} are served, not {kind}")
        if not isinstance(setting(model.config, "vision_feature_layer"), int):
            raise ValueError(f"{name} needs a tower of which one layer goes on; here it is several")
        (tower,) = parts.vision.values()
        depth = len(layers_of(tower))
        if depth <= method.cuts - 1 or depth < 1:
            raise ValueError(f"{name} works between {method.cuts + 1} parts of the tower, which has {depth} layers")


def layers_of(tower: nn.Module) -> nn.ModuleList:
    """Its layers: the longest list of modules; none if there is no list."""
    lists = [module for module in tower.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=nn.ModuleList())


def put_together(tiles: Tensor, columns: int, size: Sequence[int]) -> Tensor:
    """Tiles (X, 3, H, W) side by side (3, H', W'), without what pads them to the shape of the whole.

    Args:
        tiles: Row by row.
        columns: How many in a row.
        size: Height and width of the image.
    """
    whole = torch.cat([torch.cat(list(row), 2) for row in tiles.split(columns)], 1)
    high, wide = whole.shape[1:]
    scale = min(high / size[0], wide / size[1])
    inner = [min(math.ceil(side * scale - 1e-6), most) for side, most in zip(size, (high, wide), strict=True)]
    top, left = ((most - side) // 2 for side, most in zip(inner, (high, wide), strict=True))
    return whole[:, top : top + inner[0], left : left + inner[1]]
