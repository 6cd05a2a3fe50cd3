"""Names of modules, shortened."""

from __future__ import annotations

from sparsight.common.names import short_paths


def test_paths_lose_the_words_that_all_of_them_have_and_stay_apart() -> None:
    inside = "transformer_blocks.0.attn1"
    paths = [f"down_blocks.0.attentions.1.{inside}", f"mid_block.attentions.0.{inside}"]
    assert list(short_paths(paths).values()) == ["down_blocks.0.1.0", "mid_block.0.0"]
    assert short_paths(["blocks.0.attn1", "blocks.1.attn1"]) == {
        "blocks.0.attn1": "blocks.0",
        "blocks.1.attn1": "blocks.1",
    }
    twice = ["a.x.0.y", "a.0.x.y"]
    assert short_paths(twice) == {path: path for path in twice}
    assert short_paths([]) == {}
