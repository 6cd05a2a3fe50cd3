"""Sites where text and image attend to each other: what mixers stand for there, and what stays as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from peft import LoraConfig
from torch import Tensor

from blocks import (
    DeltaConvBlock,
    Grid,
    HeadSplit,
    KernelAttention,
    LinearAttention,
    NeighborhoodAttention,
    NoMixing,
    Site,
    SoftmaxAttention,
)
from blocks.base import Layout
from sparsight.diffusion.families.known import example_inputs
from sparsight.diffusion.surgery.joint import MASS, give_mass, joint_core
from sparsight.diffusion.surgery.record import apply_record, record_of
from sparsight.diffusion.surgery.replace import attention_weights, finalize, replace, restore, set_mode, shells_of
from sparsight.diffusion.surgery.shell import Mode
from sparsight.diffusion.surgery.sites import SiteSelection, find_sites
from sparsight.diffusion.train.capture import capture_site
from sparsight.diffusion.train.start import start_from_teacher
from sparsight.testing import relative_l2
from tests import tiny
from tests.tiny import run
from tests.tiny_mixers import Blend
from tests.tiny_sd3 import sd35

SIZE = (16, 24)  # 4x6 tokens
GRID = Grid(4, 6)
JOINT = ["transformer_blocks.0.attn", "transformer_blocks.1.attn"]
NEAR = partial(NeighborhoodAttention, kernel_size=3)
DELTA = partial(DeltaConvBlock, kernel_size=3)
EXACT: dict[str, Any] = {
    "softmax": SoftmaxAttention,
    "window": partial(NeighborhoodAttention, kernel_size=(4, 6)),
    "heads": partial(HeadSplit, parts=[SoftmaxAttention, partial(NeighborhoodAttention, kernel_size=(4, 6))]),
}
OTHERS: dict[str, Any] = {"near": NEAR, "blend": Blend, "delta": DELTA, "linear": LinearAttention, "none": NoMixing}
OTHERS["mass alone"] = partial(KernelAttention, feature_map="relu")  # learns nothing else


def student(mixer: Any, denoiser: Any = None, **options: Any) -> Any:
    denoiser = denoiser or sd35()
    torch.manual_seed(5)
    set_mode(replace(denoiser, mixer, **options).values(), Mode.STUDENT)
    return denoiser


def test_sites_are_found_with_the_place_of_the_text() -> None:
    sites = find_sites(sd35())
    assert {site.path: site.text for site in sites} == {
        JOINT[0]: "after",
        "transformer_blocks.0.attn2": None,
        JOINT[1]: "after",
    }
    assert all(site.grid == Grid(4, 4) and site.channels == 32 for site in sites)


@pytest.mark.parametrize("name", EXACT)
def test_attention_in_full_leaves_the_model_as_it_is(name: str) -> None:
    for dtype, allowed in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        denoiser = sd35().to(dtype)
        inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in given(denoiser).items()}
        with torch.no_grad():
            wanted = denoiser(**inputs, return_dict=False)[0]
            found = student(EXACT[name], denoiser)(**inputs, return_dict=False)[0]
        assert (found.dtype == dtype and 0 < relative_l2(found, wanted) < allowed) or torch.equal(found, wanted)


def given(denoiser: Any, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    torch.manual_seed(1)
    return example_inputs(denoiser, batch=2, size=size)


@pytest.mark.parametrize("text", ["before", "after"])
def test_image_and_text_are_under_one_softmax(text: Any) -> None:
    torch.manual_seed(0)
    site = Site("blocks.0.attn", channels=16, heads=2, head_dim=8, grid=GRID, text=text)
    mixer = NEAR(site)
    q, k, v = (torch.randn(2, 2, 24 + 5, 8) for _ in range(3))
    layout = site.layout(GRID, 24 + 5)
    assert layout == (Layout(GRID, before=5) if text == "before" else Layout(GRID, after=5))
    rows = slice(5, 29) if text == "before" else slice(0, 24)
    seen = torch.ones(29, 29, dtype=torch.bool)
    seen[rows, rows] = mixer.mask(GRID)
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=0.4)
    torch.testing.assert_close(joint_core(mixer, q, k, v, layout, 0.4, q), wanted)


@pytest.mark.parametrize("mixer", [Blend, DELTA])
def test_a_mixer_without_a_mass_learns_one_for_each_head(mixer: Any) -> None:
    torch.manual_seed(0)
    site = Site("blocks.0.attn", channels=16, heads=2, head_dim=8, grid=GRID, text="after")
    made = mixer(site)
    give_mass(made, None)
    with torch.no_grad():
        made.get_submodule(MASS).per_token.copy_(torch.tensor([0.5, -1.0]))
    q, k, v = (torch.randn(2, 2, 24 + 5, 8) for _ in range(3))
    hidden = torch.randn(2, 24, 16)
    if mixer is Blend:
        image = made.mix(q[:, :, :24], k[:, :, :24], v[:, :, :24], GRID, 0.4)
    else:
        image = made(hidden, GRID).unflatten(-1, (2, 8)).transpose(1, 2)
    logits = q[:, :, :24] @ k[:, :, 24:].mT * 0.4
    mass = 24 * torch.tensor([0.5, -1.0]).exp().view(1, 2, 1, 1)
    share = mass / (mass + logits.exp().sum(-1, keepdim=True))
    wanted = share * image + (1 - share) * (logits.softmax(-1) @ v[:, :, 24:])
    found = joint_core(made, q, k, v, site.layout(GRID, 29), 0.4, hidden)
    torch.testing.assert_close(found[:, :, :24], wanted[:, :, :24])
    torch.testing.assert_close(found[:, :, 24:], F.scaled_dot_product_attention(q, k, v, scale=0.4)[:, :, 24:])
    found.square().sum().backward()
    grad = made.get_submodule(MASS).per_token.grad
    assert grad is not None and grad.all()


def test_only_mixers_that_cannot_tell_their_mass_get_one() -> None:
    for mixer, needs in ((NEAR, False), (EXACT["heads"], False), (Blend, True), (DELTA, True)):
        denoiser = student(mixer)
        assert {path for path, shell in shells_of(denoiser).items() if MASS in shell.mixer._modules} == (
            set(JOINT) if needs else set()
        )

    class Taken(Blend):
        joint_mass = 1.0

    with pytest.raises(ValueError, match="Taken has a joint_mass of its own: rename it"):
        student(Taken)


@pytest.mark.parametrize("name", OTHERS)
def test_the_start_is_the_teachers(name: str) -> None:
    """Of what image tokens take from each other, and of its mass."""
    denoiser = sd35()
    shells = replace(denoiser, OTHERS[name], SiteSelection(JOINT))
    before, errors = run(denoiser, SIZE), []
    for started in (False, True):
        for shell in shells.values():
            if started:
                with torch.no_grad(), capture_site(shell) as samples:
                    set_mode(shells.values(), Mode.TEACHER)
                    run(denoiser, SIZE)
                assert [sample.outputs.shape for sample in samples] == [(2, 24, 32)]
                start_from_teacher(shell.mixer, shell.attention, samples)
                mass = shell.mixer._modules.get(MASS)
                if mass is not None:
                    wanted = samples[0].masses.mean((0, 1)) - math.log(24)
                    torch.testing.assert_close(mass.per_token.detach(), wanted)
        set_mode(shells.values(), Mode.LAYERWISE)
        with torch.no_grad():
            run(denoiser, SIZE)
        errors.append(sum(float(shell.take_squares()[0].detach()) for shell in shells.values()))
    assert name in ("near", "blend", "mass alone") or errors[1] < errors[0]
    set_mode(shells.values(), Mode.TEACHER)
    assert torch.equal(run(denoiser, SIZE), before)


def test_what_is_captured_is_the_images_own_attention() -> None:
    denoiser = sd35()
    shells = replace(denoiser, NEAR)
    attention = shells[JOINT[0]].attention
    with torch.no_grad(), capture_site(shells[JOINT[0]]) as samples:
        run(denoiser, SIZE)
        run(denoiser, SIZE[::-1])
    assert [sample.grid for sample in samples] == [GRID, Grid(6, 4)]
    hidden = samples[1].inputs
    with torch.no_grad():
        weights = attention_weights(attention)  # norms of queries and keys among them
        q, k, v = weights.projected(hidden, 2)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=weights.scale).transpose(1, 2).flatten(2)
        torch.testing.assert_close(samples[1].outputs, mixed)
        alone = attention.teacher_pass(hidden)  # without text
        torch.testing.assert_close(attention.to_out[0](samples[1].outputs), alone)


@pytest.mark.parametrize("name", ["near", "blend", "delta"])
def test_steps_leave_the_teacher_bitwise_and_the_student_alone_is_the_student(name: str) -> None:
    denoiser = student(OTHERS[name], train_projections=True)
    shells = shells_of(denoiser)
    names = set(sd35().state_dict())
    assert {n for n in denoiser.state_dict() if ".mixer." not in n and ".student." not in n} <= names | {
        n.replace(".attn2.", ".attn2.teacher.") for n in names
    }
    set_mode(shells.values(), Mode.TEACHER)
    before = run(denoiser, SIZE)
    assert torch.equal(before, run(sd35(), SIZE))
    trained = [p for p in denoiser.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    errors = []
    for _ in range(20):
        set_mode(shells.values(), Mode.LAYERWISE)
        with torch.no_grad():
            assert torch.equal(run(denoiser, SIZE), before)
        loss = torch.stack([shell.take_squares()[0] for shell in shells.values()]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.9 * errors[0]
    set_mode(shells.values(), Mode.TEACHER)
    assert torch.equal(run(denoiser, SIZE), before)
    set_mode(shells.values(), Mode.STUDENT)
    run(denoiser, SIZE).square().mean().backward()
    unread = [n for n, p in denoiser.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not unread, "the output's loss reaches all that is trained"
    with torch.no_grad():
        wanted = run(denoiser, SIZE)
        record, twin = record_of(denoiser), sd35()
        finalize(denoiser)
        assert torch.equal(run(denoiser, SIZE), wanted) and not torch.equal(wanted, before)
        apply_record(twin, record)
        twin.load_state_dict(denoiser.state_dict())
        assert torch.equal(run(twin, SIZE), wanted)


def test_losses_compare_the_image_and_the_text_where_it_may_change() -> None:
    kept, changed = student(NEAR), student(NEAR, train_projections=True)
    for denoiser, tokens in ((kept, [24, 24, 24]), (changed, [24 + 154, 24, 24])):  # nobody reads the last block's text
        with torch.no_grad():
            run(denoiser, SIZE)
        assert [shell.take_output().shape[1] for shell in shells_of(denoiser).values()] == tokens


def test_a_denoiser_is_put_back_as_it_was() -> None:
    denoiser = student(DELTA)
    restore(denoiser)
    assert list(denoiser.state_dict()) == list(sd35().state_dict())
    assert torch.equal(run(denoiser, SIZE), run(sd35(), SIZE))


def test_adapters_and_fused_projections_count_before_and_after() -> None:
    def adapted(denoiser: Any) -> Any:
        torch.manual_seed(3)
        names = ["to_q", "to_k", "to_v", "to_out.0", "add_k_proj"]
        denoiser.add_adapter(LoraConfig(r=2, target_modules=names, init_lora_weights=False))
        return denoiser

    made = partial(tiny.sd3, qk_norm=None)  # diffusers' own fused form has no second attention and no norms
    wanted = run(adapted(made().eval()), SIZE)
    for each in (student(SoftmaxAttention, adapted(made().eval())), adapted(student(SoftmaxAttention, made().eval()))):
        torch.testing.assert_close(run(each, SIZE), wanted)
    wanted = run(made().eval(), SIZE)
    after = student(SoftmaxAttention, made().eval())
    after.fuse_qkv_projections()
    torch.testing.assert_close(run(after, SIZE), wanted)
    fused = made().eval()
    fused.fuse_qkv_projections()
    torch.testing.assert_close(run(student(SoftmaxAttention, fused), SIZE), wanted)
    trained = student(NEAR, made().eval(), train_projections=True)
    trained.fuse_qkv_projections()
    with pytest.raises(ValueError, match=r"blocks\.0\.attn did not call its trained projections: call unfuse_qkv"):
        run(trained, SIZE)


def test_image_prompts_stand_beside_the_core() -> None:
    def prompted(denoiser: Any) -> Tensor:
        torch.manual_seed(7)
        for name in denoiser.attn_processors:
            path = name.removesuffix(".processor")
            processor = SD3IPAdapterJointAttnProcessor2_0(32, 32, 16, timesteps_emb_dim=8)
            denoiser.get_submodule(path).set_processor(processor)
        extra = {"ip_hidden_states": torch.randn(2, 3, 32), "temb": torch.randn(2, 8)}
        with torch.no_grad():
            return denoiser(**given(denoiser), joint_attention_kwargs=extra, return_dict=False)[0]

    wanted = prompted(sd35())
    assert not torch.allclose(wanted, run(sd35(), SIZE))
    torch.testing.assert_close(prompted(student(SoftmaxAttention)), wanted)
    with pytest.raises(ValueError, match=r"blocks\.0\.attn2 replaces a self-attention: it knows nothing of temb"):
        prompted(student(DELTA))


@pytest.mark.parametrize("mixer", [NEAR, DELTA])
def test_copies_sizes_and_recomputation(mixer: Any) -> None:
    denoiser = student(mixer, train_projections=True)
    with torch.no_grad():
        wanted = [run(denoiser, size) for size in (SIZE, (16, 16), (18, 24))]  # an odd side loses its last row
        twin = copy.deepcopy(denoiser)
        assert all(
            torch.equal(run(twin, size), each)
            for size, each in zip((SIZE, (16, 16), (18, 24)), wanted, strict=True)
            if size[0] == 16
        )
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
        denoiser.zero_grad()
        loss = run(denoiser, SIZE).square().mean()
        with torch.no_grad():
            run(denoiser, SIZE[::-1])  # blocks are recomputed on the grid that they had
        loss.backward()
        gradients.append([p.grad for p in denoiser.parameters() if p.requires_grad])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("end", [lambda _: None, finalize], ids=["shell", "student"])
def test_weights_may_stay_elsewhere_until_they_are_used(end: Callable[[Any], None]) -> None:
    from accelerate import cpu_offload

    denoiser = student(Blend, train_projections=True)
    end(denoiser)
    with torch.no_grad():
        wanted = run(denoiser, SIZE)
        cpu_offload(denoiser, execution_device=torch.device("cpu"))
        torch.testing.assert_close(run(denoiser, SIZE), wanted)


def test_autocast_leaves_mixers_in_float32() -> None:
    for mixer in (NEAR, Blend, DELTA):
        denoiser = student(mixer, train_projections=True)
        wanted = run(denoiser, SIZE)
        with torch.autocast("cpu", torch.bfloat16):
            found = run(denoiser, SIZE)
        assert 0 < relative_l2(found.float(), wanted) < 0.03
        found.float().square().mean().backward()
        trained = [p for p in denoiser.parameters() if p.requires_grad]
        assert all(p.dtype == torch.float32 and p.grad is not None for p in trained)


@pytest.mark.slow
def test_a_graph_of_joint_sites_is_exported() -> None:
    denoiser = student(NEAR)
    finalize(denoiser)
    inputs = given(denoiser) | {"return_dict": False}
    with torch.no_grad():
        wanted = denoiser(**inputs)[0]
        graph = torch.export.export(denoiser, (), inputs, strict=False)
        torch.testing.assert_close(graph.module()(**inputs)[0], wanted)
