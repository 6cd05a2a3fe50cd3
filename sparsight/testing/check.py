"""What a token mixer promises, each checked on its own.

Shape legend: B batch, N tokens, C channels, h heads, d channels of a head (C = h * d).
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from blocks.base import CoreMixer, FeatureMixer, Grid, Site, SoftmaxMixer, TokenMixer
from sparsight.testing.inputs import (
    SITE,
    Referenced,
    apply_mixer,
    apply_reference,
    at_exact_limit,
    random_inputs,
    random_teacher,
    relative_l2,
)

GRIDS = (Grid(8, 8), Grid(5, 9), Grid(7, 3), Grid(1, 6), Grid(1, 1))


def check_mixer(
    factory: Callable[[Site], TokenMixer],
    *,
    site: Site = SITE,
    grids: Sequence[Grid] = GRIDS,
    dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.float16),
    magnitude: float = 30.0,
    transposable: bool = False,
    tolerance: float = 1e-4,
) -> None:
    """Check that a mixer keeps every promise of ``blocks.TokenMixer``; takes seconds on a CPU.

    Args:
        factory: Makes a mixer for a site, e.g. the class itself or ``partial(MyMixer, kernel_size=5)``. It must be
            deterministic in all but the values of parameters.
        site: The site to build for; channels must equal heads * head_dim.
        grids: Grids to run on, the first one the largest. Keep odd, non-square and one-token grids among them.
        dtypes: Low precisions in which outputs must be finite.
        magnitude: Largest absolute input for that, in units of the hidden state.
        transposable: Claim that transposing the image of the input transposes the output; checked when claimed.
        tolerance: Largest accepted relative L2 difference between outputs that must be equal.

    Raises:
        AssertionError: With the broken promise, and the grid, dtype or parameter that broke it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mixer = factory(site)
        assert isinstance(mixer, CoreMixer | FeatureMixer), "a mixer subclasses blocks.CoreMixer or blocks.FeatureMixer"
        _check_options(mixer)
        _check_flops(mixer, grids)
        for grid in grids:
            _check_shape_and_batch(mixer, grid, tolerance)
            _check_low_precision(mixer, grid, dtypes, magnitude)
            if transposable:
                _check_transposition(mixer, grid, tolerance)
            _check_exact_limit(mixer, grid, tolerance)
            _check_reference(mixer, grid, tolerance)
            _check_mass(mixer, grid, tolerance)
            _check_padding(mixer, grid)
            _check_backends(mixer, grid, tolerance)
        _check_gradients(mixer, grids[0])
        _check_auxiliary_loss(mixer)
        _check_determinism(mixer, grids[0])
        _check_copies(mixer, factory(site), grids[0])
        _check_teacher_start(mixer, grids[0])


def _check_options(mixer: TokenMixer) -> None:
    """The constructor takes one site and keyword options whose defaults are plain data."""
    first, *options = list(inspect.signature(type(mixer)).parameters.values())
    assert first.name == "site", f"the first constructor argument of a mixer is 'site', found {first.name!r}"
    for option in options:
        assert option.kind is option.KEYWORD_ONLY, f"constructor argument {option.name!r} must be keyword-only"
        if option.default is not option.empty:
            json.dumps(option.default)  # raises TypeError on anything but plain data
    resolved = json.dumps(mixer.options)
    again = type(mixer)(mixer.site, **json.loads(resolved))
    again.load_state_dict(mixer.state_dict())
    assert json.dumps(again.options) == resolved, f"options {resolved} build a mixer with {json.dumps(again.options)}"


def _check_flops(mixer: TokenMixer, grids: Sequence[Grid]) -> None:
    """FLOPs are positive integers that grow with the grid."""
    for grid in grids:
        small, large = mixer.flops(grid), mixer.flops(Grid(2 * grid.height, 2 * grid.width))
        assert type(small) is int and small > 0, f"flops({grid}) is {small!r}, a positive int is needed"
        assert large > small, f"flops do not grow: {small} on {grid}, {large} on twice the sides"


@torch.no_grad()
def _check_shape_and_batch(mixer: TokenMixer, grid: Grid, tolerance: float) -> None:
    """The output looks like the input, and no image sees another one of its batch."""
    inputs = random_inputs(mixer, grid, batch=3)
    together = apply_mixer(mixer, inputs, grid)
    assert together.shape == inputs[-1].shape, f"{grid}: output {tuple(together.shape)}, input {inputs[-1].shape}"
    assert together.dtype == inputs[-1].dtype, f"{grid}: output in {together.dtype}, input in {inputs[-1].dtype}"
    alone = torch.cat([apply_mixer(mixer, [part[i : i + 1] for part in inputs], grid) for i in range(3)])
    error = relative_l2(together, alone)
    assert error <= tolerance, f"{grid}: images of a batch are mixed with each other (relative L2 {error:.2e})"


