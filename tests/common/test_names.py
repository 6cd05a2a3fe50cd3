"""Names of modules, shortened."""

from __future__ import annotations

from sparsight.common.names import short_names


def test_sites_have_short_names_that_tell_them_apart() -> None:
    unet = ["down_blocks.0.attentions.1", "mid_block.attentions.0", "up_blocks.1.attentions.0"]
    assert short_names([f"{path}.transformer_blocks.0.attn1" for path in unet]) == ["down 0.1.0", "mid 0.0", "up 1.0.0"]
    joint = [f"transformer_blocks.{at}" for at in ("0.attn", "0.attn2", "1.attn")]
    assert short_names(joint) == ["transformer 0 attn", "transformer 0 attn2", "transformer 1 attn"]
    alike = ["stack_a.0.attn", "stack_b.0.attn", "stack_a.other.0.attn"]
    assert short_names(alike) == alike
