"""Maps of attention over images, against grids gathered by hand from whole attention maps of the eager kernel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from blocks.edits import ImageGuidance
from blocks.tokens import FastV, UniformTokens
from lightning_modules import LVLMEvaluation
from sparsight.common.errors import ConfigurationError
from sparsight.lvlm.scores.maps.image_maps import ImageMaps
from sparsight.lvlm.scores.maps.measure import usual_layers, view_attention
from sparsight.lvlm.scores.maps.pixels import seen_images
from tests.tiny_batches import Batch, batch_of, padded_left, text_only, wide_and_high
from tests.tiny_families import PATCH, SIDE
from tests.tiny_lvlm import save_tiny_lvlm, tiny_lvlm
from tests.tiny_tokens import IMAGE


def whole_maps(model: Any, batch: Batch) -> list[Tensor]:
    """Mean over heads of all attention weights (B, T, T) of every layer."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = model(**batch["inputs"], output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    return [each.mean(1) for each in found]


def asking(batch: Batch, sample: int) -> list[int]:
    """Places that predict the words of the answer, which are the sample's last three tokens."""
    end = int(batch["inputs"]["attention_mask"][sample].nonzero()[-1])
    return [end - 3, end - 2, end - 1]


def test_grids_hold_the_weights_of_their_own_tokens() -> None:
    model = tiny_lvlm("qwen2_5_vl")
    batch = wide_and_high()
    whole = whole_maps(model, batch)
    views = view_attention(model, [batch], layers=[1, 4])
    assert [[panel.shape for panel in view.panels] for view in views] == [[(2, 4)], [(4, 2), (2, 2)]]
    for sample, view in enumerate(views):
        places = (batch["inputs"]["input_ids"][sample] == IMAGE).nonzero()[:, 0]
        assert (len(view.answer), view.asks) == (3, "answer")
        for layer in view.views:
            got = whole[layer.layer][sample, asking(batch, sample)].mean(0)[places]
            assert layer.on_images == pytest.approx(float(got.sum()), abs=1e-5)
            shapes = [panel.shape for panel in view.panels]
            wanted = [
                part.view(shape) for part, shape in zip(got.split([r * c for r, c in shapes]), shapes, strict=True)
            ]
            torch.testing.assert_close(layer.grids, wanted, atol=1e-6, rtol=1e-4)


def test_the_last_token_asks_where_that_is_said_or_nothing_is_answered() -> None:
    model = tiny_lvlm("qwen2_5_vl")
    batch = wide_and_high()
    whole = whole_maps(model, batch)[2]
    (said,) = view_attention(model, [batch], layers=[2], samples=1, asks="last")
    (plain,) = view_attention(model, [{"inputs": batch["inputs"]}], layers=[2], samples=1)
    places = (batch["inputs"]["input_ids"][0] == IMAGE).nonzero()[:, 0]
    assert said.asks == plain.asks == "last"
    for view, row in (said, asking(batch, 0)[0]), (plain, whole.shape[1] - 1):
        torch.testing.assert_close(view.views[0].grids[0].flatten(), whole[0, row, places], atol=1e-6, rtol=1e-4)


def test_pixels_are_those_that_the_model_was_given() -> None:
    model = tiny_lvlm("qwen2_5_vl")
    inputs = wide_and_high()["inputs"]
    image = torch.arange(3 * 16 * 32.0).view(3, 16, 32)  # 4 x 8 patches, 2 x 4 tokens
    squares = image.view(3, 2, 2, PATCH, 4, 2, PATCH)  # row of squares and in it, column of squares and in it
    patches = squares.permute(1, 4, 2, 5, 0, 3, 6)  # those of a square one after the other
    inputs["pixel_values"][:32] = patches.unsqueeze(5).expand(-1, -1, -1, -1, -1, 2, -1, -1).reshape(32, -1)
    (shown, *_) = seen_images(model, inputs)
    torch.testing.assert_close(shown[0], (image / image.max()).movedim(0, -1))


