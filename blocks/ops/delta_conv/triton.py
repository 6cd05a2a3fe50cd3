"""The delta convolution in three Triton kernels: entry, all stages, exit; nothing but the entry's planes is kept.

One operation of torch forward and one backward, so that whatever compiles or exports sees one node. Weights are brought
to the precision that is computed in all at once. The backward pass cannot be differentiated itself.

Import it where ``optional_package("triton")`` is there. Shape legend: that of ``blocks.ops.delta_conv.triton_forward``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blocks.base import Grid
from blocks.ops.delta_conv import triton_backward, triton_forward, triton_launch, triton_parts, triton_plan
from blocks.ops.delta_conv.form import Form, Layers, stage_size
from blocks.ops.delta_conv.triton_launch import compute, compute_gradients
from blocks.ops.delta_conv.triton_plan import Parts
from blocks.ops.names import op_name

_FILES = [each.__name__ for each in (triton_parts, triton_forward, triton_backward, triton_plan, triton_launch)]
FORWARD = torch.library.custom_op(op_name(__name__, "delta_conv", *_FILES), compute, mutates_args=())
BACKWARD = torch.library.custom_op(
    op_name(__name__, "delta_conv_backward", *_FILES), compute_gradients, mutates_args=()
)


def delta_conv(hidden_BNC: Tensor, layers: Layers, form: Form, grid: Grid, dtype: torch.dtype) -> Tensor:
    """Map the hidden state (B, N, C) to the output (B, N, C) of its dtype, computed in another one.

    The layers are called by nobody: their weights and biases are all that counts of them.
    """
    dense = [each for each in (layers.entry, layers.exit, layers.pool) if each is not None]
    stages = list(layers.depthwise)
    output: Tensor = FORWARD(
        hidden_BNC.contiguous(),
        [layer.weight for layer in dense],
        [layer.bias for layer in dense],
        [layer.weight for layer in stages],
        [layer.bias for layer in stages if layer.bias is not None],
        list(form.scales),
        form.sigmoid,
        form.gate_scale,
        form.concat,
        grid.height,
        grid.width,
        dtype,
    )[0]
    return output


@FORWARD.register_fake
def _fake(
    hidden: Tensor,
    matrices: list[Tensor],
    matrix_biases: list[Tensor],
    depthwise: list[Tensor],
    biases: list[Tensor],
    scales: list[float],
    sigmoid: bool,
    gate_scale: float,
    concat: bool,
    height: int,
    width: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    images, _, channels = hidden.shape
    sizes = [stage_size(Grid(height, width), scale) for scale in scales if scale != 1]
    pixels = height * width + sum(rows * columns for rows, columns in sizes)
    planes = hidden.new_empty(images * len(matrix_biases[0]) * pixels, dtype=dtype)
    mean = hidden.new_empty((images, channels) if len(matrices) > 2 else (0,), dtype=torch.float32)
    return torch.empty_like(hidden), planes, mean


@BACKWARD.register_fake
def _fake_gradients(
    gradient: Tensor,
    hidden: Tensor,
    planes: Tensor,
    mean: Tensor,
    matrices: list[Tensor],
    depthwise: list[Tensor],
    biases: list[Tensor],
    scales: list[float],
    sigmoid: bool,
    gate_scale: float,
    concat: bool,
    height: int,
    width: int,
    of_input: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    channels = hidden.shape[-1]
    flat = planes.new_empty(Parts(matrices, depthwise, 1).total, dtype=torch.float32)
    of_pool = flat.new_empty(channels if len(matrices) > 2 else 0, channels)
    return torch.empty_like(hidden) if of_input else hidden.new_empty(0), flat, of_pool, flat.new_empty(2, channels)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, matrices, matrix_biases, depthwise, biases, *form, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.form, ctx.counts = form, [len(matrices), len(depthwise), len(biases)]
    ctx.bias_dtypes = [bias.dtype for bias in matrix_biases]
    ctx.save_for_backward(hidden, *output[1:], *matrices, *depthwise, *biases)


def _gradients(ctx: Any, gradient: Tensor | None, *others: Any) -> tuple[Any, ...]:
    hidden, planes, mean, *saved = ctx.saved_tensors
    rest = iter(saved)
    matrices, depthwise, biases = ([next(rest) for _ in range(count)] for count in ctx.counts)
    of_matrices, of_matrix_biases = [None] * len(matrices), [None] * len(matrices)
    of_depthwise, of_biases = [None] * len(depthwise), [None] * len(biases)
    of_hidden: Any = None
    if gradient is not None:
        of_input = ctx.needs_input_grad[0]
        of_hidden, flat, of_pool, of_two = BACKWARD(
            gradient.contiguous(), hidden, planes, mean, matrices, depthwise, biases, *ctx.form, of_input
        )
        of_hidden = of_hidden if of_input else None
        kinds = {each.dtype for each in (*matrices, *depthwise, *biases)}
        flat = flat.to(*kinds) if len(kinds) == 1 else flat
        begins = Parts(matrices, depthwise, 1).begins
        of_entry, of_bias, of_taps, of_tap_biases, of_exit = flat.tensor_split(begins[1:])
        kernels = of_taps.view(len(depthwise), *depthwise[0].shape).unbind()
        pieces = [of_entry.view_as(matrices[0]), of_exit.view_as(matrices[1]), of_pool][: len(matrices)]
        of_matrices = [piece.to(like.dtype) for piece, like in zip(pieces, matrices, strict=True)]
        of_matrix_biases = [
            piece.to(kind) for piece, kind in zip([of_bias, *of_two][: len(matrices)], ctx.bias_dtypes, strict=True)
        ]
        of_depthwise = [piece.to(like.dtype) for piece, like in zip(kernels, depthwise, strict=True)]
        tap_biases = of_tap_biases.view(len(depthwise), -1).unbind()
        of_biases = [piece.to(like.dtype) for piece, like in zip(tap_biases, biases)]  # noqa: B905
    return of_hidden, of_matrices, of_matrix_biases, of_depthwise, of_biases, *(None for _ in ctx.form), None


FORWARD.register_autograd(_gradients, setup_context=_keep)
