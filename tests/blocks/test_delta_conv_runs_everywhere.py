"""The delta convolution block under compile, recomputation, channels-last memory, ONNX and YAML."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn
from torch.utils.checkpoint import checkpoint

from blocks import DeltaConvBlock, Grid, Site, TokenMixer
from sparsight.testing import relative_l2

SITE = Site("transformer_blocks.0.attn1", channels=16, heads=2, head_dim=8, grid=Grid(8, 8))


class OnGrid(nn.Module):
    """The block with its grid fixed, as a static export sees it."""

    def __init__(self, mixer: DeltaConvBlock, grid: Grid) -> None:
        super().__init__()
        self.mixer, self.size = mixer, grid

    def forward(self, hidden):
        return self.mixer(hidden, self.size)


@pytest.mark.parametrize("preset", ["default", "paper_pixart"])
def test_compiles_to_one_graph(preset):
    mixer, hidden = DeltaConvBlock(SITE, preset=preset), torch.randn(2, 35, 16)
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(hidden, Grid(7, 5)), mixer(hidden, Grid(7, 5)))


def test_recomputation_gives_the_same_gradients():
    mixer = DeltaConvBlock(SITE)
    twin, hidden = copy.deepcopy(mixer), torch.randn(2, 35, 16)
    mixer(hidden, Grid(7, 5)).pow(2).sum().backward()
    checkpoint(twin, hidden, Grid(7, 5), use_reentrant=False).pow(2).sum().backward()
    for one, other in zip(mixer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_images_are_channels_last_without_a_copy():
    mixer, seen = DeltaConvBlock(SITE), []
    mixer.depthwise[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    mixer.entry.register_forward_hook(lambda _, args, out: seen.append(out))
    last = copy.deepcopy(mixer).to(memory_format=torch.channels_last)
    hidden = torch.randn(2, 48, 16)
    output = mixer(hidden, Grid(6, 8))
    entry, image = seen
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert image.data_ptr() == entry.data_ptr()
    assert relative_l2(last(hidden, Grid(6, 8)), output) < 1e-5


@pytest.mark.parametrize(
    "grid", [pytest.param(Grid(8, 4), marks=pytest.mark.slow), Grid(7, 5)], ids=["divisible", "odd"]
)
def test_exports_to_onnx_at_a_static_shape(grid, tmp_path):
    model, hidden = OnGrid(DeltaConvBlock(SITE), grid).eval(), torch.randn(2, grid.tokens, 16)
    file = tmp_path / "mixer.onnx"
    torch.onnx.export(model, (hidden,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: hidden.numpy()})
    np.testing.assert_allclose(output, model(hidden).detach().numpy(), atol=1e-5)


def test_is_chosen_from_yaml_as_a_factory():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--mixer", type=Callable[[Site], TokenMixer])
    text = {
        "class_path": "blocks.DeltaConvBlock",
        "init_args": {
            "preset": "released_sd15",
            "kernel_size": {"transformer_blocks.*": 0.6},
            "scales": [1, 0.5, 0.25],
        },
    }
    mixer = parser.instantiate(parser.parse_object({"mixer": text})).mixer(SITE)
    assert isinstance(mixer, DeltaConvBlock)
    assert (mixer.kernel_size, mixer.gate, len(mixer.depthwise)) == (5, "multiply", 3)
    assert parser.parse_args(["--mixer=blocks.DeltaConvBlock", "--mixer.entry_width=C/2n"]).mixer is not None
