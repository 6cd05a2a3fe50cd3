"""Removed layers: what remains is what the layers alone compute, and what transformers loads again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from sparsight.common.errors import ConfigurationError
from sparsight.lvlm.model.bypass import bypassed
from sparsight.lvlm.model.load import load_lvlm
from sparsight.lvlm.model.tower import find_parts
from sparsight.lvlm.scores import AngularDistance
from sparsight.lvlm.surgery.remove import attention_layers, check_removable, remove_layers
from sparsight.lvlm.surgery.retire import LayerPruning, removable_layers
from sparsight.lvlm.surgery.selection import Uniform
from tests.tiny_families import FAMILIES, HYBRIDS, SIDE, SIGLIP, TEXT
from tests.tiny_lvlm import tiny_inputs, tiny_lvlm
from tests.tiny_rows import few
from tests.tiny_tokens import IMAGE

REMOVED = [2, 4]  # behind the layers to which Qwen3-VL adds image features


# a plain decoder, windows of attention, image features added to layers, and layers of two kinds
@pytest.mark.parametrize("family", few(FAMILIES, "llava", "gemma3", "qwen3_vl", "lfm2_vl"))
def test_removed_layers_are_layers_switched_off(family: str, tmp_path: Path) -> None:
    model = tiny_lvlm(family)
    inputs = tiny_inputs(family, model)
    with torch.no_grad():
        whole = model(**inputs).logits
        with bypassed(find_parts(model).layers, REMOVED):
            wanted = model(**inputs, use_cache=False).logits
        assert remove_layers(model, REMOVED) == [0, 1, 3, 5]
        pruned = model(**inputs).logits
        torch.testing.assert_close(pruned, wanted)
        assert (pruned - whole).abs().max() > 1e-3
        cached = model.generate(**inputs, do_sample=False, max_new_tokens=4)
        assert torch.equal(cached, model.generate(**inputs, do_sample=False, max_new_tokens=4, use_cache=False))
        model.save_pretrained(tmp_path)
        again = load_lvlm(str(tmp_path))
        assert again.config.get_text_config().num_hidden_layers == 4
        torch.testing.assert_close(again(**inputs).logits, pruned)
    assert [numbers_in(layer) for layer in find_parts(again).layers] == [{0}, {1}, {2}, {3}]


def numbers_in(layer: Any) -> set[int]:
    """Places in the cache that the parts of a layer write to."""
    return {vars(module)["layer_idx"] for module in layer.modules() if "layer_idx" in vars(module)}


def test_per_layer_lists_follow_their_layers() -> None:
    model = tiny_lvlm("gemma3")
    before = list(model.config.text_config.layer_types)
    assert len(set(before)) == 2
    remove_layers(model, [0, 4])
    assert model.config.text_config.layer_types == [before[i] for i in (1, 2, 3, 5)]


@pytest.mark.parametrize("family", HYBRIDS)
def test_the_last_layers_with_attention_stay(family: str) -> None:
    """Without any, generation fails: such a model's cache counts tokens in layers with attention alone."""
    model = tiny_lvlm(family)
    for removed in ([2, 5], [1, 2, 4, 5]):
        with pytest.raises(ValueError, match=r"cannot lose layers \[2, 5\] together: .* full attention"):
            remove_layers(model, removed)
    before = list(model.config.text_config.layer_types)
    remove_layers(model, [0, 5])
    assert model.config.text_config.layer_types == before[1:5]


@pytest.mark.parametrize(
    ("option", "value", "attending"),
    [
        ("layers_block_type", ["mamba", "mamba", "attention", "mamba", "mamba", "mamba"], [2]),
        ("layers_block_type", ["mamba", "hybrid", "mamba", "mamba", "hybrid", "mamba"], [1, 4]),
        ("full_attn_idxs", [3], [3]),
        ("layer_types", ["sliding_attention", "full_attention"] * 3, []),
    ],
)
def test_layers_with_attention_are_known_by_any_of_the_options(option: str, value: list[Any], attending: Any) -> None:
    model = tiny_lvlm("llava")
    setattr(model.config.text_config, option, value)
    assert attention_layers(model.config.text_config, 6) == attending
    if attending:
        with pytest.raises(ValueError, match="cannot lose layers"):
            check_removable(model, attending, depth=6)


def test_a_schedule_cannot_take_the_last_layer_with_attention() -> None:
    model = tiny_lvlm("lfm2_vl")
    pruning = LayerPruning(AngularDistance(), protect_ends=False)
    options = {"depth": 6, "tuned": [], "tuned_before": []}
    assert removable_layers(model, pruning, **options) == [0, 1, 2, 3, 4]
    assert removable_layers(model, LayerPruning(AngularDistance(), protect_ends=False, protected=[2]), **options) == [
        0,
        1,
        3,
        4,
        5,
    ]


def test_window_counts_follow_their_layers() -> None:
    model = tiny_lvlm("llava_qwen2", max_window_layers=3)
    remove_layers(model, [1, 4])
    assert model.config.text_config.max_window_layers == 2


