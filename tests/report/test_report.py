"""The page of a run: self-contained, true to what the run logged, and nothing in it that should not be shared."""

from __future__ import annotations

import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from sparsight.__main__ import main
from sparsight.common.errors import ConfigurationError
from sparsight.lvlm.surgery.layer_record import write_layers
from sparsight.report.charts import line_chart, site_map
from sparsight.report.page import page, site_errors
from sparsight.report.read import RunFolder, read_run
from tests.tiny_browser import CHROMIUM, OPTIONS
from tests.tiny_evaluation import report

VOID = {"meta", "img", "input", "br"}
SITES = ("mid_block.attn1", "down_blocks.0.attn1")  # in another order than that of their letters
HOSTILE = "<script>alert(1)</script>"


class Reader(HTMLParser):
    """Refuses tags that are not closed in order, and keeps what a page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        """Open it."""
        self.references += [value for name, value in attrs if name in ("src", "href", "action", "data") and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        """Opened and closed at once, as in SVG."""

    def handle_endtag(self, tag: str) -> None:
        """Close it."""
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data: str) -> None:
        """Keep what is read, but no styles and scripts."""
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data + "\n"


def run_folder(folder: Path, *, loss: float = 0.5, board: bool = True) -> Path:
    """A log folder as a distillation leaves it."""
    values = {"train/loss": [(s, loss / (s + 1)) for s in range(0, 30, 10)], "val/output_relative_l2": [(29, 0.123456)]}
    values |= {f"val/relative_l2/{site}": [(29, 0.1 * (n + 1))] for n, site in enumerate(SITES)}
    values[f"val/{HOSTILE}"] = [(29, 1.0)]
    folder.mkdir(parents=True)
    if board:
        with SummaryWriter(str(folder)) as writer:
            for name, curve in values.items():
                for step, value in curve:
                    writer.add_scalar(name, value, step)
    else:
        names = list(values)
        rows = [{"step": step, name: value} for name, curve in values.items() for step, value in curve]
        lines = [",".join(["step", *names]), *(",".join(str(row.get(n, "")) for n in ["step", *names]) for row in rows)]
        (folder / "metrics.csv").write_text("\n".join(lines))
    (folder / "samples").mkdir()
    for step in (10, 30):
        Image.new("RGB", (90, 60), (step * 8, 0, 0)).save(folder / "samples" / f"step_{step:07d}.png")
    (folder / "metrics").mkdir()
    measured = {"name": "kid_x1000", "value": 58.37, "protocol": "100 images; 95 % interval of the mean 24.3"}
    (folder / "metrics" / "test_step_0000030.json").write_text(json.dumps([measured]))
    site = {
        "parameters_before": 66_000,
        "parameters_after": 46_800,
        "flops_before": 67_100_000,
        "flops_after": 12_600_000,
    }
    sites = [{"path": path} | site for path in reversed(SITES)]
    costs = {"sites": sites, "counted": "FLOPs are 2 per multiply-accumulate."} | {n: 3 * v for n, v in site.items()}
    (folder / "costs.json").write_text(json.dumps(costs))
    config = {
        "model": {
            "class_path": "lightning_modules.AttentionDistillation",
            "init_args": {"teacher": "/home/me/teacher"},
        },
        "trainer": {
            "logger": {"class_path": "WandbLogger", "init_args": {"api_key": "hf_" + "a1" * 17}},
            "max_steps": 30,
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    parts = [[f"user: {HOSTILE} and [[no mask]]", False], ["a shoe", True]]
    record = {"title": "train record 0", "id": "0", "facts": "9 tokens", "parts": parts, "options": [], "right": None}
    asked = {**record, "title": "val record 0", "parts": parts[:1], "options": ["a shoe", "a hat"], "right": 1}
    (folder / "conversations.json").write_text(json.dumps([record, asked]))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"")
    return folder


def test_a_run_that_logged_nothing_is_said_to_have_no_number_of_steps(tmp_path: Path) -> None:
    config = {"model": {"class_path": "SparseLayerTuning", "init_args": {"base": "demo_lvlm"}}}
    read = Reader(page([RunFolder("mine", tmp_path, config=config, text=yaml.safe_dump(config))]))
    assert "SparseLayerTuning of demo_lvlm" in read.text and "steps" not in read.text


def test_steps_are_those_of_the_last_value_or_the_last_samples(tmp_path: Path) -> None:
    assert (
        RunFolder("mine", tmp_path, curves={"loss": [(9, 1.0), (19, 0.5)]}, grids={0: tmp_path, 25: tmp_path}).steps
        == 25
    )
    assert RunFolder("mine", tmp_path, curves={"loss": [(29, 1.0)]}, grids={0: tmp_path}).steps == 30
    assert RunFolder("mine", tmp_path).steps == 0


@pytest.mark.parametrize("board", [True, False], ids=["tensorboard", "csv"])
def test_a_page_shows_what_was_logged_and_needs_nothing_else(tmp_path: Path, board: bool) -> None:
    run = read_run(run_folder(tmp_path / "runs" / "mine" / "version_0", board=board), name="mine")
    text = page([run])
    read = Reader(text)
    assert all(reference.startswith("data:image/png;base64,") for reference in read.references)
    assert len(read.references) == 2 and "@import" not in text and "url(" not in text
    for shown in ("mine", "AttentionDistillation of teacher, 30 steps", "val/output_relative_l2", "0.123", "58.4"):
        assert shown in read.text, shown
    assert re.findall(r"<mark>(.*?)</mark>", text) == ["marked", "a shoe"], "what carries the loss, and the legend"
    assert "[[no mask]]" in read.text and "* a hat" in read.text and "* a shoe" not in read.text
    assert "2 replaced sites" in read.text and "5.33x less" in read.text
    assert f"--ckpt_path {run.checkpoint}" in read.text
    assert list(site_errors(run)) == list(reversed(SITES)), "in the order of the network, not of letters"


def test_a_page_shows_which_layers_were_tuned_and_which_left(tmp_path: Path) -> None:
    run_folder(tmp_path / "mine")
    removals = [
        {"step": 4, "layers": [1], "measured": {"score": "block_influence", "values": [0.1] * 6}},
        {"step": 9, "layers": [3, 4], "measured": None},
    ]
    write_layers(tmp_path / "mine", depth=6, tuned=[0, 5], removals=removals)
    text = page([read_run(tmp_path / "mine")])
    read, kinds = Reader(text).text, re.findall(r'<span class="(\w+)" title="layer (\d): ([^"]+)">\2</span>', text)
    assert [(kind, int(layer), word) for kind, layer, word in kinds] == [
        ("tuned", 0, "tuned"),
        ("left", 1, "removed"),
        ("kept", 2, "as it was"),
        ("left", 3, "removed"),
        ("left", 4, "removed"),
        ("tuned", 5, "tuned"),
    ]
    assert "layer 1 left at step 4, the least by block_influence" in read and "layers 3, 4 left at step 9\n" in read


def test_a_resumed_run_is_shown_from_its_beginning(tmp_path: Path) -> None:
    first = run_folder(tmp_path / "lightning_logs" / "version_0", board=False)
    for name, text in {"version_1": "step,train/loss\n20,0.3\n30,0.2\n", "other": "step,train/loss\n30,9.0\n"}.items():
        folder = tmp_path / "lightning_logs" / name
        folder.mkdir()
        (folder / "config.yaml").write_text((first / "config.yaml").read_text())
        (folder / "metrics.csv").write_text(text)
    other = yaml.safe_load((first / "config.yaml").read_text()) | {"model": {"class_path": "Another"}}
    (tmp_path / "lightning_logs" / "other" / "config.yaml").write_text(yaml.safe_dump(other))
    longer = tmp_path / "lightning_logs" / "longer"  # went on with one more stage
    longer.mkdir()
    config = yaml.safe_load((first / "config.yaml").read_text())
    config["model"]["init_args"]["stages"] = [*config["model"]["init_args"].get("stages", []), {"steps": 10}]
    (longer / "config.yaml").write_text(yaml.safe_dump(config))
    (longer / "metrics.csv").write_text("step,train/loss\n40,0.1\n")
    assert read_run(longer).begun_in == tmp_path / "lightning_logs" / "version_1"
    assert [step for step, _ in read_run(longer).curves["train/loss"]] == [0, 10, 20, 30, 40]
    run = read_run(tmp_path / "lightning_logs" / "version_1")
    assert run.curves["train/loss"] == [(0, 0.5), (10, pytest.approx(0.5 / 11)), (20, 0.3), (30, 0.2)]
    assert list(run.grids) == [10] and run.begun_in == first
    assert f"resumed; its first steps are from {first}" in Reader(page([run])).text
    assert read_run(first).begun_in is None and read_run(tmp_path / "lightning_logs" / "other").begun_in is None


def test_curves_that_sum_up_come_first_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    tasks = {f"val/accuracy/likelihood/{n}": [(9, 0.5)] for n in range(30)}
    curves = {"train/loss": [(9, 1.0)], **tasks, "val/kept/visual": [(9, 1.0)], "val/loss": [(9, 0.2)]}
    text = page([RunFolder("mine", tmp_path, curves=curves)])
    headings = re.findall(r"<h3>(.*?)</h3>", text)
    assert headings[:3] == ["train/loss", "val/loss", "val/kept/visual"] and len(headings) == 24
    assert "9 more are in the logger" in text


def test_sites_of_a_unet_are_in_the_order_of_their_work_and_others_as_they_are_listed() -> None:
    def told(*paths: str) -> list[str]:
        costs = {"sites": [{"path": path} for path in paths]}
        curves = {f"val/relative_l2/{path}": [(0, 0.1)] for path in sorted(paths)}
        return list(site_errors(RunFolder(name="", folder=Path(), curves=curves, costs=costs)))

    assert told("down_blocks.1.a", "up_blocks.1.a", "mid_block.a") == [
        "down_blocks.1.a",
        "mid_block.a",
        "up_blocks.1.a",
    ]
    assert told("single.0", "joint.0") == ["single.0", "joint.0"]


def test_what_is_logged_cannot_write_into_the_page_and_secrets_stay_out(tmp_path: Path) -> None:
    text = page([read_run(run_folder(tmp_path / "run"), name=HOSTILE)])
    assert HOSTILE not in text and text.count("<script>") == 1
    assert "hf_a1" not in text and "/home/me" not in text


def test_runs_are_set_beside_each_other(tmp_path: Path) -> None:
    runs = [read_run(run_folder(tmp_path / name, loss=loss), name=name) for name, loss in (("one", 0.5), ("two", 0.25))]
    text = page(runs)
    assert Reader(text).text.count("kid_x1000") == 2
    first = text[text.index("<h3>train/loss</h3>") :]
    chart = first[: first.index("</svg>")]
    assert re.findall(r"<title>(\w+): ([\d.]+) at step 20", chart) == [("one", "0.0238"), ("two", "0.0119")]


def test_the_verb_finds_the_newest_run_and_writes_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder(tmp_path / "runs" / "version_0")
    newest = run_folder(tmp_path / "runs" / "version_1")
    main(["report", str(tmp_path / "runs")])
    assert capsys.readouterr().out == f"Report: {newest / 'report.html'}\n"
    Reader((newest / "report.html").read_text())
    (newest / "last.ckpt").touch()
    measured = tmp_path / "runs" / "version_2"
    with SummaryWriter(str(measured)) as writer:
        writer.add_scalar("test/output_relative_l2", 0.25, 0)
    (measured / "config.yaml").write_text((newest / "config.yaml").read_text())
    main(["report", str(tmp_path / "runs")])
    said = f"Report: {newest / 'report.html'}\nLater runs there trained nothing; name one for its page: {measured}\n"
    assert capsys.readouterr().out == said, "a measurement hides the run that it measured"
    text = Reader(page([read_run(measured)])).text
    assert "0.25" in text and "1 steps" not in text and "sparsight fit" not in text
    for arguments, message in (
        (["report", str(tmp_path / "no")], "report: .*no' does not exist"),
        (["report", str(tmp_path / "runs" / "version_0" / "samples")], "holds no run"),
        (["report", str(newest / "config.yaml")], "is no folder"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(arguments)


def test_an_evaluation_shows_its_scores_and_how_it_is_asked_again(tmp_path: Path) -> None:
    folder = report(tmp_path / "runs" / "asked", [True, True, True, False])
    read = Reader(page([read_run(tmp_path / "runs")]))
    assert (
        re.search(r"task talk\s+4\s+50\.0\s+75\.0 \(25\.0 to 100\.0\)", read.text) and "score (likelihood)" in read.text
    )
    assert "sparsight" not in read.text.partition("Again, and on")[2].partition("Made by")[0], "there is no config"
    config = {"model": {"class_path": "lightning_modules.LVLMEvaluation", "init_args": {"base": "demo_lvlm"}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    text = Reader(page([read_run(folder)])).text
    assert f"sparsight test --config {folder}/config.yaml" in text and "sparsight fit" not in text


def test_a_run_of_python_is_found_by_what_was_logged(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "runs" / "lightning_logs" / "version_0")
    (folder / "config.yaml").unlink()
    read = Reader(page([read_run(tmp_path / "runs")]))
    assert "val/output_relative_l2" in read.text and "sparsight fit" not in read.text


def test_a_damaged_run_is_told_in_a_line(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    (folder / "metrics" / "test_step_0000030.json").write_text("{")
    with pytest.raises(SystemExit, match=r"sparsight: .*test_step_0000030.json"):
        main(["report", str(folder)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="holds no run"):
        read_run(tmp_path / "empty")


def test_charts_take_any_values() -> None:
    assert line_chart({"a": [], "b": [(1, float("nan"))]}) == ""
    for curve in ([(0, 0.0)], [(0, 1.0), (5, 1.0)], [(0, -3.0), (1, 1e6)], [(n, 10.0**-n) for n in range(2000)][:300]):
        Reader(line_chart({"a": curve, "empty": []}))
    numbers = [float(y) for y in re.findall(r"[\d.]+,([\d.]+)", line_chart({"a": [(0, 1.0), (1, 100.0), (2, 1e4)]}))]
    assert numbers[0] - numbers[1] == pytest.approx(numbers[1] - numbers[2], abs=0.2), "the axis is not logarithmic"
    near = line_chart({"a": [(0, 0.4401), (1, 0.4409)]})
    assert re.findall(r'text-anchor="end">([\d.]+)<', near) == ["0.4402", "0.4404", "0.4406", "0.4408"]
    assert 'text-anchor="end">0.00178<' in line_chart({"a": [(9, 0.00177784)]})
    Reader(site_map({"a": float("inf"), "b": 0.0, HOSTILE: 1.0}))
    Reader(site_map({}))


def test_what_one_run_of_two_has_is_its_own(tmp_path: Path) -> None:
    """By name and colour."""
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "metrics.csv").write_text("step,train/loss\n20,0.3\n")
    text = page([read_run(bare), read_run(run_folder(tmp_path / "whole"), name="whole")])
    assert re.findall(r'<span class="bar"><span class="key (c\d)"', text) == ["c1", "c1"]
    assert "<h3>whole</h3>" in text.partition("<h2>Sites</h2>")[2]


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_shows_it_without_faults(tmp_path: Path, width: int, dark: bool) -> None:
    text = page([read_run(run_folder(tmp_path / name), name=name) for name in ("a_long_name_of_a_run" * 3, "two")])
    probe = """<script>
      const slider = document.querySelector("[data-grid] input");
      slider.value = 0; slider.dispatchEvent(new Event("input"));
      document.title = [document.documentElement.scrollWidth <= innerWidth,
        [...document.querySelectorAll("[data-grid]")[0].querySelectorAll("img")].map(i => i.hidden).join(),
        [...document.images].every(i => i.complete && (i.hidden || i.naturalWidth === 90)),
        getComputedStyle(document.body).backgroundColor].join("|");
    </script></body>"""
    (tmp_path / "page.html").write_text(text.replace("</body>", probe))
    options = [*OPTIONS, f"--window-size={width},900", "--hide-scrollbars"]
    options += ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    command = [str(CHROMIUM), *options, "--dump-dom", (tmp_path / "page.html").as_uri()]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    fits, hidden, complete, colour = re.findall("<title>(.*?)</title>", seen.stdout)[0].split("|")
    assert (fits, hidden, complete) == ("true", "false,true", "true")
    levels = torch.tensor([int(level) for level in re.findall(r"\d+", colour)[:3]])
    assert (levels < 60).all() if dark else (levels > 200).all()
    assert "Uncaught" not in seen.stderr
