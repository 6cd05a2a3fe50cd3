"""What mixers add to the loss themselves: in both stages, weighted as their sites are, and logged."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from blocks import HeadSplit, Merge, NeighborhoodAttention, PooledAttention, SoftmaxAttention, TileAttention
from lightning_modules import AttentionDistillation
from sparsight.diffusion.model.sampling import Sampling
from sparsight.diffusion.surgery.plan import PlanEntry
from sparsight.diffusion.train.stages import Stage
from tests import tiny
from tests.tiny_distillation import trainer

PARTS = [partial(TileAttention, tile=2), partial(PooledAttention, tile=2, without_own=True)]
HELD = partial(Merge, parts=PARTS, balance_penalty=3.0)
STAGES = [Stage("layerwise", 2, warmup_steps=1), Stage("end_to_end", 2, warmup_steps=1)]
BLOCKS = [f"transformer_blocks.{number}.attn1" for number in range(3)]


def module_of(folder: Path, mixer: Any, **options: Any) -> AttentionDistillation:
    teacher = folder / "teacher"
    if not teacher.exists():
        tiny.save_pixel_pipeline(teacher, num_layers=3)
    plan = [
        PlanEntry(BLOCKS[0], mixer),
        PlanEntry(BLOCKS[1], partial(HeadSplit, parts=[mixer, SoftmaxAttention])),
        PlanEntry("*", partial(NeighborhoodAttention, kernel_size=3)),
    ]
    torch.manual_seed(0)
    return AttentionDistillation(
        str(teacher), stages=STAGES, plan=plan, trained={"init_samples": 0}, sampling=Sampling(2), **options
    )


def balances(module: AttentionDistillation) -> list[torch.Tensor]:
    return [p for name, p in module.named_parameters() if name.endswith("balance")]


def terms_of(module: AttentionDistillation, objective: str) -> dict[str, torch.Tensor]:
    batch = {"image": torch.randn(2, 1, 8, 8), "label": torch.arange(2), "index": torch.arange(2)}
    noised = module.noised(batch, step=0, condition_dropout=0.0)
    if objective == "layerwise":
        return module.distiller.layerwise(noised)
    return module.distiller.end_to_end(noised, STAGES[1].terms)


@pytest.mark.parametrize("objective", ["layerwise", "end_to_end"])
def test_it_is_the_weighted_mean_over_sites_in_both_stages(objective: str, tmp_path: Path) -> None:
    module = module_of(tmp_path, HELD, site_weights={BLOCKS[1]: 0.5, BLOCKS[2]: 2.5})
    first, second = balances(module)
    with torch.no_grad():
        first.fill_(0.5), second.fill_(2.0)
    term = terms_of(module, objective)["auxiliary"]
    torch.testing.assert_close(term, torch.tensor((1.0 * 3 * 0.25 + 0.5 * 3 * 4.0) / 4.0))
    (gradient,) = torch.autograd.grad(term, second, retain_graph=True)
    torch.testing.assert_close(gradient, torch.full_like(second, 0.5 / 4 * 3 * 2 * 2.0 / second.numel()))
    plain = module_of(tmp_path, partial(Merge, parts=PARTS))
    assert "auxiliary" not in terms_of(plain, objective)


def test_it_is_logged_and_holds_what_it_is_about(tmp_path: Path) -> None:
    moved = []
    for penalty in (0.0, 1e4):
        module = module_of(tmp_path, partial(Merge, parts=PARTS, balance_penalty=penalty))
        with torch.no_grad():
            for balance in balances(module):
                balance.fill_(0.1)
        fit = trainer(tmp_path, limit_val_batches=0, enable_checkpointing=False)
        fit.fit(module, tiny.image_data(tmp_path))
        assert ("train/auxiliary" in fit.logged_metrics) == (penalty > 0)
        moved.append(float(balances(module)[0].detach().mean()))
    assert moved[1] < moved[0] < 0.11


def test_a_checkpoint_without_an_option_of_later_has_its_default(tmp_path: Path) -> None:
    module, saved = module_of(tmp_path, partial(Merge, parts=PARTS)), {}
    module.on_save_checkpoint(saved)
    sites = saved["sparsight"]["record"]["sites"]
    for options in (sites[BLOCKS[0]]["options"], sites[BLOCKS[1]]["options"]["parts"][0]["init_args"]):
        assert options.pop("balance_penalty") == 0.0
    module.on_load_checkpoint(saved)
    with pytest.raises(
        ValueError, match=rf"other mixers .*: {BLOCKS[0]} has Merge\(.* in the checkpoint, Merge\(.*3\.0"
    ):
        module_of(tmp_path, HELD).on_load_checkpoint(saved)
