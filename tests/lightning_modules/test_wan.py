"""Wan from text to a student of video: sites on three axes, teacher samples, both stages, an export without us."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline
from peft import LoraConfig

from blocks import (
    DeltaConvBlock,
    Grid,
    HeadSplit,
    LinearAttention,
    Merge,
    NeighborhoodAttention,
    NoMixing,
    PooledAttention,
    SoftmaxAttention,
    TileAttention,
)
from callbacks import SampleGrid
from datamodules import TeacherSamplesDataModule
from lightning_modules import AttentionDistillation
from sparsight.common.disk.cache_options import CacheOptions
from sparsight.diffusion.measure.report import replacement_report
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.sampling import Sampling, sample, starting_noise
from sparsight.diffusion.surgery.plan import PlanEntry
from sparsight.diffusion.surgery.record import apply_record, record_of
from sparsight.diffusion.surgery.replace import attention_weights, finalize, replace, set_mode, shells_of
from sparsight.diffusion.surgery.shell import Mode
from sparsight.diffusion.surgery.sites import find_sites
from sparsight.diffusion.train.capture import capture_site
from sparsight.diffusion.train.stages import LossTerms, Stage
from sparsight.diffusion.train.start import start_from_teacher
from sparsight.testing import relative_l2
from tests.tiny import run
from tests.tiny_distillation import trainer
from tests.tiny_drawn import check_plain_diffusers_draws, check_trained
from tests.tiny_rows import few
from tests.tiny_wan import save_wan_pipeline, wan

CAPTIONS = ["a cat", "a dog", "a boat", "a hat"]
SIZE = (3, 8, 12)  # of latents: 3x4x6 tokens, 5 frames of 64x96 pixels
NEAR = partial(NeighborhoodAttention, kernel_size=3)
FULL: dict[str, Any] = {
    "softmax": SoftmaxAttention,
    "window": partial(NeighborhoodAttention, kernel_size=(3, 6, 6)),
    "tile": partial(TileAttention, tile=(3, 6, 6)),
    "heads": partial(HeadSplit, parts=[SoftmaxAttention, partial(TileAttention, tile=6)]),
}


def student(mixer: Any, **options: Any) -> Any:
    denoiser = wan()
    torch.manual_seed(5)
    set_mode(replace(denoiser, mixer, **options).values(), Mode.STUDENT)
    return denoiser


def test_self_attentions_are_sites_on_three_axes() -> None:
    assert [(s.path, s.grid, s.channels, s.text) for s in find_sites(wan())] == [
        (f"blocks.{n}.attn1", Grid(frames=21, height=30, width=52), 32, None) for n in range(2)
    ]
    report = replacement_report(student(NEAR), size=SIZE)
    assert [site.tokens for site in report.sites] == [72, 72] and "72 (3x4x6)" in report.text()


@pytest.mark.parametrize("name", FULL)
def test_attention_in_full_leaves_the_model_as_it_is(name: str) -> None:
    for size in (SIZE, (3, 12, 8), (1, 8, 8)):
        with torch.no_grad():
            assert relative_l2(run(student(FULL[name]), size), run(wan(), size)) < 1e-5


def test_mixers_say_how_many_axes_they_serve() -> None:
    mixed = partial(Merge, parts=[partial(TileAttention, tile=2), partial(PooledAttention, tile=2, without_own=True)])
    for served in (LinearAttention, NoMixing, NEAR, mixed):
        with torch.no_grad():
            assert relative_l2(run(student(served), SIZE), run(wan(), SIZE)) > 1e-4

    class Flat(NeighborhoodAttention):
        served_axes = (2,)

    for refused in (DeltaConvBlock, Flat, partial(HeadSplit, parts=[Flat, SoftmaxAttention])):
        with pytest.raises(ValueError, match=r"attn1 has tokens on 3 axes \(frames, height, width\), and \w+ serves"):
            student(refused)


def test_a_window_of_video_reaches_over_frames() -> None:
    site, grid = find_sites(wan())[0], Grid(3, 4, 6)
    for size, frames in (((1, 3, 3), {1}), (3, {0, 1, 2})):
        mixer = NeighborhoodAttention(site, kernel_size=size)
        seen = mixer.mask(grid).view(3, 4, 6, 3, 4, 6)[1, 1, 2]
        assert {int(f) for f in seen.nonzero()[:, 0]} == frames
        assert {(int(y), int(x)) for _, y, x in seen.nonzero()} == {(y, x) for y in (0, 1, 2) for x in (1, 2, 3)}
        assert int(mixer.mask(grid).sum(-1).unique()) * 4 * grid.tokens * 32 == mixer.flops(grid)


def test_norms_over_all_heads_and_starts() -> None:
    denoiser = wan()
    shells = replace(denoiser, partial(HeadSplit, parts=[partial(TileAttention, tile=2), SoftmaxAttention]))
    for shell in shells.values():
        seen: dict[str, torch.Tensor] = {}
        with torch.no_grad(), capture_site(shell) as samples:
            handle = shell.attention.norm_q.register_forward_hook(lambda m, a, out, seen=seen: seen.update(q=out))
            run(denoiser, SIZE)
            handle.remove()
        weights = attention_weights(shell.attention)
        q, _, _ = weights.projected(samples[0].inputs, 2)
        torch.testing.assert_close(q.transpose(1, 2).flatten(2), seen["q"])
        turned = weights.projected(samples[0].inputs, 2, samples[0].positions)
        mixed = F.scaled_dot_product_attention(*turned, scale=weights.scale).transpose(1, 2).flatten(2)
        found = F.linear(mixed, weights.out, weights.out_bias)
        torch.testing.assert_close(found, samples[0].outputs, rtol=1e-4, atol=1e-5)
        start_from_teacher(shell.mixer, shell.attention, samples)


@pytest.mark.parametrize("mixer", few([NEAR, LinearAttention], NEAR), ids=["near", "linear"])
def test_steps_leave_the_teacher_bitwise_and_the_student_alone_is_the_student(mixer: Any) -> None:
    denoiser = student(mixer, train_projections=True)
    denoiser.enable_gradient_checkpointing()
    shells = shells_of(denoiser)
    optimizer = torch.optim.AdamW([p for p in denoiser.parameters() if p.requires_grad], lr=3e-3)
    errors = []
    for _ in range(10):
        set_mode(shells.values(), Mode.LAYERWISE)
        with torch.no_grad():
            assert torch.equal(run(denoiser, SIZE), run(wan(), SIZE))
        loss = torch.stack([shell.take_squares()[0] for shell in shells.values()]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.95 * errors[0]
    set_mode(shells.values(), Mode.STUDENT)
    run(denoiser, SIZE).square().mean().backward()
    assert not [n for n, p in denoiser.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    with torch.no_grad():
        wanted, record, twin = run(denoiser, SIZE), record_of(denoiser), wan()
        finalize(denoiser)
        assert torch.equal(run(denoiser, SIZE), wanted)
        apply_record(twin, record)
        twin.load_state_dict(denoiser.state_dict())
        assert torch.equal(run(twin, SIZE), wanted)


@pytest.mark.slow
def test_adapters_and_fused_projections_count() -> None:
    def adapted(denoiser: Any) -> Any:
        torch.manual_seed(3)
        denoiser.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v", "to_out.0"], init_lora_weights=False))
        return denoiser

    wanted = run(adapted(wan()), SIZE)
    torch.testing.assert_close(run(adapted(student(SoftmaxAttention)), SIZE), wanted)
    fused = student(SoftmaxAttention)
    fused.fuse_qkv_projections()
    torch.testing.assert_close(run(fused, SIZE), run(wan(), SIZE))


def latents(pipeline: Any, noise: torch.Tensor, *, steps: int, guidance: float) -> torch.Tensor:
    """What diffusers' own pipeline draws."""
    pipeline.set_progress_bar_config(disable=True)
    frames, height, width = noise.shape[2:]
    sides = {"num_frames": 2 * frames - 1, "height": 8 * height, "width": 8 * width}
    options = {"num_inference_steps": steps, "guidance_scale": guidance, "latents": noise, "output_type": "latent"}
    drawn: torch.Tensor = pipeline(CAPTIONS[:2], **sides, **options).frames
    return drawn


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_wan_pipeline(tmp_path_factory.mktemp("teacher") / "wan"))


