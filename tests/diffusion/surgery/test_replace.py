"""Replacing self-attention in every supported denoiser."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.checkpoint import CheckpointError

from blocks import CoreMixer, DeltaConvBlock, FeatureMixer, Grid, NeighborhoodAttention, SoftmaxAttention
from sparsight.diffusion.families.known import example_inputs
from sparsight.diffusion.surgery import sites as finding
from sparsight.diffusion.surgery.replace import finalize, replace, restore, set_mode, shells_of
from sparsight.diffusion.surgery.shell import Mode
from sparsight.diffusion.surgery.sites import SiteSelection, find_sites
from tests import tiny
from tests.tiny import run

SITES = {"dit": 2, "unet": 4, "sdxl": 8, "pixart": 2}
SIZES = {"dit": (8, 8), "unet": (10, 14), "sdxl": (12, 8), "pixart": (8, 12)}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_self_attention_is_found_with_its_grid(family: str) -> None:
    denoiser = tiny.FAMILIES[family]().eval()
    sites = find_sites(denoiser)
    assert len(sites) == SITES[family]
    for site in sites:
        attention = denoiser.get_submodule(site.path)
        assert not attention.is_cross_attention
        assert (site.heads, site.channels) == (attention.heads, attention.to_q.in_features)
        assert site.head_dim * site.heads == attention.to_q.out_features
    top = max(site.grid.tokens for site in sites)
    assert top == {"dit": 16, "unet": 256, "sdxl": 64, "pixart": 16}[family]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_softmax_students_answer_like_the_teacher_at_other_sizes(family: str) -> None:
    denoiser = tiny.FAMILIES[family]().eval()
    expected = run(denoiser, SIZES[family])
    shells = replace(denoiser, SoftmaxAttention)
    assert torch.equal(run(denoiser, SIZES[family]), expected), "teacher mode must change nothing"
    set_mode(shells.values(), Mode.STUDENT)
    torch.testing.assert_close(run(denoiser, SIZES[family]), expected, rtol=1e-4, atol=1e-5)
    finalize(denoiser)
    assert not shells_of(denoiser)
    torch.testing.assert_close(run(denoiser, SIZES[family]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_student_refuses_by_name_what_no_mixer_takes_and_passes_what_is_for_others(family: str) -> None:
    denoiser = tiny.FAMILIES[family]().eval()
    shells = replace(denoiser, SoftmaxAttention)
    inputs = example_inputs(denoiser, size=SIZES[family])
    with torch.no_grad():
        expected = denoiser(**inputs).sample
        for mode in (Mode.STUDENT, None):
            if mode is None:
                finalize(denoiser)
            else:
                set_mode(shells.values(), mode)
            others = {"scale": 1.0, "ip_adapter_masks": None}
            answer = denoiser(**inputs, cross_attention_kwargs=others).sample
            torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)
            with pytest.raises(ValueError, match=r"replaces a self-attention: it knows nothing of sharpness"):
                denoiser(**inputs, cross_attention_kwargs={"sharpness": 2.0})


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_restore_gives_the_denoiser_back_bit_for_bit(family: str) -> None:
    denoiser = tiny.FAMILIES[family]().eval()
    before, keys = run(denoiser, SIZES[family]), list(denoiser.state_dict())
    shells = replace(denoiser, DeltaConvBlock)
    set_mode(shells.values(), Mode.STUDENT)
    assert not torch.allclose(run(denoiser, SIZES[family]), before)
    restore(denoiser)
    assert list(denoiser.state_dict()) == keys
    assert torch.equal(run(denoiser, SIZES[family]), before)
    replace(denoiser, DeltaConvBlock)


def test_layerwise_error_is_zero_for_an_exact_student_and_trains_the_mixer_alone() -> None:
    denoiser = tiny.unet().eval()
    shells = replace(denoiser, SoftmaxAttention)
    set_mode(shells.values(), Mode.LAYERWISE)
    with torch.no_grad():
        run(denoiser, (16, 16))
    assert all(float(shell.take_squares()[0]) < 1e-10 for shell in shells.values())
    restore(denoiser)
    shells = replace(denoiser, DeltaConvBlock)
    set_mode(shells.values(), Mode.LAYERWISE)
    with torch.no_grad():
        run(denoiser, (16, 16))
    sum(shell.take_squares()[0] for shell in shells.values()).backward()
    for name, parameter in denoiser.named_parameters():
        trained = ".student.mixer." in name
        assert parameter.requires_grad == trained
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == trained, name


def test_deep_copies_have_grids_of_their_own() -> None:
    denoiser = tiny.unet().eval()
    shells = replace(denoiser, NeighborhoodAttention)
    set_mode(shells.values(), Mode.STUDENT)
    twin = copy.deepcopy(denoiser)
    expected = run(denoiser, (8, 12))
    other = run(twin, (12, 8))
    assert other.shape[-2:] == (12, 8)
    grids = {path: shell.grid for path, shell in shells_of(denoiser).items()}
    assert all(twin_shell.grid != grids[path] for path, twin_shell in shells_of(twin).items())
    assert torch.equal(run(denoiser, (8, 12)), expected)


def test_gradients_are_the_same_with_checkpointing() -> None:
    gradients = []
    for checkpointing in (False, True):
        denoiser = tiny.pixart().eval()
        torch.manual_seed(0)
        shells = replace(denoiser, DeltaConvBlock)
        set_mode(shells.values(), Mode.STUDENT)
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
        run(denoiser, (8, 12)).square().mean().backward()
        gradients.append([p.grad for p in denoiser.parameters() if p.requires_grad])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_recomputing_in_another_mode_is_caught() -> None:
    denoiser = tiny.pixart().eval()
    shells = replace(denoiser, NeighborhoodAttention, train_projections=True)
    set_mode(shells.values(), Mode.STUDENT)
    denoiser.enable_gradient_checkpointing()
    loss = run(denoiser, (8, 12)).square().mean()
    set_mode(shells.values(), Mode.TEACHER)
    with pytest.raises(CheckpointError):
        loss.backward()


def test_owned_projections_train_and_the_teacher_stays() -> None:
    denoiser = tiny.dit().eval()
    shells = replace(denoiser, SoftmaxAttention, train_projections=True)
    set_mode(shells.values(), Mode.STUDENT)
    run(denoiser, (8, 8)).square().mean().backward()
    for shell in shells.values():
        assert all(p.grad is None for p in shell.as_teacher().parameters())
        assert len([p for p in shell.as_student().parameters() if p.grad is not None]) == 8


def test_sites_are_chosen_by_pattern_list_resolution_and_predicate() -> None:
    sites = find_sites(tiny.sdxl_unet())
    paths = [site.path for site in sites]
    assert [s.path for s in SiteSelection(include=["mid_block*"]).choose(sites)] == [
        path for path in paths if path.startswith("mid_block")
    ]
    assert [s.path for s in SiteSelection(include=paths[1:3]).choose(sites)] == paths[1:3]
    assert len(SiteSelection(exclude=["up_blocks*"]).choose(sites)) == 4
    assert all(s.path.startswith("up") is False for s in SiteSelection(exclude=["up_blocks*"]).choose(sites))
    assert SiteSelection(predicate=lambda s: s.path.endswith(".0.attn1")).choose(sites)
    with pytest.raises(ValueError, match="nowhere"):
        SiteSelection(include=["nowhere*"]).choose(sites)
    with pytest.raises(ValueError, match="leaves no self-attention"):
        SiteSelection(min_tokens=10**6).choose(sites)


def test_only_cross_attention_is_left_alone_and_double_self_attention_found() -> None:
    only_cross = tiny.unet(only_cross_attention=(True, False))
    paths = [site.path for site in find_sites(only_cross)]
    assert paths and not any(path.startswith("down_blocks.0") and path.endswith("attn1") for path in paths)


def test_attention_with_extras_is_refused_by_name() -> None:
    denoiser = tiny.dit()
    denoiser.transformer_blocks[1].attn1.group_norm = torch.nn.GroupNorm(2, 16)
    with pytest.raises(ValueError, match=r"transformer_blocks\.1\.attn1.*group_norm"):
        replace(denoiser, DeltaConvBlock)
    assert not shells_of(denoiser), "a refused denoiser must be left as it was"


def test_replacing_twice_and_foreign_models_are_refused() -> None:
    denoiser = tiny.dit()
    replace(denoiser, SoftmaxAttention)
    with pytest.raises(ValueError, match="restore"):
        replace(denoiser, SoftmaxAttention)
    with pytest.raises(ValueError, match="Linear is not supported"):
        replace(torch.nn.Linear(2, 2), SoftmaxAttention)


@pytest.mark.slow
def test_blocks_compile_one_by_one() -> None:
    denoiser = tiny.pixart().eval()
    shells = replace(denoiser, DeltaConvBlock)
    set_mode(shells.values(), Mode.STUDENT)
    expected = run(denoiser, (8, 12))
    for block in denoiser.transformer_blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(run(denoiser, (8, 12)), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run(denoiser, (12, 8)).shape, torch.Size((2, 8, 12, 8)))


def test_frozen_half_precision_denoiser_with_full_precision_mixers() -> None:
    denoiser = tiny.pixart().eval().to(torch.bfloat16)
    shells = replace(denoiser, DeltaConvBlock)
    set_mode(shells.values(), Mode.STUDENT)
    inputs = example_inputs(denoiser, batch=2, dtype=torch.bfloat16)
    denoiser(**inputs, return_dict=False)[0].float().square().mean().backward()
    for shell in shells.values():
        for parameter in shell.student.parameters():
            assert parameter.dtype == torch.float32 and parameter.grad.dtype == torch.float32
            assert parameter.grad.abs().sum() > 0


def test_user_mixers_of_both_kinds_fit() -> None:
    class Doubling(FeatureMixer):
        def flops(self, grid: Grid) -> int:
            return 0

        def forward(self, hidden_BNC: torch.Tensor, grid: Grid) -> torch.Tensor:
            return 2 * hidden_BNC

    class Values(CoreMixer):
        def flops(self, grid: Grid) -> int:
            return 0

        def mix(self, q, k, v, grid, scale):  # type: ignore[no-untyped-def]
            return v

    for mixer in (Doubling, Values):
        denoiser = tiny.unet().eval()
        set_mode(replace(denoiser, mixer).values(), Mode.STUDENT)
        assert run(denoiser, (8, 10)).isfinite().all()


def test_grids_are_probed_once_for_a_configuration_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[tuple[int, int] | None] = []
    probe = finding._probe
    monkeypatch.setattr(finding, "_probed", {})
    monkeypatch.setattr(finding, "_probe", lambda denoiser, size: (passes.append(size), probe(denoiser, size))[1])
    small, large = tiny.unet(), tiny.unet(sample_size=32)
    grids = [finding.probe_grids(denoiser) for denoiser in (small, tiny.unet(), large)]
    assert grids[0] == grids[1] != grids[2]
    assert finding.probe_grids(small, (8, 12)) != grids[0]
    assert passes == [None, None, (8, 12)]
    grids[0].clear()
    assert finding.probe_grids(small) == grids[1]