def test_tiles_lie_side_by_side_and_whole_images_alone() -> None:
    model = tiny_lvlm("llava_next")
    batch = padded_left(batch_of("llava_next", model))
    whole = whole_maps(model, batch)
    for sample, view in enumerate(view_attention(model, [batch], layers=[3])):
        first, tiles = view.panels
        assert (first.title, first.shape) == ("image 1, whole", (4, 4))
        assert (tiles.title, tiles.shape) == ("image 1, 2 tiles", (4, 8))
        pixels = batch["inputs"]["pixel_values"][sample]
        pixels = ((pixels - pixels.min()) / (pixels.max() - pixels.min())).movedim(1, -1)
        torch.testing.assert_close(first.pixels, pixels[0])
        torch.testing.assert_close(tiles.pixels, torch.cat([pixels[1], pixels[2]], 1))
        places = (batch["inputs"]["input_ids"][sample] == IMAGE).nonzero()[:, 0]
        got = whole[3][sample, asking(batch, sample)].mean(0)[places]
        marked = got[16:].view(4, 9)[:, :8]  # a mark ends each row
        torch.testing.assert_close(view.views[0].grids, [got[:16].view(4, 4), marked], atol=1e-6, rtol=1e-4)


def test_dropped_tokens_are_blank_from_where_they_are_dropped() -> None:
    model = tiny_lvlm("llava")
    batch = padded_left(batch_of("llava", model))
    methods = [UniformTokens(0.5), FastV(layer=3, ratio=0.25), ImageGuidance()]
    for view in view_attention(model, [batch], methods=methods, layers=[0, 2, 3, 5]):
        blank = {layer.layer: layer.grids[0].isnan() for layer in view.views}
        assert [int((~blank[layer]).sum()) for layer in (0, 2, 3, 5)] == [8, 8, 2, 2]
        assert bool(view.present[0].all())
        assert torch.equal(blank[3], blank[5]) and bool((blank[3] | ~blank[0]).all())
        assert view.views[2].on_images == pytest.approx(float(view.views[2].grids[0].nansum()), abs=1e-6)


def test_layers_with_a_state_are_passed_by_and_refused() -> None:
    model = tiny_lvlm("qwen3_5")
    kinds = model.config.get_text_config().layer_types
    usual = usual_layers(model.config.get_text_config())
    assert usual and all(kinds[layer] == "full_attention" for layer in usual)
    batch = batch_of("qwen3_5", model)
    state = kinds.index("linear_attention")
    with pytest.raises(ConfigurationError, match=f"layer {state}, which is of kind linear_attention"):
        view_attention(model, [batch], layers=[state])
    with pytest.raises(ConfigurationError, match="names layer 6; the decoder has 0 to 5"):
        view_attention(model, [batch], layers=[6])
    with pytest.raises(ConfigurationError, match="the calibration batches have none"):
        view_attention(model, [text_only(batch)])


@pytest.mark.parametrize("options", [{"samples": 0}, {"layers": []}, {"layers": [1, 1]}, {"asks": "image"}])
def test_options_that_make_no_map_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"maps need a sample|allowed are answer, last"):
        ImageMaps(**options)


def test_a_module_draws_under_its_recipe(tmp_path: Path) -> None:
    base = save_tiny_lvlm(tmp_path / "tiny")
    module = LVLMEvaluation(str(base), recipe=[FastV(3)])
    batch = batch_of("llava", module.model)
    written = module.image_maps(ImageMaps([0, 4], samples=1), [batch], tmp_path / "maps")
    assert [path.name for path in written] == ["map_000.png"]
    with Image.open(written[0]) as drawn:
        assert drawn.width < 1000 and drawn.height < 600
        colours = drawn.convert("RGB").getcolors(10**6)
    assert sum(count for count, colour in colours if colour == (209, 209, 209)) > 8 * 500  # eight cells are gone
    told = json.loads((tmp_path / "maps" / "maps.json").read_text())
    (sample,) = told["samples"]
    assert (told["methods"], told["model"], sample["image"]) == (["FastV"], "tiny", "map_000.png")
    cells = [value for row in sample["layers"]["4"]["panels"][0]["grid"] for value in row]
    assert len(cells) == (SIDE // PATCH) ** 2 and sum(value is None for value in cells) == 8
    assert sample["question"] and "<image>" not in sample["question"]