@pytest.mark.parametrize(
    ("option", "before", "after"),
    [
        ("no_rope_layers", [1, 1, 0, 1, 1, 0], [1, 0, 1, 0]),
        ("swiglu_limits", [None, 1.0, 2.0, 3.0, 4.0, 5.0], [None, 2.0, 3.0, 5.0]),
        ("mlp_only_layers", [0, 1, 2, 3, 4, 5], [0, 1, 2, 3]),
        ("rope_scaling_layers", [0, 1, 5], [0, 3]),
        ("full_attn_idxs", [2, 4, 5], [1, 3]),
        ("kv_source_layers", [0, 1, 2, 3, 4, 5], [0, 1, 2, 3]),
        ("eos_token_id", [7, 2, 3, 4, 5, 6], [7, 2, 3, 4, 5, 6]),
        ("mtp_layer_types", ["full_attention"], ["full_attention"]),
    ],
)
def test_lists_of_every_kind_follow_their_layers(option: str, before: list[object], after: list[object]) -> None:
    model = tiny_lvlm("llava")
    setattr(model.config.text_config, option, before)
    remove_layers(model, [1, 4])
    assert getattr(model.config.text_config, option) == after


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("block_configs", [{}] * 6),
        ("router_layers", [0, 3]),
        ("early_exit_idxs", [2]),
        ("kv_source_layers", [0, 1, 1, 1, 4, 4]),
    ],
)
def test_lists_that_nobody_knows_how_to_shorten_are_refused(option: str, value: list[object]) -> None:
    model = tiny_lvlm("llava")
    setattr(model.config.text_config, option, value)
    with pytest.raises(ValueError, match=f"cannot lose layers.*{option}"):
        remove_layers(model, [2])
    assert len(find_parts(model).layers) == 6


@pytest.mark.parametrize("removed", [[6], [-1], list(range(6))])
def test_layers_that_cannot_go_are_refused(removed: list[int]) -> None:
    with pytest.raises(ValueError, match="0 to 5"):
        remove_layers(tiny_lvlm("llava"), removed)


def test_a_rule_is_no_list_of_layers() -> None:
    with pytest.raises(ConfigurationError, match=r"removed is .*: give numbers of layers, as sparsight\.select_layers"):
        remove_layers(tiny_lvlm("llava"), Uniform(ratio=0.25))  # type: ignore[arg-type]


def test_layers_that_take_image_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"deepstack_visual_indexes.*\[1\].*2 to 5 can"):
        remove_layers(tiny_lvlm("qwen3_vl"), [1, 3])


@pytest.mark.parametrize(
    ("option", "value"),
    [("cross_attention_layers", [1]), ("num_kv_shared_layers", 2), ("hidden_size_per_layer_input", 8)],
)
def test_tied_layers_are_refused_by_the_option_that_ties_them(option: str, value: object) -> None:
    model = tiny_lvlm("llava")
    setattr(model.config.text_config, option, value)
    with pytest.raises(ValueError, match=option):
        remove_layers(model, [2])


@pytest.mark.parametrize(("option", "value"), [("deepstack_layer_map", [[1, 0]]), ("spatial_target_layers", [1, 2])])
def test_layers_that_the_whole_models_configuration_names_are_refused(option: str, value: list[object]) -> None:
    model = granite(**{option: value})
    with pytest.raises(ValueError, match=rf"Granite4Vision.* cannot lose layers: image features.*{option}: \["):
        check_removable(model, [5], depth=6)
    check_removable(granite(), [5], depth=6)


def granite(**options: object) -> Any:
    """Granite 4 Vision, whose configuration as a whole, not that of its text model, names decoder layers."""
    vision = SIGLIP | {"hidden_size": 64}
    former = {"hidden_size": 64, "encoder_hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 32}
    config = AutoConfig.for_model(
        "granite4_vision",
        text_config=TEXT | {"model_type": "granite4_vision_text"},
        vision_config=vision,
        qformer_config=former | {"model_type": "blip_2_qformer", "num_attention_heads": 1},
        downsample_rate="1/2",
        image_grid_pinpoints=[[SIDE, 2 * SIDE]] * TEXT["num_hidden_layers"],  # as many as layers, by chance
        image_token_index=IMAGE,
        **{"deepstack_layer_map": [], "spatial_target_layers": []} | options,
    )
    return AutoModelForImageTextToText.from_config(config)


def test_lists_of_the_whole_models_configuration_are_looked_at_too() -> None:
    model = tiny_lvlm("llava")
    model.config.vision_feature_layer = [-2, -1]  # of the vision tower
    check_removable(model, [2], depth=6)
    for option in ("router_layers", "layer_types"):
        setattr(model.config, option, [0, 3])
        with pytest.raises(ValueError, match=f"cannot lose layers.*{option}"):
            check_removable(model, [2], depth=6)
        delattr(model.config, option)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_lvlm("llava").save_pretrained(tmp_path)
    return tmp_path


def test_a_shorter_file_than_its_config_is_refused(saved: Path) -> None:
    """What a layer list cut without its configuration leaves on disk: transformers loads it with random layers."""
    weights = load_file(saved / "model.safetensors")
    short = {name: value for name, value in weights.items() if "layers.5." not in name or "vision" in name}
    assert len(short) < len(weights)
    save_file(short, saved / "model.safetensors", {"format": "pt"})
    AutoModelForImageTextToText.from_pretrained(saved)  # no error: this is the trap
    with pytest.raises(ValueError, match=r"missing keys.*layers\.5"):
        load_lvlm(str(saved))


def test_a_longer_file_than_its_config_is_refused(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 5
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"unexpected keys.*layers\.5"):
        load_lvlm(str(saved))


def test_a_missing_folder_is_told_from_a_hub_id() -> None:
    with pytest.raises(FileNotFoundError, match=r"runs/nothing"):
        load_lvlm("runs/nothing")
