"""The benchmark as a whole, on tiny real models."""

from __future__ import annotations

import copy
import csv
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import DiTTransformer2DModel

from benchmarks import training_step
from blocks import DeltaConvBlock, Grid, LinearAttention, NeighborhoodAttention
from lightning_modules import AttentionDistillation, DenoiserTraining
from sparsight.command.trainer import SparsightTrainer
from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.measure.benchmark import (
    Settings,
    benchmark_denoiser,
    benchmark_sites,
    distinct_sites,
    run_benchmark,
)
from sparsight.diffusion.measure.candidates import grid_of, size_for
from sparsight.diffusion.measure.flops import attention_flops, mixer_flops
from sparsight.diffusion.surgery.replace import Mode, finalize, replace, set_mode
from sparsight.diffusion.surgery.sites import students
from sparsight.diffusion.train.stages import Stage
from tests import tiny
from tests.tiny_flux import flux
from tests.tiny_mixers import WrongKernel
from tests.tiny_rows import few
from tests.tiny_wan import wan

CPU = torch.device("cpu")
QUICK = Settings(tokens=(64, 16), runs=3, max_seconds=60)


def student(**options: object) -> DiTTransformer2DModel:
    denoiser = tiny.dit()
    replace(denoiser, partial(DeltaConvBlock, **{"kernel_size": 3} | options))
    return denoiser