@torch.no_grad()
def _check_low_precision(mixer: TokenMixer, grid: Grid, dtypes: Sequence[torch.dtype], magnitude: float) -> None:
    """Large inputs give finite outputs of the same dtype."""
    for dtype in dtypes:
        low = copy.deepcopy(mixer).to(dtype)
        for inputs in _large_inputs(mixer, grid, magnitude):
            output = apply_mixer(low, [part.to(dtype) for part in inputs], grid)
            assert output.dtype == dtype, f"{grid}: {dtype} in, {output.dtype} out"
            assert output.isfinite().all(), f"{grid}, {dtype}: not finite for inputs up to {magnitude}"


def _large_inputs(mixer: TokenMixer, grid: Grid, magnitude: float) -> Iterator[list[Tensor]]:
    """Inputs at the limit: random signs, then all equal."""
    inputs = random_inputs(mixer, grid)
    yield [magnitude * part.sign() for part in inputs]
    yield [torch.full_like(part, magnitude) for part in inputs]


@torch.no_grad()
def _check_transposition(mixer: TokenMixer, grid: Grid, tolerance: float) -> None:
    """A transposed image gives a transposed output."""
    inputs = random_inputs(mixer, grid)
    expected = _transpose(apply_mixer(mixer, inputs, grid), grid)
    flipped = Grid(grid.width, grid.height)
    error = relative_l2(apply_mixer(mixer, [_transpose(part, grid) for part in inputs], flipped), expected)
    assert error <= tolerance, f"{grid}: a transposed image gives another output (relative L2 {error:.2e})"


def _transpose(tokens: Tensor, grid: Grid) -> Tensor:
    """Swap rows and columns of the image that the second last axis holds."""
    return tokens.unflatten(-2, (grid.height, grid.width)).transpose(-2, -3).flatten(-3, -2)


@torch.no_grad()
def _check_reference(mixer: TokenMixer, grid: Grid, tolerance: float) -> None:
    """What is computed is what the slow form computes, where the mixer declares one."""
    if not isinstance(mixer, Referenced):
        return
    inputs = random_inputs(mixer, grid)
    error = relative_l2(apply_mixer(mixer, inputs, grid), apply_reference(mixer, inputs, grid))
    assert error <= tolerance, f"{grid}: the mixer and its reference differ (relative L2 {error:.2e})"


def _check_mass(mixer: TokenMixer, grid: Grid, tolerance: float) -> None:
    """What is told of a softmax's mass belongs to its weights: its gradient in a query is scale times the mean key."""
    if not (isinstance(mixer, SoftmaxMixer) and mixer.is_softmax):
        return
    q, k, v = random_inputs(mixer, grid)
    q.requires_grad_()
    scale = mixer.site.head_dim**-0.5
    output, lse = mixer.partial(q, k, v, grid, scale)
    expected = (*output.shape[:-1], 1)
    assert lse.shape == expected, f"{grid}: log-sum-exp of shape {tuple(lse.shape)}, {expected} is needed"
    assert lse.dtype == torch.float32, f"{grid}: log-sum-exp in {lse.dtype}, float32 is needed"
    error = relative_l2(output, mixer.mix(q, k, v, grid, scale))
    assert error <= tolerance, f"{grid}: partial and mix differ (relative L2 {error:.2e})"
    with torch.no_grad():
        twin_lse = mixer.reference(q, k, v, grid, scale)[1]
    assert torch.allclose(lse, twin_lse, atol=10 * tolerance), f"{grid}: the reference has another log-sum-exp"
    if not mixer.has_product_logits:
        return
    (gradient,) = torch.autograd.grad(lse.sum(), q)
    error = relative_l2(gradient, scale * mixer.partial(q, k, k, grid, scale)[0])
    assert error <= tolerance, f"{grid}: the log-sum-exp is not that of the weights (relative L2 {error:.2e})"


def _check_padding(mixer: TokenMixer, grid: Grid) -> None:
    """Where the grid is padded, what is declared is as large, pads to itself, and costs what is counted."""
    padded = mixer.padded(grid)
    assert len(padded.sizes) == len(grid.sizes) and all(map(int.__le__, grid.sizes, padded.sizes)), (
        f"{grid} is padded to {padded}, which is smaller"
    )
    assert mixer.padded(padded) == padded, f"{grid} is padded to {padded}, and that to {mixer.padded(padded)}"
    if padded != grid:
        counted, whole = mixer.flops(grid), mixer.flops(padded)
        assert counted == whole, f"flops({grid}) is {counted}, but it is padded to {padded}: {whole}"


def _check_auxiliary_loss(mixer: TokenMixer) -> None:
    """What training is to add is one finite number, which learns; part by part."""
    moved = copy.deepcopy(mixer)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    apply_mixer(moved, random_inputs(moved, GRIDS[0]), GRIDS[0])
    for part in (part for part in moved.modules() if isinstance(part, TokenMixer)):
        loss, name = part.auxiliary_loss(), type(part).__name__
        if loss is None:
            continue
        assert loss.shape == (), f"auxiliary_loss of {name} has the shape {tuple(loss.shape)}, one number is needed"
        assert loss.isfinite(), f"auxiliary_loss of {name} is {float(loss)}"
        assert loss.requires_grad, f"auxiliary_loss of {name} has no gradient: return None where there is nothing"