SCHEDULERS = {
    "unipc": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
    "euler": FlowMatchEulerDiscreteScheduler(shift=5.0),
}


@pytest.mark.parametrize(("name", "by_token"), few(itertools.product(SCHEDULERS, [False, True]), ("unipc", False)))
def test_what_is_drawn_is_what_diffusers_draws(name: str, by_token: bool, teacher: str) -> None:
    stock = WanPipeline.from_pretrained(teacher)
    stock.scheduler = SCHEDULERS[name]
    stock.register_to_config(expand_timesteps=by_token)  # of Wan 2.2 5B, which tells every token its time
    model = DiffusionModel(stock)
    assert model.process.prediction_type == "flow"
    level = torch.tensor([0, 499, 999])
    sigma = 5 * (level + 1) / 1000 / (1 + 4 * (level + 1) / 1000)
    torch.testing.assert_close(model.process.timestep(level), 1000 * sigma)
    for size, guidance in ((SIZE, 1.0), ((2, 12, 8), 3.0)):
        model.size = size
        noise = starting_noise(model.sample_shape(), seed=7, index=torch.arange(2))
        found = sample(model, {"caption": CAPTIONS[:2]}, noise, steps=4, guidance=guidance)
        torch.testing.assert_close(found, latents(stock, noise, steps=4, guidance=guidance), rtol=1e-5, atol=1e-5)


