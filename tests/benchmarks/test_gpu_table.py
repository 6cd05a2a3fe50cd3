"""The GPU table, run on the CPU with tiny real models; on a GPU, its smallest real row."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu_report, gpu_table
from benchmarks.gpu_cases import ATTENTION, MODELS, STAGES, Model, Stages, Workshop
from blocks import DeltaConvBlock, Grid, TokenMixer
from sparsight.common.disk.journal import Journal
from sparsight.common.measure.roofline import Roofs
from sparsight.diffusion.measure.flops import attention_flops, count_flops
from sparsight.testing import SITE
from tests import tiny
from tests.tiny_mixers import WrongKernel

TINY = {"tiny_unet": Model(tiny.unet, "sd15", 1.0), "tiny_pixart": Model(tiny.pixart, "pixart", 1.0)}
CPU = torch.device("cpu")
Rows = list[dict[str, Any]]


class Few(Model):
    """One mixer only, and that one as small as it can be."""

    def mixers(self) -> dict[str, Callable[..., TokenMixer]]:
        return {"small": lambda site: DeltaConvBlock(site, kernel_size=1, scales=[1])}


def table(folder: Path, *arguments: str, models: dict[str, Model] | None = None) -> Rows:
    fixed = ["--output", str(folder), "--device", "cpu", "--runs", "3", "--layer_seconds", "60"]
    return gpu_table.main([*fixed, "--denoiser_seconds", "60", *arguments], models or TINY)


@pytest.fixture(scope="module", autouse=True)
def measured_once() -> Iterator[None]:
    """The limits of this machine, which take longer than tiny models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_table, "measure_roofs", cache(gpu_table.measure_roofs))
        yield


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    folder = tmp_path_factory.mktemp("table")
    rows = table(folder, "--modes", "eager", "--sizes", "128", "64", "--train_sizes", "64", "--dtype", "float32")
    return folder, rows


@pytest.mark.slow
def test_every_candidate_is_measured_at_every_shape(eager: tuple[Path, Rows]) -> None:
    rows = eager[1]
    found = {(row["level"], row["direction"], row["model"], row["kind"], row["pixels"]) for row in rows}
    kinds = [("tiny_unet", 0), ("tiny_unet", 1), ("tiny_pixart", 0)]
    assert found == {
        *(("layer", "forward", *kind, size) for kind in kinds for size in (64, 128)),
        *(("depthwise", "forward", *kind, size) for kind in kinds for size in (64, 128)),
        *(("denoiser", "forward", model, 0, size) for model in TINY for size in (64, 128)),
        *((level, "forward+backward", *kind, 64) for level in ("layer", "depthwise") for kind in kinds),
    }
    assert all(row["seconds"] > 0 and row["peak_bytes"] > 0 and not row["skipped"] for row in rows)
    layer = [row for row in rows if row["level"] == "layer" and row["model"] == "tiny_pixart" and row["pixels"] == 64]
    assert {row["candidate"] for row in layer} == {
        ATTENTION,
        "delta default, kernel 7",
        "delta paper, kernel 13",
        "delta released, kernel 13",
        "linear attention",
        "neighbourhood attention",
    }
    assert all((row["layers"], row["tokens"], row["channels"]) == (2, 16, 16) for row in layer)


@pytest.mark.slow
def test_floors_are_those_of_the_shape(eager: tuple[Path, Rows]) -> None:
    rows = eager[1]
    site = Workshop(TINY["tiny_pixart"], device=CPU, dtype=torch.float32, batch=2).kinds[0][0]
    (row,) = (r for r in rows if r["candidate"] == ATTENTION and r["channels"] == 16 and _at(r, "tiny_pixart", 128))
    assert row["least_flops"] == 2 * attention_flops(site, Grid(8, 8))
    assert row["weight_bytes"] == 4 * 4 * (16 * 16 + 16)
    assert row["least_bytes"] == row["weight_bytes"] + 4 * 2 * (2 * 64 * 16)
    (conv,) = (
        r
        for r in rows
        if r["part"] == "convolution at 0.5" and _at(r, "tiny_pixart", 128) and "default" in r["candidate"]
    )
    assert conv["least_flops"] == 2 * 2 * 7**2 * 8 * 4**2  # batch, multiply-add, kernel, E, half of 8x8
    assert conv["least_bytes"] == 4 * (2 * 2 * 8 * 4**2 + 8 * (7**2 + 1))


def _at(row: dict[str, Any], model: str, pixels: int) -> bool:
    return (row["model"], row["pixels"], row["direction"]) == (model, pixels, "forward")