@torch.no_grad()
def _check_exact_limit(mixer: TokenMixer, grid: Grid, tolerance: float) -> None:
    """At the declared exact limit the mixer is the teacher's attention."""
    found = at_exact_limit(mixer, grid)
    if found is None:
        return
    exact, inputs, expected = found
    error = relative_l2(apply_mixer(exact, inputs, grid), expected)
    assert error <= tolerance, f"{grid}: not the teacher at its exact limit {exact.options} (relative L2 {error:.2e})"
    if isinstance(exact, SoftmaxMixer):
        scale = mixer.site.head_dim**-0.5
        q, k, v = inputs
        mass = exact.partial(q, k, v, grid, scale)[1]
        error = relative_l2(mass, (q @ k.mT * scale).logsumexp(-1, keepdim=True))
        assert error <= tolerance, f"{grid}: not the teacher's log-sum-exp at its exact limit (relative L2 {error:.2e})"


@torch.no_grad()
def _check_backends(mixer: TokenMixer, grid: Grid, tolerance: float) -> None:
    """What another backend gives equals what torch gives, and where it is missing torch steps in and says why."""
    kind, name = type(mixer), type(mixer).__name__
    assert "torch" in kind.backends, f"{name} declares the backends {', '.join(kind.backends)}, torch is not among them"
    if len(kind.backends) == 1:
        return
    assert "backend" in mixer.options, f"{name} declares several backends and has no option 'backend' that names one"
    inputs, answers = random_inputs(mixer, grid), {}
    for backend in ("torch", *kind.backends):
        twin = kind(mixer.site, **{**mixer.options, "backend": backend})
        twin.load_state_dict(mixer.state_dict())
        reason = twin.missing_backend(backend, grid, inputs[0])
        assert not (reason and backend == "torch"), f"{name} misses the backend torch: {reason}"
        serving = twin.serving_backend(grid, inputs[0])
        assert serving == ("torch" if reason else backend), f"{name} with backend {backend} is computed with {serving}"
        answers[backend] = apply_mixer(twin, inputs, grid)
        error = relative_l2(answers[backend], answers["torch"])
        assert error <= tolerance, f"{grid}: backend {backend} of {name} differs from torch (relative L2 {error:.2e})"


def _check_gradients(mixer: TokenMixer, grid: Grid) -> None:
    """Away from a start that may hold zeros, the loss reaches every input, and with what is added every parameter."""
    moved = copy.deepcopy(mixer)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    inputs = [part.requires_grad_() for part in random_inputs(moved, grid)]
    loss = apply_mixer(moved, inputs, grid).pow(2).sum()
    more = [part.auxiliary_loss() for part in moved.modules() if isinstance(part, TokenMixer)]
    torch.stack([loss, *(each.sum() for each in more if each is not None)]).sum().backward()
    for i, part in enumerate(inputs):
        assert part.grad is not None and part.grad.any(), f"no gradient reaches input {i}"
    for name, parameter in moved.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), f"no gradient reaches parameter {name!r}"
        assert parameter.grad.isfinite().all(), f"the gradient of parameter {name!r} is not finite"


@torch.no_grad()
def _check_determinism(mixer: TokenMixer, grid: Grid) -> None:
    """Two passes in train mode are equal: a recomputed activation must be the first one again."""
    inputs = random_inputs(mixer, grid)
    mixer.train()
    first, second = (apply_mixer(mixer, inputs, grid) for _ in range(2))
    assert torch.equal(first, second), "two passes with equal inputs differ in train mode"


@torch.no_grad()
def _check_copies(mixer: TokenMixer, other: TokenMixer, grid: Grid) -> None:
    """A deep copy and a mixer with the loaded state compute alike, and a copy shares no memory."""
    inputs = random_inputs(mixer, grid)
    expected = apply_mixer(mixer, inputs, grid)
    other.load_state_dict(mixer.state_dict())
    assert torch.equal(apply_mixer(other, inputs, grid), expected), "loading the state dict gives another mixer"
    twin = copy.deepcopy(mixer)
    assert torch.equal(apply_mixer(twin, inputs, grid), expected), "a deep copy computes something else"
    for parameter in twin.parameters():
        parameter.zero_()
    assert torch.equal(apply_mixer(mixer, inputs, grid), expected), "a deep copy shares memory with the original"


@torch.no_grad()
def _check_teacher_start(mixer: TokenMixer, grid: Grid) -> None:
    """A start from a teacher keeps names and shapes and leaves finite parameters."""
    started = copy.deepcopy(mixer)
    weights, samples = random_teacher(mixer.site, grid)
    started.init_from_teacher(weights, [samples])
    assert {n: p.shape for n, p in started.state_dict().items()} == {n: p.shape for n, p in mixer.state_dict().items()}
    for name, tensor in started.state_dict().items():
        assert tensor.isfinite().all(), f"init_from_teacher left {name!r} not finite"