def test_latents_are_the_pipelines_and_an_image_is_the_middle_frame(teacher: str) -> None:
    stock = WanPipeline.from_pretrained(teacher)
    model = DiffusionModel(stock)
    stock.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, *SIZE)
    options = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "pt"}
    wanted = stock(CAPTIONS[:2], num_frames=5, height=64, width=96, latents=noise, **options).frames
    drawn = sample(model, {"caption": CAPTIONS[:2]}, noise, steps=1, guidance=1.0)
    video = model.decode_whole(drawn)
    torch.testing.assert_close(video.transpose(1, 2), wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.decode(drawn), video[:, :, 2])
    image = torch.rand(2, 3, 64, 96) * 2 - 1
    assert model.encode(image).shape == (2, 4, 1, 8, 12)  # a video of one frame
    with torch.no_grad():
        mean = stock.vae.encode(image[:, :, None]).latent_dist.mean
    scaled = (mean - torch.tensor([0.1, -0.2, 0.3, 0.0]).view(4, 1, 1, 1)) / torch.tensor([1, 2, 0.5, 1.5]).view(
        4, 1, 1, 1
    )
    torch.testing.assert_close(model.encode(image), scaled)


def test_two_denoisers_are_refused_by_name(tmp_path: Path) -> None:
    folder = save_wan_pipeline(tmp_path / "wan", parts={"transformer_2": wan(), "boundary_ratio": 0.9})
    with pytest.raises(
        ValueError, match="draws with two denoisers, transformer for high noise and transformer_2 for low"
    ):
        _ = DiffusionModel.from_pretrained(str(folder)).conditioner


def distillation(teacher: str, size: Sequence[int] = SIZE) -> AttentionDistillation:
    torch.manual_seed(0)
    terms = LossTerms(site_on="residual", to_target=0.5)
    stages = [Stage("layerwise", 2, warmup_steps=1), Stage("end_to_end", 2, loss=terms, warmup_steps=1)]
    plan = [PlanEntry("blocks.0.*", NEAR), PlanEntry("*", LinearAttention)]
    return AttentionDistillation(
        teacher,
        stages=stages,
        plan=plan,
        trained={"projections": True, "init_samples": 2},
        sampling=Sampling(2, size=tuple(size)),
    )


@pytest.fixture(scope="module")
def trained(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AttentionDistillation]:
    folder, module = tmp_path_factory.mktemp("run"), distillation(teacher)
    data = TeacherSamplesDataModule(
        teacher,
        mode="samples",
        captions=CAPTIONS,
        count=4,
        val_count=2,
        sampling={"steps": 2, "size": SIZE},
        batch_size=2,
        compute={"device": "cpu"},
        cache=CacheOptions(str(folder / "cache")),
    )
    fitted = trainer(folder, callbacks=[SampleGrid(captions=CAPTIONS[:2], every_n_steps=100)])
    fitted.fit(module, data)
    assert fitted.global_step == 4
    assert 0 < float(fitted.callback_metrics["val/output_relative_l2"]) < 10
    return folder, module


@pytest.mark.slow
def test_both_stages_train_and_a_grid_is_drawn(trained: tuple[Path, AttentionDistillation], teacher: str) -> None:
    check_trained(*trained, distillation(teacher))


@pytest.mark.slow
def test_plain_diffusers_draws_as_the_student(
    trained: tuple[Path, AttentionDistillation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_plain_diffusers_draws(
        trained[1],
        tmp_path,
        monkeypatch,
        captions=CAPTIONS[:2],
        kinds=(WanPipeline,),
        pipeline=WanPipeline,
        latents=partial(latents, steps=2, guidance=2.0),
    )
