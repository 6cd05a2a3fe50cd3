"""Emoji of a font: which ones, their images and names, and fonts that are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from datamodules import EmojiRecords, ImageDataModule
from datamodules.sources.emoji import DEBIAN_FONT
from tests.tiny_font import save_emoji_font

GRIN, APPLE, PRIVATE = "\U0001f600", "\U0001f34e", "\U000fe82c"
COLOURS = {GRIN: (250, 200, 0), APPLE: (200, 0, 0), PRIVATE: (0, 0, 200)}


def test_named_code_points_with_pictures_are_records_in_their_order(tmp_path: Path) -> None:
    records = EmojiRecords(save_emoji_font(tmp_path / "font.ttf", COLOURS, sides=(8, 16, 12)))
    assert [(records[i].id, records[i].caption) for i in range(len(records))] == [
        ("1f34e", "red apple"),
        ("1f600", "grinning face"),
    ]
    assert records.classes is None and records[0].label is None
    assert records[0].image.size == (16, 16) and records.size(0) == (16, 16), "the largest pictures"
    assert records[0].image.getpixel((8, 8)) == (*COLOURS[APPLE], 255)
    assert records[0].image.getpixel((0, 0)) == (0, 0, 0, 0)


def test_pictures_reach_batches_with_captions(tmp_path: Path) -> None:
    records = EmojiRecords(str(save_emoji_font(tmp_path / "font.ttf", COLOURS)))
    data = ImageDataModule(
        train=records, image_size=20, transform={"fit": "pad", "background": 255}, batch_size=2, num_workers=1
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    apple = batch["caption"].index("red apple")
    assert batch["index"][apple] == 0 and batch["image"].shape == (2, 3, 20, 20)
    colour = torch.tensor(COLOURS[APPLE]) / 127.5 - 1
    torch.testing.assert_close(batch["image"][apple, :, 10, 10], colour)
    assert torch.equal(batch["image"][apple, :, 3, 3], torch.ones(3)), "transparent is background"


def test_the_fingerprint_follows_pictures_and_code_points_not_the_path(tmp_path: Path) -> None:
    first = save_emoji_font(tmp_path / "first.ttf", COLOURS)
    same = shutil.copy(first, tmp_path / "same.ttf")
    recoloured = save_emoji_font(tmp_path / "recoloured.ttf", COLOURS | {APPLE: (0, 200, 0)})
    fewer = save_emoji_font(tmp_path / "fewer.ttf", {APPLE: COLOURS[APPLE]})
    fingerprint = EmojiRecords(first).fingerprint()
    assert EmojiRecords(same).fingerprint() == fingerprint
    assert len({fingerprint, *(EmojiRecords(font).fingerprint() for font in (recoloured, fewer))}) == 3


def test_fonts_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ttf does not exist: run `apt-get install fonts-noto-color"):
        EmojiRecords(tmp_path / "nowhere.ttf").open()
    (tmp_path / "text.ttf").write_text("no font at all")
    with pytest.raises(ValueError, match=r"text\.ttf is no TrueType font that can be read"):
        EmojiRecords(tmp_path / "text.ttf").open()
    with pytest.raises(ValueError, match=r"plain\.ttf has no colour bitmaps .* fonts-noto-color-emoji"):
        EmojiRecords(save_emoji_font(tmp_path / "plain.ttf", {})).open()
    whole = save_emoji_font(tmp_path / "whole.ttf", COLOURS).read_bytes()
    for length in range(0, len(whole), 40):
        (tmp_path / "cut.ttf").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.ttf is no TrueType font that can be read"):
            EmojiRecords(tmp_path / "cut.ttf").open()


@pytest.mark.skipif(not Path(DEBIAN_FONT).is_file(), reason="needs the Debian package fonts-noto-color-emoji")
def test_debians_font_has_more_than_a_thousand_captioned_pictures() -> None:
    records = EmojiRecords()
    captions = [records[i].caption for i in range(len(records))]
    assert len(captions) > 1300 and len(set(captions)) == len(captions)
    assert {"face with tears of joy", "dog face", "red apple"} <= set(captions)
    assert {records.size(i) for i in range(len(records))} == {(128, 136)}
    red, green, blue, alpha = records[captions.index("red apple")].image.convert("RGBA").getpixel((68, 80))
    assert red > 150 and green < 90 and blue < 90 and alpha == 255
