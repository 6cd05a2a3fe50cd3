"""The methods study: sheets whose answers are on them, arms of the share that they say, rows and their tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks import methods_arms, methods_data, methods_start
from benchmarks.methods_arms import PLAIN, RANDOM, SHARES, arms
from benchmarks.methods_data import CHANCE, CORNERS, EMOJI, NAMES, SIDE, SIZE, TASKS, Sheets
from benchmarks.methods_report import above, plot, tables
from benchmarks.methods_study import image_tokens
from benchmarks.region_rows import Rows
from sparsight.lvlm.methods.recipe import Recipe
from sparsight.lvlm.model.lora import LoRA, add_lora, is_adapter
from sparsight.lvlm.model.tower import find_parts
from tests.tiny_files import write_idx
from tests.tiny_lvlm import tiny_inputs, tiny_lvlm

SHADES = {name: 20 + 10 * number for number, name in enumerate(NAMES)}


class Shades:
    """Things of one shade each, in place of images of clothes and of emoji."""

    def __init__(self, sheets: Sheets) -> None:
        sheets._open = lambda: None  # type: ignore[method-assign]
        sheets._image_of = self.image  # type: ignore[method-assign,assignment]

    def image(self, name: str, rng: np.random.Generator) -> Image.Image:
        return Image.new("RGB", (8, 8), (SHADES[name],) * 3)


def seen(image: Image.Image, place: str) -> str | None:
    x, y = CORNERS[place]
    middle = tuple(4 + SIDE // 2 + (SIZE - SIDE - 8) * way for way in (x, y))
    shade = image.getpixel(middle)[0]  # type: ignore[index]
    return next((name for name, own in SHADES.items() if own == shade), None)


def test_what_an_item_asks_for_is_where_it_says() -> None:
    sheets = Sheets(20, seed=3)
    Shades(sheets)
    for index in range(20):
        record = sheets[index]
        talk, image = record.conversation, record.needed_image
        assert talk is not None and talk.task == TASKS[index % 5] and image.size == (SIZE, SIZE)
        question, answer = talk.turns[0].text, talk.turns[1].text
        there = {place: name for place in CORNERS if (name := seen(image, place))}
        assert len(talk.candidates) == round(1 / CHANCE[talk.task])
        if talk.task in ("place", "where"):
            assert there[answer] in question
        elif talk.task == "what":
            (place,) = [place for place in CORNERS if place in question]
            assert there[place] == answer and set(there.values()) == set(talk.candidates)
        else:
            assert list(there.values()) == [answer]


def test_lessons_ask_of_several_things_and_are_no_items() -> None:
    lessons, kinds = Sheets(30, train=True), set()
    Shades(lessons)
    for index in range(30):
        talk = lessons[index].conversation
        assert talk is not None and not talk.candidates
        answers = [turn.text for turn in talk.turns if turn.role == "assistant"]
        kinds.add(len(answers))
        assert len(answers) in (2, 4) and set(answers) <= {*NAMES, *CORNERS}
        if len(answers) == 4:  # each corner is asked about once
            asked = [place for turn in talk.turns for place in CORNERS if place in turn.text]
            assert sorted(asked) == sorted(CORNERS)
    assert kinds == {2, 4}


def test_training_and_items_have_clothes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, value in (("train", 100), ("t10k", 200)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", np.full((20, 4, 4), value, np.uint8))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", np.arange(20, dtype=np.uint8) % 10)
    monkeypatch.setattr(methods_data, "FILES", f"{tmp_path}/")
    for train, value in ((True, 100), (False, 200)):
        sheets = Sheets(1, train=train)
        sheets._emoji.open = lambda: None  # type: ignore[method-assign]
        sheets._emoji._codes = [0x1F600 + number for number in range(len(EMOJI))]
        sheets._emoji.caption_of = lambda index: EMOJI[index]  # type: ignore[method-assign]
        sheets._emoji._opened = True
        sheets._open()
        assert np.asarray(sheets._image_of("coat", np.random.default_rng(0))).max() == value


@pytest.mark.parametrize("share", SHARES)
def test_arms_compute_the_share_of_tokens_that_they_say(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods_arms, "SIDE", 4)  # rows and columns of the tiny model
    model = tiny_lvlm("llava", num_hidden_layers=methods_arms.DEPTH).eval()
    inputs = {name: value[:1] for name, value in tiny_inputs("llava", model).items() if name != "labels"}
    parts, own = find_parts(model), {"GemFilter": 12 / 30}  # layers of its first pass, which sees everything
    for name in methods_arms.DROPPING:
        if name in ("TextRouter", "FitPrune"):  # the one keeps a share of weight, the other knows calibrations
            continue
        recipe = Recipe([methods_arms.DROPPING[name](share, {})])

        @torch.no_grad()
        def read(recipe: Recipe = recipe) -> None:
            with recipe.on(model):
                model(**inputs)

        found = image_tokens(parts, read, inputs) / 16
        assert found == pytest.approx(share + own.get(name, 0.0), abs=0.09), name


def test_kept_adapters_are_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a checkpoint holds is what the weights get, up to bfloat16."""
    monkeypatch.setattr(methods_start, "REGION_LAYERS", 2)
    monkeypatch.setattr(methods_start, "ADAPTERS", LoRA(rank=2, alpha=4, dropout=0.0))
    model, plain, wanted = (tiny_lvlm("llava").eval() for _ in range(3))
    parts = find_parts(model)
    add_lora(model, parts, range(4, 6), methods_start.ADAPTERS)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if is_adapter(name):
                value.copy_(torch.randn_like(value).bfloat16())
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    methods_start.keep_adapters(tmp_path / "last.ckpt", tmp_path / "adapters.safetensors")
    assert all(value.dtype == torch.bfloat16 for value in load_file(tmp_path / "adapters.safetensors").values())
    methods_start.put_adapters(plain, tmp_path / "adapters.safetensors")
    inputs = tiny_inputs("llava", model)
    with torch.no_grad():
        torch.testing.assert_close(plain(**inputs).logits, model(**inputs).logits, rtol=1e-3, atol=2e-4)
        assert float((wanted(**inputs).logits - model(**inputs).logits).abs().max()) > 5e-3
    save_file({"lora_A": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(SystemExit, match="holds adapters of another model"):
        methods_start.put_adapters(tiny_lvlm("llava"), tmp_path / "other.safetensors")


def test_tables_compare_with_the_untouched_model_and_with_random(tmp_path: Path) -> None:
    rows, right = Rows(tmp_path), dict.fromkeys(CHANCE, "1" * 32)
    rows.add("judge", PLAIN, arm=PLAIN, share=None, weights="a", right=right)
    rows.add("judge", f"{RANDOM} 25%", arm=RANDOM, share=0.25, weights="a", right=dict.fromkeys(CHANCE, "10" * 16))
    rows.add("judge", "FastV 25%", arm="FastV", share=0.25, weights="a", right=right)
    cost = {"seconds_plain": 2.0, "seconds_arm": 1.0, "flops_plain": 4, "flops_arm": 1, "image_tokens": 64.0}
    rows.add("time", "FastV 25%", arm="FastV", weights="a", peak_bytes_plain=2, peak_bytes_arm=1, **cost)
    shown = "\n".join(tables(rows))
    fast = next(line for line in shown.splitlines() if "FastV" in line)
    assert "100.0%" in fast and "+0.0 to +0.0" in fast and "| 0.50 | 0.25 | 0.50 | 64 |" in fast
    low, high = (float(part) for part in fast.split("|")[6].split("to"))
    assert 30 < low < 50 < high < 70
    assert above({"right": {"where": "1" + "0" * 3}}) == 0
    plot(rows.read("judge"), rows.read("time"), tmp_path / "kept.png")
    assert Image.open(tmp_path / "kept.png").width > 600
    rows.add("judge", "VAR", arm="VAR", share=None, weights="b", right=right)
    with pytest.raises(SystemExit, match="models with other weights"):
        tables(rows)
    with pytest.raises(SystemExit, match="holds no row of the untouched model"):
        tables(Rows(tmp_path / "none"))


def test_the_issue_s_arms_are_there_and_random_stands_beside_each_share() -> None:
    found = arms()
    keys = [arm.key for arm in found]
    assert keys[0] == PLAIN and len(set(keys)) == len(keys) == 1 + 3 * 11 + 6 + 3
    assert {f"{RANDOM} {share:.0%}" for share in SHARES} <= set(keys)
