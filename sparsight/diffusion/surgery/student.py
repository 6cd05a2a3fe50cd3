"""A feature mixer in the place of a self-attention, and the hooks that tell what stands at a site its grid.

Exported models carry this file's text as it is.

Shape legend: B batch, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from blocks.base import FeatureMixer, Grid, under_autocast
from sparsight.diffusion.families.grids import grid_from

# what diffusers hands to every attention of a block: options of adapters of others, a scale that it ignores, and
# positions, which are for queries and keys
OF_OTHERS = frozenset({"ip_adapter_masks", "ip_hidden_states", "scale", "image_rotary_emb", "rotary_emb"})


class OnGrid:
    """Mixed into a module that must know how its tokens are laid out.

    The sides are kept as an empty tensor's shape: as numbers, each size would be a compiled graph of its own.
    """

    _sides: Tensor | None = None

    @property
    def grid(self) -> Grid | None:
        """Written before every forward pass by the hook of the owning stack, ``deliver_grid``."""
        return None if self._sides is None else Grid(*self._sides.shape[1:])

    @grid.setter
    def grid(self, grid: Grid) -> None:
        self._sides = torch.empty(0, *grid.sizes)


class StudentAttention(OnGrid, nn.Module):
    """A feature mixer behind the signature of a diffusers attention.

    A mixer that keeps a precision of its own (fp32 while it is trained) gets the hidden state cast to it; the output is
    of the input's.

    Args:
        mixer: What mixes the tokens.
        rescale_output_factor: The teacher's divisor of its output.
        residual_connection: Whether the teacher adds its input to its output.
    """

    def __init__(
        self, mixer: FeatureMixer, *, rescale_output_factor: float = 1.0, residual_connection: bool = False
    ) -> None:
        super().__init__()
        self.mixer: Any = mixer
        self.rescale_output_factor = rescale_output_factor
        self.residual_connection = residual_connection

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
        **cross_attention_kwargs: Any,
    ) -> Tensor:
        """Map (B, N, C) to (B, N, C).

        Raises:
            ValueError: A mask, an encoder state or what a mixer knows nothing of is given, or the tokens do not fill
                the grid.
        """
        path = self.mixer.site.path
        refuse_others(path, encoder_hidden_states, attention_mask, cross_attention_kwargs)
        grid = checked_grid(self.grid, hidden_states.shape[1], path)
        mixed = self.mixer(entered(hidden_states, self.mixer), grid).to(hidden_states.dtype)
        check_shape(mixed, hidden_states, self.mixer)
        if self.residual_connection:
            mixed = mixed + hidden_states
        return mixed / self.rescale_output_factor if self.rescale_output_factor != 1.0 else mixed


def refuse_others(
    path: str, encoder_hidden_states: Tensor | None, attention_mask: Tensor | None, options: Mapping[str, Any]
) -> None:
    """Raise a ValueError that names what a mixer of image tokens cannot take."""
    unknown = [name for name in options if name not in OF_OTHERS]
    if unknown:
        raise ValueError(f"{path} replaces a self-attention: it knows nothing of {unknown[0]}")
    if encoder_hidden_states is not None or attention_mask is not None:
        raise ValueError(f"{path} replaces a self-attention: it takes no mask and no encoder state")


COMPUTE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What tensors are cast to; others are only stored."""


def entering(x: Tensor, module: nn.Module) -> Tensor:
    """A module's input, cast where the module is kept in a precision of its own, as mixers are while they are trained.

    The input's dtype rules where any weight has it, and where weights are only stored: 8-bit floats, quantised codes.
    """
    first = None
    for parameter in module.parameters():
        if parameter.dtype == x.dtype or parameter.dtype not in COMPUTE:
            return x
        first = first or parameter.dtype
    if any(buffer.dtype in (torch.int8, torch.uint8) for buffer in module.buffers()):
        return x
    return x if first is None else x.to(first)


def entered(hidden_states: Tensor, mixer: FeatureMixer) -> Tensor:
    """The hidden state as a feature mixer takes it: see ``entering``; some cast by themselves under autocast."""
    casts_itself = mixer.autocasts and under_autocast(hidden_states)
    return hidden_states if casts_itself else entering(hidden_states, mixer)


def check_shape(mixed: Tensor, given: Tensor, mixer: Any) -> None:
    """Refuse what a mixer made of its input, or of its queries, if it has another shape.

    Raises:
        ValueError: It has.
    """
    if mixed.shape != given.shape:
        raise ValueError(
            f"{type(mixer).__name__} at {mixer.site.path} gives {tuple(mixed.shape)} for {tuple(given.shape)}: a mixer "
            "keeps the shape"
        )