def test_files_hold_the_table_the_numbers_and_where_they_come_from(tmp_path: Path) -> None:
    denoiser = student()
    before = copy.deepcopy(denoiser.state_dict())
    seen: list[object] = []
    settings = Settings(tokens=(16, 64), dtypes=("float32", "bfloat16"), batch=2, runs=3, max_seconds=60)
    rows = run_benchmark(denoiser, settings, device=CPU, folder=tmp_path / "out", on_row=seen.append)
    assert seen == rows
    assert len(rows) == 2 * 2 * 2 * 2  # levels, precisions, sizes, passes
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {"benchmark.json", "benchmark.csv", "benchmark.txt", "benchmark.png"}
    written = json.loads((tmp_path / "out/benchmark.json").read_text())
    assert written["environment"]["threads"] == torch.get_num_threads()
    assert written["settings"]["tokens"] == [16, 64]
    lines = list(csv.DictReader((tmp_path / "out/benchmark.csv").open()))
    for row, line, plain in zip(rows, lines, written["rows"], strict=True):
        assert float(line["speedup"]) == plain["speedup"] == row.speedup
        assert row.speedup == plain["attention_seconds"] / plain["mixer_seconds"]
        assert row.memory_ratio == plain["attention_peak_bytes"] / plain["mixer_peak_bytes"]
    assert (tmp_path / "out/benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert "transformer_blocks.0.attn1 (2 heads, 16 channels)" in (tmp_path / "out/benchmark.txt").read_text()
    assert all(torch.equal(value, before[name]) for name, value in denoiser.state_dict().items())


def test_sizes_that_the_denoiser_does_not_take_are_told_and_left_out(tmp_path: Path) -> None:
    denoiser = tiny.sd3()  # its table of positions has 8x8 places
    replace(denoiser, partial(NeighborhoodAttention, kernel_size=3))
    settings = Settings(tokens=(16, 256), backward=False, runs=1, max_seconds=60)
    rows = run_benchmark(denoiser, settings, device=CPU, folder=tmp_path)
    assert [(row.level, row.tokens) for row in rows] == [("site", 16), ("site", 256), ("denoiser", 16)]
    told = "The whole denoiser is not measured at 256 tokens, which it does not take: Height (16) cannot be greater"
    assert told in (tmp_path / "benchmark.txt").read_text()


def test_rows_of_sites() -> None:
    rows = list(benchmark_sites(student(), QUICK, CPU))
    site = students(student())["transformer_blocks.0.attn1"].mixer.site
    mixer = DeltaConvBlock(site, kernel_size=3)
    assert [(row.tokens, row.direction) for row in rows] == [
        (16, "forward"),
        (16, "forward+backward"),
        (64, "forward"),
        (64, "forward+backward"),
    ]
    for row in rows:
        grid = Grid(row.height, row.width)
        assert (row.attention_flops, row.mixer_flops) == (attention_flops(site, grid), mixer_flops(mixer, grid))
        assert row.attention.timing is not None
        assert row.attention.timing.runs == 3
    assert rows[1].attention.peak > rows[0].attention.peak  # type: ignore[operator]


def test_rows_of_sites_with_text_beside_them_and_of_video() -> None:
    for made, mixer in ((flux(), DeltaConvBlock), (wan(), LinearAttention)):
        replace(made, mixer)
        rows = list(benchmark_sites(made, QUICK, CPU))
        assert rows and all(row.tokens == row.height * row.width for row in rows)


def test_backward_passes_can_be_left_out() -> None:
    rows = list(benchmark_denoiser(student(), Settings(tokens=(16,), runs=3, max_seconds=60, backward=False), CPU))
    assert [row.direction for row in rows] == ["forward"]
    assert rows[0].speedup is not None


def test_a_mixer_that_does_not_match_its_reference_is_not_timed(tmp_path: Path) -> None:
    denoiser = tiny.dit()
    replace(denoiser, WrongKernel)
    for row in run_benchmark(denoiser, Settings(tokens=(16,), runs=3, max_seconds=60), device=CPU, folder=tmp_path):
        assert row.attention.timing is not None
        assert (row.mixed.timing, row.mixed.peak, row.speedup) == (None, None, None)
        assert "does not match its reference" in row.mixed.skipped
    said = (tmp_path / "benchmark.txt").read_text()
    assert "no time of mixer: does not match its reference" in " ".join(said.split())
    assert max(map(len, said.partition("tokens  pass")[2].partition("FLOPs are")[0].splitlines())) <= 80


@pytest.mark.parametrize("family", few(["dit", "sdxl", "pixart"], "dit"))
def test_whole_denoisers_of_every_family_with_and_without_teachers(family: str) -> None:
    denoiser = tiny.FAMILIES[family]()
    shells = replace(denoiser, partial(NeighborhoodAttention, kernel_size=3))
    set_mode(shells.values(), Mode.STUDENT)
    with torch.enable_grad():
        denoiser.requires_grad_()
        next(iter(shells.values())).output = (denoiser.dtype, next(denoiser.parameters()) * 1)[1]  # as after a step
    settings = Settings(tokens=(64,), runs=3, max_seconds=60, backward=False)
    for _ in range(2):
        (row,) = benchmark_denoiser(denoiser, settings, CPU)
        assert row.tokens == 64
        assert row.speedup is not None
        finalize(denoiser)


def test_equal_sites_are_measured_once() -> None:
    denoiser = tiny.unet()
    replace(denoiser, partial(DeltaConvBlock, kernel_size={"up_blocks.*attentions.1.*": 5, "*": 3}))
    kinds = [(s.mixer.site.channels, s.mixer.options["kernel_size"]) for s in distinct_sites(denoiser).values()]
    assert sorted(kinds) == [(16, 3), (16, 5), (32, 3)]
    assert len(students(denoiser)) == 4


def test_grids_and_sizes_that_have_so_many_tokens() -> None:
    assert [grid_of(n) for n in (1, 12, 256, 512, 13)] == [
        Grid(1, 1),
        Grid(3, 4),
        Grid(16, 16),
        Grid(16, 32),
        Grid(1, 13),
    ]
    assert size_for(tiny.dit(), 16, (8, 8), 64) == (16, 16)
    assert size_for(tiny.unet(), 256, (16, 16), 1024) == (32, 32)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tokens": ()}, "tokens"),
        ({"tokens": (0,)}, "tokens"),
        ({"dtypes": ("float8",)}, "float8"),
        ({"runs": 0}, "runs"),
        ({"max_seconds": 0}, "max_seconds"),
        ({"clock": "stop"}, "clock is wall or processor"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Settings(**options)  # type: ignore[arg-type]


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = str(tiny.save_pixel_pipeline(tmp_path / "teacher"))
    module = AttentionDistillation(teacher, partial(DeltaConvBlock, kernel_size=3), [Stage("layerwise", 1)])
    trainer = SparsightTrainer(default_root_dir=tmp_path, accelerator="cpu", logger=False)
    trainer.benchmark(module, tokens=[16], runs=3, max_seconds=60, backward=False)
    printed = capsys.readouterr().out
    assert "measured transformer_blocks.0.attn1, 16 tokens" in printed
    assert str(tmp_path / "benchmark") in printed
    assert (tmp_path / "benchmark/benchmark.json").is_file()


def test_the_verb_refuses_a_module_without_mixers(tmp_path: Path) -> None:
    module = DenoiserTraining.__new__(DenoiserTraining)
    torch.nn.Module.__init__(module)
    module.denoiser = tiny.dit()
    trainer = SparsightTrainer(default_root_dir=tmp_path, accelerator="cpu", logger=False)
    with pytest.raises(ConfigurationError, match="DenoiserTraining has no mixers"):
        trainer.benchmark(module, tokens=[16])


def test_training_step_measures_both_recipes(tmp_path: Path) -> None:
    teacher = str(tiny.save_pixel_pipeline(tmp_path / "teacher", sample_size=16))
    output = tmp_path / "step.json"
    (result,) = training_step.main(
        ["--teacher", teacher, "--batch_sizes", "8", "--runs", "3", "--max_seconds", "60", "--output", str(output)]
    )
    assert json.loads(output.read_text())["results"][0]["ratio"] == result["ratio"]
    seconds = result["seconds"]
    assert result["ratio"] == seconds["usual"] / seconds["layerwise"]
    assert result["ceiling"] == (seconds["teacher"] + seconds["student"]) / (seconds["teacher"] + seconds["mixers"])
    assert result["share_of_memory"] < 0.8


def test_both_recipes_train_the_mixers_and_nothing_else(tmp_path: Path) -> None:
    module = training_step.distillation(str(tiny.save_pixel_pipeline(tmp_path / "t")), "default", CPU)
    noised = training_step.noised_batch(module, 4)
    usual = training_step.UsualRecipe(module)
    reached: dict[str, set[str]] = {}
    for name, network, step in (
        ("layerwise", module.denoiser, partial(training_step.layerwise_step, module, noised)),
        ("usual", usual.student, partial(usual.step, noised)),
    ):
        reached[name] = set()
        for path, parameter in network.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(partial(_note, reached[name], path.replace(".student.", ".")))
        step()
        assert all(parameter.grad is None for parameter in network.parameters())
    trained = {n.removeprefix("denoiser.").replace(".student.", ".") for n in module.trained_names()}
    assert reached["layerwise"] == reached["usual"] == trained


def _note(reached: set[str], name: str, gradient: torch.Tensor) -> None:
    if gradient.any():
        reached.add(name)