@pytest.mark.slow
def test_the_page_the_csv_and_the_picture(eager: tuple[Path, Rows]) -> None:
    folder, rows = eager
    lines = list(csv.DictReader((folder / "rows.csv").open()))
    assert [float(line["seconds"]) for line in lines] == [row["seconds"] for row in rows]
    page = (folder / "table.md").read_text()
    by_name = {
        row["candidate"]: row["seconds"] for row in rows if row["level"] == "denoiser" and _at(row, "tiny_unet", 64)
    }
    ratio = by_name[ATTENTION] / by_name["delta default"]
    assert f"| {1e3 * by_name['delta default']:.3g} ({ratio:.2f}x) |" in page
    assert "Unfinished" not in page
    assert "compiled ms" not in page
    assert (folder / "table.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_finished_work_is_not_done_again(eager: tuple[Path, Rows], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, rows = eager
    journal = folder / "rows.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    *lines, last, _ = lines  # without the roofs of the end
    journal.write_text("".join(lines) + last[:40])  # killed while a line was written
    done: list[str] = []
    measure = gpu_table.Bench.measure
    monkeypatch.setattr(
        gpu_table.Bench, "measure", lambda bench, piece: (done.append(piece.key), measure(bench, piece))[1]
    )
    again = table(folder, "--modes", "eager", "--sizes", "64", "128", "--train_sizes", "64", "--dtype", "float32")
    assert done == [json.loads(last)["key"]]
    redone = len(json.loads(last)["result"])
    assert again[:-redone] == rows[:-redone]
    with pytest.raises(ValueError, match="begun with dtype 'float32', now it is 'bfloat16'"):
        table(folder)


def test_time_that_is_up_leaves_work_for_the_next_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--sizes", "64", "--levels", "layer", "--modes", "eager", "--train_sizes", "64"]
    few = {"few": Few(tiny.pixart, "pixart", 1.0)}
    assert table(tmp_path, *arguments, "--minutes", "0", models=few) == []
    assert "2 pieces are left: give the same command again" in capsys.readouterr().out
    assert len(table(tmp_path, *arguments, models=few)) == 2 * 3
    assert "left" not in capsys.readouterr().out


@pytest.mark.slow
def test_compiled_forms_are_compared_with_eager_and_timed(tmp_path: Path) -> None:
    few = {"few": Few(partial(tiny.pixart, num_layers=1), "pixart", 1.0)}
    arguments = ["--sizes", "64", "--train_sizes", "64", "--modes", "compiled", "--dtype", "float32"]
    rows = table(tmp_path / "right", *arguments, "--backend", "aot_eager", models=few)
    assert {(row["level"], row["direction"]) for row in rows} == {
        ("layer", "forward"),
        ("layer", "forward+backward"),
        ("depthwise", "forward"),
        ("denoiser", "forward"),
    }
    assert all(row["mode"] == "compiled" and row["seconds"] for row in rows)
    arguments[3] = "128"  # no backward passes from here on
    for backend, reason in ((_twice, "compiled, it differs from eager by 1.0e+00"), (_broken, "does not compile: ")):
        torch._dynamo.register_backend(backend, name=backend.__name__)
        wrong = table(
            tmp_path / backend.__name__, *arguments, "--levels", "layer", "--backend", backend.__name__, models=few
        )
        assert all(row["skipped"].startswith(reason) and row["seconds"] is None for row in wrong)
        assert reason in (tmp_path / backend.__name__ / "table.md").read_text()


def test_the_highest_roofs_count(tmp_path: Path) -> None:
    arguments = ["--levels", "layer", "--sizes", "64", "--minutes", "0"]
    table(tmp_path, *arguments)
    path = tmp_path / "rows.jsonl"
    about = json.loads(path.read_text().splitlines()[0])["about"]
    Journal(path, about).add("roofs", {"copy": 1e30, "matmul": 1.0, "vector": 1.0})
    table(tmp_path, *arguments)
    roofs = json.loads(path.read_text().splitlines()[-1])["result"]
    assert roofs["copy"] == 1e30
    assert roofs["matmul"] > 1e6


def _twice(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
    return lambda *args: tuple(2 * output for output in graph(*args))


def _broken(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
    raise RuntimeError("no such instruction")


def test_a_wrong_mixer_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Few, "mixers", lambda model: {"wrong": WrongKernel})
    arguments = ["--sizes", "64", "--levels", "layer", "denoiser", "--modes", "eager", "--train_sizes"]
    rows = table(tmp_path, *arguments, "64", models={"few": Few(tiny.pixart, "pixart", 1.0)})
    assert len(wrong := [row for row in rows if row["candidate"] == "wrong"]) == 3
    assert all("does not match its reference" in row["skipped"] and row["seconds"] is None for row in wrong)
    assert all(row["seconds"] for row in rows if row["candidate"] == ATTENTION)


def test_trouble_at_one_shape_costs_that_shape_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = Workshop.layer_cases

    def no_memory(workshop: Workshop, sites: Any, grid: Grid) -> Any:
        if grid.tokens > 16:
            raise torch.OutOfMemoryError("no more")
        return cases(workshop, sites, grid)

    monkeypatch.setattr(Workshop, "layer_cases", no_memory)
    arguments = ["--sizes", "64", "128", "--levels", "layer", "--modes", "eager", "--train_sizes", "64"]
    rows = table(tmp_path, *arguments, models={"few": Few(tiny.pixart, "pixart", 1.0)})
    assert {row["pixels"] for row in rows} == {64}
    assert "- layer eager forward few 128 0: out of memory" in (tmp_path / "table.md").read_text()


@pytest.mark.slow
def test_denoisers_share_what_is_not_replaced_and_count_as_the_counter_does() -> None:
    workshop = Workshop(TINY["tiny_unet"], device=CPU, dtype=torch.float32, batch=2)
    denoisers = workshop.denoisers()
    untouched = dict(denoisers[ATTENTION].named_parameters())
    for name, denoiser in denoisers.items():
        kept = [n for n, p in denoiser.named_parameters() if n in untouched]
        assert all(untouched[n] is denoiser.get_parameter(n) for n in kept)
        assert any("attn1" in n for n in kept) == (name == ATTENTION)
    for case in workshop.denoiser_cases(denoisers, 128):
        assert case.flops == count_flops(denoisers[case.candidate], size=(16, 16), batch=2)
        assert case.outputs == case.call().numel()


@pytest.mark.parametrize("merge", ["concat", "sum"])
def test_stages_are_the_block_without_its_linear_maps(merge: Any) -> None:
    mixer = DeltaConvBlock(SITE, kernel_size=3, merge=merge)
    hidden_BNC, grid = torch.randn(2, 63, 16), Grid(9, 7)
    stages, entry_BNE = Stages(mixer, grid), mixer.entry(hidden_BNC)
    torch.testing.assert_close(stages(entry_BNE), mixer.features(hidden_BNC, grid))
    assert {name.split(".")[1] for name, _ in stages.named_parameters()} == {"depthwise"}
    shapes = [tuple(map_BEHW.shape) for map_BEHW in stages.convolution_inputs(entry_BNE)]
    assert shapes == [(2, 8, 9, 7), (2, 8, 4, 3), (2, 8, 2, 1)]
    counter = FlopCounterMode(display=False)
    with counter:
        stages(entry_BNE)
    assert counter.get_total_flops() == sum(2 * 9 * 2 * 8 * h * w for _, _, h, w in shapes)


@pytest.mark.slow
def test_shapes_and_kernels_of_the_published_models() -> None:
    layers, kernels = {}, {}
    for name, model in MODELS.items():
        with torch.device("meta"):
            workshop = Workshop(model, device=torch.device("meta"), dtype=torch.bfloat16, batch=2)
        layers[name] = [(len(sites), sites[0].channels, sites[0].heads) for sites in workshop.kinds]
        grids = workshop.grids(4096)
        assert [grids[sites[0].path].tokens for sites in workshop.kinds] == {
            "sd15": [262144, 65536, 16384, 4096],
            "sdxl": [65536, 16384],
            "pixart_sigma": [65536],
        }[name]
        labels = [label for sites in workshop.kinds for label in workshop.distinct_mixers(sites)]
        kernels[name] = [int(label.split()[-1]) for label in labels if label.startswith("delta released")]
    assert layers == {
        "sd15": [(5, 320, 8), (5, 640, 8), (5, 1280, 8), (1, 1280, 8)],
        "sdxl": [(10, 640, 10), (60, 1280, 20)],
        "pixart_sigma": [(28, 1152, 16)],
    }
    assert kernels == {"sd15": [7, 11, 9, 5, 3], "sdxl": [9, 13, 7, 9], "pixart_sigma": [13]}


def test_the_verdict_on_depthwise_stages() -> None:
    def row(part: str, seconds: float | None, pixels: int) -> dict[str, Any]:
        fixed = {
            "level": "depthwise",
            "model": "m",
            "kind": 0,
            "mode": "eager",
            "direction": "forward",
            "candidate": "c",
        }
        return {**fixed, "part": part, "pixels": pixels, "seconds": seconds, "least_bytes": 1000, "least_flops": 1}

    rows = [row(STAGES, 1.0, 64), row(STAGES, 4.0, 128), row(STAGES, None, 256), row("convolution at 1", 2.0, 64)]
    roofs = Roofs(copy=1000.0, matmul=1.0, vector=1.0)
    assert gpu_report.verdict(gpu_report.lines_of(rows, roofs, "depthwise")) == (
        "1 of 2 blocks of stages fall short of 50% of the copy bandwidth (from 25.0% to 100.0%). "
        "0 of 1 single convolutions fall short of 50% of the copy bandwidth (from 50.0% to 50.0%)."
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_dry_run_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_table.main([])
    assert "--device cpu" in capsys.readouterr().err


def test_sizes_that_cannot_be_halved_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        table(tmp_path, "--sizes", "500")
    assert "multiples of 64 pixels" in capsys.readouterr().err


@pytest.mark.gpu
def test_the_smallest_real_row(tmp_path: Path) -> None:
    arguments = [
        "--output",
        str(tmp_path),
        "--models",
        "sd15",
        "--sizes",
        "512",
        "--levels",
        "layer",
        "--modes",
        "eager",
    ]
    rows = gpu_table.main([*arguments, "--runs", "5"])
    assert all(row["seconds"] and row["peak_bytes"] for row in rows), [row["skipped"] for row in rows]
    about = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])["about"]
    assert about["cuda"] and about["gpu_bytes"] > 0