def checked_grid(grid: Grid | None, tokens: int, path: str) -> Grid:
    """The grid, if the tokens fill it.

    Raises:
        ValueError: No grid was delivered, or its number of tokens is another.
    """
    grid = delivered_grid(grid, path)
    if grid.tokens != tokens:
        raise ValueError(
            f"{path} got {tokens} tokens for a grid of {grid}; was it recomputed after a forward at another size?"
        )
    return grid


def delivered_grid(grid: Grid | None, path: str) -> Grid:
    """The grid, if one was delivered.

    Raises:
        ValueError: None was.
    """
    if grid is None:
        raise ValueError(f"{path} was called outside its denoiser: no grid has reached it")
    return grid


def deliver_grid(stack: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of a transformer stack: tell every site in it how its tokens are laid out.

    It uses the module it is given, so deep copies work.
    """
    grid = grid_from(stack, args, kwargs)
    if grid is None:
        return
    for site in sites_on_grid(stack):
        site.grid = grid


def keep_grid(stack: Any, args: tuple[Any, ...], output: Any) -> None:
    """Forward hook of a transformer stack: blocks that are computed again in a backward pass find the grid they had.

    Between the two passes another one may deliver another grid, and both forms of gradient checkpointing would take it.
    """
    first: Tensor = output if isinstance(output, Tensor) else output[0]
    checkpointing = vars(stack).get("gradient_checkpointing", False)
    if not (checkpointing and first.requires_grad) or torch.compiler.is_compiling():
        return
    standing = [(site, site._sides) for site in sites_on_grid(stack)]

    def deliver(gradient: Tensor) -> None:
        for site, sides in standing:
            site._sides = sides

    first.register_hook(deliver)


class _Found:
    """The sites below a stack, and the way to each, by which it is seen whether they still are there.

    Copies of a stack are without it.
    """

    def __init__(self, stack: nn.Module | None = None) -> None:
        self.sites: list[OnGrid] = []
        self.top: Mapping[str, nn.Module | None] = {}
        self.ways: list[tuple[Mapping[str, nn.Module | None], int, str, nn.Module]] = []
        if stack is None:
            return
        self.top = stack._modules
        known: set[tuple[int, str]] = set()
        for path, module in stack.named_modules(remove_duplicate=False):
            if isinstance(module, OnGrid):
                self.sites.append(module)
                self._note_way(stack, path, known)

    def _note_way(self, stack: nn.Module, path: str, known: set[tuple[int, str]]) -> None:
        parent = stack
        for name in path.split(".") if path else ():
            children = parent._modules
            child = parent.get_submodule(name)
            if (id(children), name) not in known:
                known.add((id(children), name))
                self.ways.append((children, len(children), name, child))
            parent = child

    def holds(self, stack: nn.Module) -> bool:
        """Whether all of that is still below this stack, and nothing beside it that was not."""
        if self.top is not stack._modules:
            return False
        return all(len(there) == count and there.get(name) is child for there, count, name, child in self.ways)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Found:
        return _Found()

    def __reduce__(self) -> Any:
        return _Found, ()


def sites_on_grid(stack: nn.Module) -> list[OnGrid]:
    """Every module below a stack that must know its grid; a walk through all modules only after something changed."""
    if torch.compiler.is_compiling():
        return [module for module in stack.modules() if isinstance(module, OnGrid)]
    found = vars(stack).get("_sites_on_grid")
    if found is None or not found.holds(stack):
        found = vars(stack)["_sites_on_grid"] = _Found(stack)
    return found.sites


def install_grid_hooks(denoiser: nn.Module, stacks: Collection[str]) -> None:
    """Register ``deliver_grid`` and ``keep_grid`` once on every transformer stack; hooks are not in a state dict."""
    for stack in transformer_stacks(denoiser, stacks):
        if deliver_grid not in stack._forward_pre_hooks.values():
            stack.register_forward_pre_hook(deliver_grid, with_kwargs=True)
            stack.register_forward_hook(keep_grid)


def transformer_stacks(denoiser: nn.Module, stacks: Collection[str]) -> list[nn.Module]:
    """The modules that flatten an image into tokens: the denoiser itself, or the transformers inside a UNet.

    Args:
        denoiser: The denoiser.
        stacks: Names of their classes.
    """
    return [m for m in denoiser.modules() if any(base.__name__ in stacks for base in type(m).__mro__)]
