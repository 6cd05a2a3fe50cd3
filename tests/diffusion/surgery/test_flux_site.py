"""Sites of FLUX.1: packed latents with ids, blocks with two streams, and blocks with one in which text stands, too."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from peft import LoraConfig
from torch.overrides import TorchFunctionMode

from blocks import DeltaConvBlock, Grid, LinearAttention, NeighborhoodAttention, NoMixing, SoftmaxAttention
from sparsight.diffusion.families.known import example_inputs, family_of
from sparsight.diffusion.surgery.record import apply_record, record_of
from sparsight.diffusion.surgery.replace import attention_weights, finalize, replace, restore, set_mode, shells_of
from sparsight.diffusion.surgery.shell import Mode
from sparsight.diffusion.surgery.sites import find_sites
from sparsight.diffusion.train.capture import capture_site
from sparsight.diffusion.train.residual import ResidualTaps
from sparsight.diffusion.train.start import start_from_teacher
from sparsight.testing import relative_l2
from tests.tiny_flux import flux, schnell
from tests.tiny_mixers import Blend
from tests.tiny_rows import few

SIZE = (8, 12)  # 4x6 tokens
TEXT = 5
PATHS = ["transformer_blocks.0.attn", "single_transformer_blocks.0.attn", "single_transformer_blocks.1.attn"]
NEAR = partial(NeighborhoodAttention, kernel_size=3)
DELTA = partial(DeltaConvBlock, kernel_size=3)
MIXERS: dict[str, Any] = {"near": NEAR, "blend": Blend, "delta": DELTA, "linear": LinearAttention, "none": NoMixing}


def given(denoiser: Any, size: tuple[int, ...] = SIZE) -> dict[str, Any]:
    """Inputs with less text than usual, beside which the image counts."""
    torch.manual_seed(1)
    inputs = example_inputs(denoiser, batch=2, size=size)
    inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"][:, :TEXT]
    return inputs | {"txt_ids": inputs["txt_ids"][:TEXT], "return_dict": False}


def run(denoiser: Any, size: tuple[int, ...] = SIZE) -> torch.Tensor:
    output: torch.Tensor = denoiser(**given(denoiser, size))[0]
    return output


def student(mixer: Any, denoiser: Any = None, **options: Any) -> Any:
    denoiser = denoiser or flux()
    torch.manual_seed(5)
    set_mode(replace(denoiser, mixer, **options).values(), Mode.STUDENT)
    return denoiser


def test_both_kinds_of_blocks_hold_sites() -> None:
    sites = find_sites(flux())
    assert [site.path for site in sites] == PATHS
    assert all(site.grid == Grid(64, 64) and site.text == "before" and site.channels == 32 for site in sites)


@pytest.mark.parametrize("made", [flux, schnell])
def test_attention_in_full_leaves_the_model_as_it_is(made: Any) -> None:
    full = partial(NeighborhoodAttention, kernel_size=(6, 6))
    for dtype, allowed in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        for size in (SIZE, SIZE[::-1], (8, 8)):
            denoiser = made().to(dtype)
            inputs = {k: v.to(dtype) if torch.is_tensor(v) else v for k, v in given(denoiser, size).items()}
            with torch.no_grad():
                wanted = denoiser(**inputs)[0]
                found = student(full, denoiser)(**inputs)[0]
            assert found.dtype == dtype and relative_l2(found, wanted) < allowed


def test_images_see_their_window_and_all_text_and_text_sees_everything() -> None:
    """A window is the model itself with a mask on its attention."""
    mixer = NEAR(find_sites(flux())[0])
    for size, grid in ((SIZE, Grid(4, 6)), (SIZE[::-1], Grid(6, 4))):
        with torch.no_grad(), masked(mixer.mask(grid)):
            wanted = run(flux(), size)
        with torch.no_grad():
            torch.testing.assert_close(run(student(NEAR), size), wanted)
            assert relative_l2(wanted, run(flux(), size)) > 1e-3


@contextmanager
def masked(window_NN: torch.Tensor) -> Iterator[None]:
    """Attention over text and then image tokens, with the image's limited to each other's windows."""

    class Masked(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if function is F.scaled_dot_product_attention:
                tokens = kwargs["query"].shape[2]
                seen = torch.ones(tokens, tokens, dtype=torch.bool)
                seen[-len(window_NN) :, -len(window_NN) :] = window_NN
                kwargs["attn_mask"] = seen
            return function(*args, **kwargs)

    with Masked():
        yield


def test_what_is_captured_is_the_images_own_attention_with_its_positions() -> None:
    denoiser = flux()
    for shell in replace(denoiser, NEAR).values():
        with torch.no_grad(), capture_site(shell) as samples:
            run(denoiser, SIZE)
            run(denoiser, SIZE[::-1])
        weights = attention_weights(shell.attention)
        for sample, grid in zip(samples, (Grid(4, 6), Grid(6, 4)), strict=True):
            assert sample.grid == grid and sample.positions is not None
            q, k, v = weights.projected(sample.inputs, 2, sample.positions)
            mixed = F.scaled_dot_product_attention(q, k, v, scale=weights.scale)
            assert relative_l2(sample.outputs, mixed.transpose(1, 2).flatten(2)) < 1e-6
            unturned = F.scaled_dot_product_attention(*weights.projected(sample.inputs, 2), scale=weights.scale)
            assert relative_l2(unturned, mixed) > 1e-4


@pytest.mark.parametrize("name", few(MIXERS, "delta"))
def test_the_start_is_the_teachers(name: str) -> None:
    denoiser = flux()
    shells = replace(denoiser, MIXERS[name])
    before, errors = run(denoiser), []
    for started in (False, True):
        for shell in shells.values():
            if started:
                with torch.no_grad(), capture_site(shell) as samples:
                    set_mode(shells.values(), Mode.TEACHER)
                    run(denoiser)
                assert [(sample.inputs.shape, sample.outputs.shape) for sample in samples] == [((2, 24, 32),) * 2]
                start_from_teacher(shell.mixer, shell.attention, samples)
        set_mode(shells.values(), Mode.LAYERWISE)
        with torch.no_grad():
            run(denoiser)
        errors.append(sum(float(shell.take_squares()[0].detach()) for shell in shells.values()))
    assert name in ("near", "blend") or errors[1] < errors[0]
    set_mode(shells.values(), Mode.TEACHER)
    assert torch.equal(run(denoiser), before)


@pytest.mark.parametrize("name", few(["near", "blend", "delta"], "delta"))
def test_steps_leave_the_teacher_bitwise_and_the_student_alone_is_the_student(name: str) -> None:
    denoiser = student(MIXERS[name], train_projections=True)
    shells = shells_of(denoiser)
    set_mode(shells.values(), Mode.TEACHER)
    before = run(denoiser)
    assert torch.equal(before, run(flux()))
    optimizer = torch.optim.AdamW([p for p in denoiser.parameters() if p.requires_grad], lr=3e-3)
    errors = []
    for _ in range(10):
        set_mode(shells.values(), Mode.LAYERWISE)
        with torch.no_grad():
            assert torch.equal(run(denoiser), before)
        loss = torch.stack([shell.take_squares()[0] for shell in shells.values()]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.95 * errors[0]
    set_mode(shells.values(), Mode.STUDENT)
    run(denoiser).square().mean().backward()
    assert not [n for n, p in denoiser.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    with torch.no_grad():
        wanted = run(denoiser)
        record, twin = record_of(denoiser), flux()
        finalize(denoiser)
        assert torch.equal(run(denoiser), wanted) and not torch.equal(wanted, before)
        apply_record(twin, record)
        twin.load_state_dict(denoiser.state_dict())
        assert torch.equal(run(twin), wanted)


def test_losses_compare_the_image_and_the_text_where_it_may_change() -> None:
    for projections, tokens in ((False, 24), (True, 24 + TEXT)):
        denoiser = student(NEAR, train_projections=projections)
        with torch.no_grad():
            run(denoiser)
        assert [shell.take_output().shape[1] for shell in shells_of(denoiser).values()] == [tokens] * 3


def test_the_stream_behind_a_site_is_the_images() -> None:
    denoiser = student(DELTA)
    outputs: dict[str, Any] = {}
    block = denoiser.single_transformer_blocks[0]
    block.register_forward_hook(lambda module, args, output: outputs.update(single=output[1]))
    with torch.no_grad(), ResidualTaps(denoiser, PATHS).listening() as streams:
        run(denoiser)
    assert {path: tuple(stream.shape) for path, stream in streams.items()} == dict.fromkeys(PATHS, (2, 24, 32))
    assert torch.equal(streams[PATHS[1]], outputs["single"])


def test_ids_that_are_no_single_image_are_refused_and_others_are_read_where_they_were_made() -> None:
    denoiser = student(NEAR)
    inputs = given(denoiser)
    with torch.no_grad():
        wanted = denoiser(**inputs)[0]
        ids = inputs["img_ids"].clone()
        assert torch.equal(denoiser(**inputs | {"img_ids": ids})[0], wanted)
        turned = given(denoiser, SIZE[::-1])
        ids.copy_(turned["img_ids"])  # in place, after they were read
        assert torch.equal(denoiser(**turned | {"img_ids": ids})[0], denoiser(**turned)[0])
        names = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "img_ids", "txt_ids")
        by_place = denoiser(*(inputs[name] for name in names), guidance=inputs["guidance"], return_dict=False)[0]
        assert torch.equal(by_place, wanted)
        beside = torch.cat([inputs["img_ids"], inputs["img_ids"] + torch.tensor([1.0, 0, 0])])
        reference = {"hidden_states": inputs["hidden_states"].repeat(1, 2, 1), "img_ids": beside}
        with pytest.raises(
            ValueError, match="img_ids are not those of one image, row by row: mixers serve no reference"
        ):
            denoiser(**inputs | reference)


def test_packing_is_that_of_the_pipeline() -> None:
    from diffusers import FluxPipeline

    sample = torch.randn(2, 4, 8, 12)
    denoiser = flux()
    seen: dict[str, Any] = {}
    denoiser.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    cond = {name: given(denoiser)[name] for name in ("encoder_hidden_states", "pooled_projections", "guidance")}
    with torch.no_grad():
        output = family_of(denoiser).call(denoiser, sample, torch.tensor([700.0, 100.0]), cond)
        packed = denoiser(**seen)[0]
    assert torch.equal(seen["hidden_states"], FluxPipeline._pack_latents(sample, 2, 4, 8, 12))
    assert torch.equal(seen["img_ids"], FluxPipeline._prepare_latent_image_ids(2, 4, 6, "cpu", torch.float32))
    assert torch.equal(output, FluxPipeline._unpack_latents(packed, 8, 12, 1))
    torch.testing.assert_close(seen["timestep"], torch.tensor([0.7, 0.1]))


def test_a_denoiser_is_put_back_as_it_was() -> None:
    denoiser = student(DELTA)
    restore(denoiser)
    assert list(denoiser.state_dict()) == list(flux().state_dict())
    assert torch.equal(run(denoiser), run(flux()))


def test_adapters_and_fused_projections_count_before_and_after() -> None:
    def adapted(denoiser: Any) -> Any:
        torch.manual_seed(3)
        names = ["to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "proj_mlp"]
        denoiser.add_adapter(LoraConfig(r=2, target_modules=names, init_lora_weights=False))
        return denoiser

    wanted = run(adapted(flux()))
    for each in (student(SoftmaxAttention, adapted(flux())), adapted(student(SoftmaxAttention))):
        torch.testing.assert_close(run(each), wanted)
    after = student(SoftmaxAttention)
    after.fuse_qkv_projections()
    torch.testing.assert_close(run(after), run(flux()))
    trained = student(NEAR, train_projections=True)
    trained.fuse_qkv_projections()
    with pytest.raises(ValueError, match=r"did not call its trained projections: call unfuse_qkv"):
        run(trained)


def test_backends_that_call_torchs_function_serve_and_others_are_refused_by_site() -> None:
    wanted, denoiser = run(student(NEAR)), student(NEAR)
    finalize(denoiser)
    for backend in ("native", "_native_math"):
        denoiser.set_attention_backend(backend)
        torch.testing.assert_close(run(denoiser), wanted)
    denoiser.set_attention_backend("flex")
    try:
        with pytest.raises(ValueError, match=r"blocks\.0\.attn called no scaled_dot.*backend\('native'\)"):
            run(denoiser)
    finally:
        denoiser.set_attention_backend("native")  # which is that of all other models, too
    torch.testing.assert_close(run(denoiser), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [3, 24])  # 24 are as many as the image's tokens
def test_image_prompts_stand_beside_the_core(prompts: int) -> None:
    def prompted(denoiser: Any) -> torch.Tensor:
        torch.manual_seed(7)
        block = denoiser.transformer_blocks[0]
        block.attn.set_processor(FluxIPAdapterAttnProcessor(32, 16))
        image = [torch.randn(2, prompts, 16)]
        block.register_forward_pre_hook(
            lambda module, args, kwargs: (args, kwargs | {"joint_attention_kwargs": {"ip_hidden_states": image}}),
            with_kwargs=True,
        )
        with torch.no_grad():
            return run(denoiser)

    wanted = prompted(flux())
    assert not torch.allclose(wanted, run(flux()))
    torch.testing.assert_close(prompted(student(SoftmaxAttention)), wanted)
    trained = student(NEAR, train_projections=True)
    assert not torch.equal(prompted(trained), wanted)
    assert shells_of(trained)[PATHS[0]].take_output().shape[1] == 24 + TEXT


@pytest.mark.parametrize("name", few(["near", "delta"], "near"))
def test_copies_sizes_and_recomputation(name: str) -> None:
    denoiser = student(MIXERS[name], train_projections=True)
    with torch.no_grad():
        twin = copy.deepcopy(denoiser)
        assert all(torch.equal(run(twin, size), run(denoiser, size)) for size in (SIZE, SIZE[::-1], (8, 8)))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
        denoiser.zero_grad()
        loss = run(denoiser).square().mean()
        with torch.no_grad():
            run(denoiser, SIZE[::-1])  # blocks are recomputed on the grid that they had
        loss.backward()
        gradients.append([p.grad for p in denoiser.parameters() if p.requires_grad])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_autocast_leaves_mixers_in_float32() -> None:
    for mixer in (NEAR, DELTA):
        denoiser = student(mixer, train_projections=True)
        wanted = run(denoiser)
        with torch.autocast("cpu", torch.bfloat16):
            found = run(denoiser)
        assert 0 < relative_l2(found.float(), wanted) < 0.06


@pytest.mark.slow
def test_a_graph_is_exported_once_the_grid_has_been_told() -> None:
    denoiser = student(NEAR)
    finalize(denoiser)
    inputs = {name: x.clone() if torch.is_tensor(x) else x for name, x in given(denoiser).items()}
    with torch.no_grad():
        wanted = denoiser(**inputs)[0]
        graph = torch.export.export(denoiser, (), inputs, strict=False)
        torch.testing.assert_close(graph.module()(**inputs)[0], wanted)


@torch.no_grad()
def graphs(denoiser: Any) -> int:
    """Compile the blocks, each to a whole graph, run at three sizes, and count the graphs."""
    counted: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        counted.append(graph)
        return graph.forward

    sizes = (SIZE, SIZE[::-1], (8, 16))
    wanted = [run(denoiser, size) for size in sizes]
    torch._dynamo.reset()
    for block in (*denoiser.transformer_blocks, *denoiser.single_transformer_blocks):
        block.compile(fullgraph=True, backend=backend)
    for size, expected in zip(sizes, wanted, strict=True):
        torch.testing.assert_close(run(denoiser, size), expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
    return len(counted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["near", "delta"])
def test_blocks_compile_to_one_graph_more_of_each_kind_at_most(name: str) -> None:
    denoiser = student(MIXERS[name])
    finalize(denoiser)
    assert graphs(denoiser) <= graphs(flux()) + 2
