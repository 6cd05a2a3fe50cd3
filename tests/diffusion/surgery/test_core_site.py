"""Core mixers inside an attention of diffusers: what stays the attention's own, and what works on it as before."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0, FusedAttnProcessor2_0
from peft import LoraConfig
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from blocks import DeltaConvBlock, NeighborhoodAttention, SoftmaxAttention, TileAttention
from sparsight.diffusion.families.known import example_inputs
from sparsight.diffusion.surgery.rehearsal import rehearsed
from sparsight.diffusion.surgery.replace import attention_weights, finalize, replace, restore, set_mode, shells_of
from sparsight.diffusion.surgery.shell import Mode
from tests import tiny
from tests.tiny import run
from tests.tiny_mixers import Blend
from tests.tiny_rows import few

SIZE = (8, 12)
PATH = "transformer_blocks.0.attn1"


def student(denoiser: Any = None, mixer: Any = Blend, **options: bool) -> Any:
    """A PixArt, or another denoiser, with core sites in student mode."""
    denoiser = denoiser or tiny.pixart().eval()
    torch.manual_seed(5)
    set_mode(replace(denoiser, mixer, **options).values(), Mode.STUDENT)
    return denoiser


def trained(denoiser: Any) -> dict[str, Any]:
    return {name: p for name, p in denoiser.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_site_is_the_attention_under_its_names_and_a_mixer(family: str) -> None:
    denoiser = tiny.FAMILIES[family]().eval()
    names = list(denoiser.state_dict())
    shells = replace(denoiser, Blend)
    assert all(isinstance(shell, Attention) for shell in shells.values())
    added = {f"{path}.mixer.{name}" for path, shell in shells.items() for name in shell.mixer.state_dict()}
    assert set(denoiser.state_dict()) == {*names, *added}
    finalize(denoiser)
    assert set(denoiser.state_dict()) == {*names, *added}
    other = tiny.FAMILIES[family]().eval()
    replace(other, Blend, train_projections=True)
    grown = set(other.state_dict()) - {*names, *added}
    assert grown and all(".mixer.trained_projections." in name for name in grown)
    restore(other)
    assert list(other.state_dict()) == names


def test_a_hundred_steps_leave_the_teacher_bitwise_and_merge_into_its_names() -> None:
    denoiser = student(train_projections=True)
    set_mode(shells_of(denoiser).values(), Mode.TEACHER)
    before, weights = run(denoiser, SIZE), copy.deepcopy(denoiser.state_dict())
    shells = shells_of(denoiser)
    optimizer = torch.optim.AdamW(trained(denoiser).values(), lr=1e-2)
    errors = []
    for _ in range(100):
        set_mode(shells.values(), Mode.LAYERWISE)
        with torch.no_grad():
            run(denoiser, SIZE)
        loss = torch.stack([shell.take_squares()[0] for shell in shells.values()]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(float(loss))
    assert errors[-1] < 0.5 * errors[0]
    set_mode(shells.values(), Mode.TEACHER)
    assert torch.equal(run(denoiser, SIZE), before)
    for name, value in denoiser.state_dict().items():
        assert torch.equal(value, weights[name]) == (".mixer." not in name), name
    set_mode(shells.values(), Mode.STUDENT)
    with torch.no_grad():
        wanted = run(denoiser, SIZE)
        finalize(denoiser)
        assert torch.equal(run(denoiser, SIZE), wanted)
    assert not torch.equal(denoiser.state_dict()[f"{PATH}.to_q.weight"], weights[f"{PATH}.to_q.weight"])
    assert not torch.equal(wanted, before)


def test_attention_that_is_computed_in_another_way_is_refused_by_name() -> None:
    denoiser = student(tiny.unet().eval())
    wanted = run(denoiser, (16, 16))
    for change in (
        lambda: denoiser.set_attn_processor(AttnProcessor()),
        denoiser.set_default_attn_processor,
        lambda: denoiser.set_attention_slice(1),
    ):
        change()
        with pytest.raises(ValueError, match=r"down_blocks\.0.*attn1 called no scaled_dot.*AttnProcessor2_0"):
            run(denoiser, (16, 16))
        set_mode(shells_of(denoiser).values(), Mode.TEACHER)
        assert run(denoiser, (16, 16)).isfinite().all(), "the teacher may compute as it likes"
        set_mode(shells_of(denoiser).values(), Mode.STUDENT)
        denoiser.set_attn_processor(AttnProcessor2_0())
    denoiser.set_attention_backend("_native_math")
    assert torch.equal(run(denoiser, (16, 16)), wanted)


def test_an_attention_without_torchs_function_is_refused_when_the_mixer_is_put_there() -> None:
    for change in (
        lambda unet: unet.set_attn_processor(AttnProcessor()),
        lambda unet: unet.set_default_attn_processor(),
        lambda unet: unet.set_attention_slice(1),
        lambda unet: setattr(unet.mid_block.attentions[0].transformer_blocks[0].attn1, "processor", AttnProcessor()),
    ):
        denoiser = tiny.unet().eval()
        change(denoiser)
        with pytest.raises(ValueError, match=r"attn1 called no scaled_dot.*AttnProcessor2_0"):
            replace(denoiser, Blend)
        replace(denoiser, DeltaConvBlock)  # takes the attention's place as a whole


def test_what_a_rehearsal_sees_is_what_a_pass_calls_and_it_changes_nothing() -> None:
    attention = tiny.unet().eval().mid_block.attentions[0].transformer_blocks[0].attn1
    before = copy.deepcopy(attention.state_dict())
    seen = rehearsed(attention)
    assert seen is not None and seen.cores == 1
    assert seen.layers == {"to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"}
    attention.fuse_projections()
    attention.set_processor(FusedAttnProcessor2_0())
    fused = rehearsed(attention)
    assert fused is not None and fused.layers == {"to_qkv.weight", "to_out.0.weight"}
    assert all(torch.equal(attention.state_dict()[name], value) for name, value in before.items())

    class Picky(AttnProcessor2_0):
        def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            assert bool(hidden_states.any()), "looks at values"
            return hidden_states

    attention.processor = Picky()
    assert rehearsed(attention) is None


@pytest.mark.parametrize(
    ("options", "told"),
    [({"attn_mask": True}, "a mask"), ({"is_causal": True}, "a causal mask"), ({"dropout_p": 0.1}, "dropout")],
)
def test_a_core_that_does_more_than_attend_is_refused(options: dict[str, Any], told: str) -> None:
    class Processor(AttnProcessor2_0):
        def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            q = hidden_states.unflatten(-1, (2, -1)).transpose(1, 2)
            given = {"attn_mask": torch.zeros(q.shape[2], q.shape[2])} if "attn_mask" in options else options
            return torch.nn.functional.scaled_dot_product_attention(q, q, q, **given).transpose(1, 2).flatten(2)

    denoiser = student()
    denoiser.transformer_blocks[0].attn1.processor = Processor()
    with pytest.raises(ValueError, match=rf"transformer_blocks\.0\.attn1 has {told} on its attention, which no mixer"):
        run(denoiser, SIZE)


def test_norms_of_queries_and_keys_stay_around_the_core() -> None:
    denoiser = tiny.dit().eval()
    attention = denoiser.transformer_blocks[1].attn1
    attention.norm_q, attention.norm_k = torch.nn.LayerNorm(8), torch.nn.LayerNorm(8)
    torch.nn.init.normal_(attention.norm_q.weight)
    wanted = run(denoiser, (8, 8))
    torch.testing.assert_close(run(student(denoiser, SoftmaxAttention), (8, 8)), wanted)


def test_fused_projections_are_the_attentions_own_before_and_after() -> None:
    denoiser = student(tiny.unet().eval())
    wanted = run(denoiser, (16, 16))
    denoiser.fuse_qkv_projections()
    torch.testing.assert_close(run(denoiser, (16, 16)), wanted)
    before = tiny.unet().eval()
    before.fuse_qkv_projections()
    torch.testing.assert_close(run(student(before), (16, 16)), wanted)
    with pytest.raises(ValueError, match=r"fused projections \(call unfuse_qkv_projections first\)"):
        fused = tiny.unet().eval()
        fused.fuse_qkv_projections()
        replace(fused, Blend, train_projections=True)
    fused.unfuse_qkv_projections()
    torch.testing.assert_close(run(student(fused, train_projections=True), (16, 16)), wanted)
    of_its_own = student(tiny.unet().eval(), train_projections=True)
    of_its_own.fuse_qkv_projections()
    with pytest.raises(ValueError, match="did not call its trained projections"):
        run(of_its_own, (16, 16))


def adapted(denoiser: Any) -> Any:
    torch.manual_seed(3)
    names = ["to_q", "to_k", "to_v", "to_out.0"]
    denoiser.add_adapter(LoraConfig(r=2, target_modules=names, init_lora_weights=False))
    return denoiser


def test_adapters_count_before_and_after_surgery() -> None:
    plain, base = run(tiny.unet().eval(), (16, 16)), adapted(tiny.unet().eval())
    wanted = run(base, (16, 16))
    assert not torch.allclose(wanted, plain)
    for options in ({}, {"train_projections": True}):
        before = student(adapted(tiny.unet().eval()), SoftmaxAttention, **options)
        torch.testing.assert_close(run(before, (16, 16)), wanted)
        finalize(before)
        torch.testing.assert_close(run(before, (16, 16)), wanted)
        after = adapted(student(tiny.unet().eval(), SoftmaxAttention, **options))
        torch.testing.assert_close(run(after, (16, 16)), wanted)
        assert not any("mixer" in name and "lora" in name for name in after.state_dict())


def test_an_active_adapter_counts_in_the_start_from_the_teacher() -> None:
    path = "mid_block.attentions.0.transformer_blocks.0.attn1"
    plain, base = (made(tiny.unet().eval()).get_submodule(path) for made in (lambda unet: unet, adapted))
    x = torch.randn(1, 5, plain.query_dim)
    weights = attention_weights(base)
    torch.testing.assert_close(x @ weights.query.T, base.to_q(x), rtol=1e-4, atol=1e-5)
    assert weights.out_bias is not None
    torch.testing.assert_close(x @ weights.out.T + weights.out_bias, base.to_out[0](x), rtol=1e-4, atol=1e-5)
    assert attention_weights(plain).query is plain.to_q.weight


def test_copies_and_pickles_are_sites_of_their_own() -> None:
    for end in (lambda _: None, finalize):
        denoiser = student(train_projections=True)
        end(denoiser)
        with torch.no_grad():
            wanted = run(denoiser, SIZE)
            file = io.BytesIO()
            torch.save(denoiser, file)
            file.seek(0)
            for twin in (copy.deepcopy(denoiser), torch.load(file, weights_only=False)):
                assert torch.equal(run(twin, SIZE), wanted)
                for parameter in twin.transformer_blocks[0].attn1.parameters():
                    parameter.zero_()
                assert not torch.equal(run(twin, SIZE), wanted)
            assert torch.equal(run(denoiser, SIZE), wanted)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_are_the_same_with_either_form_of_checkpointing(reentrant: bool) -> None:
    gradients = []
    for way in (None, partial(checkpoint, use_reentrant=reentrant)):
        denoiser = student(train_projections=True)
        denoiser.pos_embed.proj.requires_grad_()  # the older form wants an input with a gradient
        if way is not None:
            denoiser.enable_gradient_checkpointing(way)
        run(denoiser, SIZE).square().mean().backward()
        gradients.append([p.grad for p in trained(denoiser).values()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("end", [lambda _: None, finalize], ids=["shell", "student"])
def test_blocks_are_recomputed_on_the_grid_that_they_had(end: Callable[[Any], None], reentrant: bool) -> None:
    denoiser = student(mixer=partial(NeighborhoodAttention, kernel_size=3), train_projections=True)
    end(denoiser)
    denoiser.pos_embed.proj.requires_grad_()  # the older form wants an input with a gradient
    run(denoiser, SIZE).square().mean().backward()
    wanted = [p.grad.clone() for p in denoiser.parameters() if p.grad is not None]
    denoiser.zero_grad()
    denoiser.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=reentrant))
    loss = run(denoiser, SIZE).square().mean()
    with torch.no_grad():
        run(denoiser, SIZE[::-1])
    loss.backward()
    found = [p.grad for p in denoiser.parameters() if p.grad is not None]
    assert len(found) == len(wanted) > 4
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_autocast_leaves_mixers_and_projections_in_float32() -> None:
    denoiser = student(train_projections=True)
    wanted = run(denoiser, SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(denoiser, SIZE)
    assert 0 < float((found - wanted).norm() / wanted.norm()) < 0.02
    found.float().square().mean().backward()
    assert all(p.dtype == torch.float32 and p.grad is not None for p in trained(denoiser).values())


def test_two_models_in_two_threads_do_not_meet() -> None:
    models = [student(mixer=mixer) for mixer in (SoftmaxAttention, partial(NeighborhoodAttention, kernel_size=3))]
    inputs = [example_inputs(model, batch=2, size=size) for model, size in zip(models, (SIZE, SIZE[::-1]), strict=True)]
    equal = [False, False]

    @torch.no_grad()
    def answer(number: int) -> Tensor:
        return models[number](**inputs[number], return_dict=False)[0]

    wanted = [answer(0), answer(1)]

    def repeat(number: int) -> None:
        equal[number] = all(torch.equal(answer(number), wanted[number]) for _ in range(10))

    threads = [threading.Thread(target=repeat, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal == [True, True]


@pytest.mark.parametrize("end", [lambda _: None, finalize], ids=["shell", "student"])
def test_weights_may_stay_elsewhere_until_they_are_used(end: Callable[[Any], None]) -> None:
    denoiser = student(train_projections=True)
    end(denoiser)
    with torch.no_grad():
        wanted = run(denoiser, SIZE)
        cpu_offload(denoiser, execution_device=torch.device("cpu"))
        assert all(p.is_meta for p in denoiser.transformer_blocks[0].attn1.parameters())
        torch.testing.assert_close(run(denoiser, SIZE), wanted)


def test_offloading_before_surgery_is_refused() -> None:
    denoiser = tiny.pixart().eval()
    add_hook_to_module(denoiser.transformer_blocks[0].attn1, ModelHook())
    with pytest.raises(ValueError, match=r"transformer_blocks\.0\.attn1 cannot be replaced.*offload .* after"):
        replace(denoiser, Blend)


def test_a_mixer_that_takes_the_name_of_trained_projections_is_refused() -> None:
    class Taken(Blend):
        trained_projections = None

    with pytest.raises(ValueError, match=r"Taken has a trained_projections of its own"):
        replace(tiny.pixart().eval(), Taken, train_projections=True)


@pytest.mark.parametrize("made", few([tiny.dit, tiny.pixart, tiny.unet], tiny.dit))
def test_graphs_of_sites_are_exported(made: Callable[[], Any]) -> None:
    for mixer in (SoftmaxAttention, partial(TileAttention, tile=3)):
        denoiser = student(made().eval(), mixer)
        finalize(denoiser)
        inputs = example_inputs(denoiser, batch=2) | {"return_dict": False}
        with torch.no_grad():
            wanted = denoiser(**inputs)[0]
            graph = torch.export.export(denoiser, (), inputs, strict=False)
            torch.testing.assert_close(graph.module()(**inputs)[0], wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "made", [tiny.dit, tiny.unet]
)  # PixArt's own transformer has no such form, with attention neither
@pytest.mark.parametrize("mixer", [DeltaConvBlock, partial(TileAttention, tile=3)])
def test_whole_students_run_as_onnx(made: Callable[[], Any], mixer: Any, tmp_path: Path) -> None:
    denoiser = student(made().eval(), mixer)
    finalize(denoiser)
    inputs = example_inputs(denoiser, batch=2) | {"return_dict": False}
    with torch.no_grad():
        wanted = denoiser(**inputs)[0]
        graph = torch.export.export(denoiser, (), inputs, strict=False)
        torch.onnx.export(graph, f=tmp_path / "student.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx", providers=["CPUExecutionProvider"])
    tensors = [value.numpy() for value in inputs.values() if isinstance(value, torch.Tensor)]
    named = {given.name: tensor for given, tensor in zip(session.get_inputs(), tensors, strict=True)}
    torch.testing.assert_close(torch.from_numpy(session.run(None, named)[0]), wanted, rtol=1e-4, atol=1e-5)


class CodedLinear(nn.Linear):
    """As bitsandbytes' layers: a linear layer whose weight is codes."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features)
        self.step = float(layer.weight.detach().abs().max()) / 127
        codes = (layer.weight.detach() / self.step).round().to(torch.int8)
        self.weight, self.bias = nn.Parameter(codes, requires_grad=False), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.step, self.bias)


def test_projections_of_codes_stay_and_are_not_trained() -> None:
    denoiser = tiny.dit().eval()
    attention = denoiser.transformer_blocks[0].attn1
    attention.to_q, attention.to_k = CodedLinear(attention.to_q), CodedLinear(attention.to_k)
    with pytest.raises(
        ValueError, match=r"blocks\.0\.attn1 cannot be replaced: it has weights that are stored as codes"
    ):
        replace(denoiser, SoftmaxAttention, train_projections=True)
    with torch.no_grad():
        wanted = run(denoiser, (8, 8))
        set_mode(replace(denoiser, SoftmaxAttention).values(), Mode.STUDENT)
        torch.testing.assert_close(run(denoiser, (8, 8)), wanted)
