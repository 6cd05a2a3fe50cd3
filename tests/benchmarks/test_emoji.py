"""Finding captions again among sixteen, and the regression that judges them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks import emoji
from benchmarks.emoji import CaptionJudge, Emoji, retrieval


def test_retrieval_is_the_mean_over_all_draws_of_fifteen_others() -> None:
    torch.manual_seed(0)
    fits, own = torch.randn(6, 20), torch.arange(6) * 2
    hits = []
    for row, mine in zip(fits, own.tolist(), strict=True):
        others = torch.tensor([number for number in range(20) if number != mine])
        for _ in range(4000):
            hits.append(bool((row[others[torch.randperm(19)[:15]]] <= row[mine]).all()))
    assert retrieval(fits, own) == pytest.approx(sum(hits) / len(hits), abs=0.02)
    assert retrieval(torch.eye(16)) == 1 and retrieval(-torch.eye(16)) == 0


class Flat(nn.Module):
    """Four by four averages of an image, in place of a network's features."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images_BCHW.float(), 4).flatten(1)


def test_the_judge_tells_images_of_captions_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    embedded = nn.functional.normalize(torch.randn(120, 8), dim=-1)
    images = (embedded @ torch.randn(8, 3 * 16)).reshape(120, 3, 4, 4).sigmoid()
    names = [str(number) for number in range(120)]
    monkeypatch.setattr(emoji, "EfficientNetLite0Features", Flat)
    monkeypatch.setattr(emoji, "caption_embeddings", lambda captions: embedded[[int(name) for name in captions]])
    judge = CaptionJudge(Emoji(images[:80], names[:80]))
    assert retrieval(judge.fit(images[80:], names[80:])) > 0.9
    assert retrieval(judge.fit(images[80:].roll(7, 0), names[80:])) < 0.3
