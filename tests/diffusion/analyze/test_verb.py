"""The ``analyze`` verb on a distillation: tables, files, candidates from the command line, what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_modules import AttentionDistillation
from sparsight.command.cli import main
from sparsight.diffusion.analyze.verb import PLOTS
from tests.tiny_distillation import distillation_config
from tests.tiny_rows import few

HEADS, SITES, BUCKETS = 2, 2, 2


def test_a_distillation_is_analysed_into_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(distillation_config(tmp_path))
    arguments = ["--batches", "4", "--buckets", str(BUCKETS), "--mixers+=NoMixing", "--mixers+=NeighborhoodAttention"]
    main(["analyze", "--config", config, *arguments, "--mixers.kernel_size", "3"])
    folder = tmp_path / "runs" / "analysis"
    said = capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {"analysis.json", "heads.csv", "mixers.csv", *PLOTS}
    heads = list(csv.DictReader((folder / "heads.csv").open()))
    mixers = list(csv.DictReader((folder / "mixers.csv").open()))
    assert len(heads) == SITES * BUCKETS * HEADS
    assert sum(int(row["samples"]) for row in heads if row["head"] == "0") == SITES * 4 * 4
    assert all(0 < float(row["effective_keys"]) <= 16 for row in heads)
    names = ["NoMixing", "NeighborhoodAttention(kernel_size=3x3)", "mean of v", "identity"]
    assert list(dict.fromkeys(row["mixer"] for row in mixers)) == names
    assert len(mixers) == SITES * len(names) * (1 + BUCKETS)
    content = json.loads((folder / "analysis.json").read_text())
    assert (content["batches"], sum(content["samples"]), content["mixers"]) == (4, 16, names[:2])
    assert content["sites"][1]["errors"]["NoMixing"]["all"]["after"] == pytest.approx(
        float(next(r["after"] for r in mixers if r["site"].endswith("1.attn1") and r["mixer"] == "NoMixing"))
    )
    assert 0 < content["least_flops"] < 1, "of which the next command's budget is made"
    table = said.partition("site ")[2].partition("analysis.json")[0]
    assert "transformer 1 " in table and "mean of v" in table and str(folder) in said
    assert max(map(len, table.splitlines())) <= 80


@pytest.mark.slow
def test_without_a_list_the_configured_mixers_are_analysed_and_trained_ones_as_they_are(tmp_path: Path) -> None:
    config = ["--config", str(distillation_config(tmp_path)), "--seed_everything", "1"]
    errors = []
    main(["fit", *config])
    (checkpoint,) = (tmp_path / "runs").rglob("*.ckpt")
    for given in ([], ["--ckpt_path", str(checkpoint)]):
        main(["analyze", *config, "--batches", "2", "--output", str(tmp_path / "o"), *given])
        content = json.loads((tmp_path / "o" / "analysis.json").read_text())
        (name,) = content["mixers"]
        assert name.partition("(")[0] == "DeltaConvBlock" and name.endswith("(trained)") == bool(given)
        errors.append([site["errors"][name]["all"]["prediction"] for site in content["sites"]])
    assert all(error > 0 for each in errors for error in each)
    assert errors[0] != errors[1]


@pytest.mark.slow
def test_a_teacher_is_analysed_with_mixers_that_are_named(tmp_path: Path) -> None:
    config = distillation_config(tmp_path)
    teacher = {"class_path": "DenoiserTraining", "init_args": {"pretrained": str(tmp_path / "teacher")}}
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"model": teacher}))
    main(["analyze", "--config", str(config), "--batches", "2", "--split", "val", "--mixers+=NoMixing"])
    content = json.loads((tmp_path / "runs" / "analysis" / "analysis.json").read_text())
    assert (content["model"], content["mixers"], content["split"]) == ("teacher", ["NoMixing"], "val")


def test_a_teacher_draws_in_its_own_precision_whatever_the_analysis_takes(tmp_path: Path) -> None:
    config = distillation_config(tmp_path)
    data = {"class_path": "TeacherSamplesDataModule", "init_args": {"mode": "trajectory", "count": 4, "val_count": 2}}
    data["init_args"] |= {
        "steps": 2,
        "dtype": "float16",
        "batch_size": 2,
        "cache": {"folder": str(tmp_path / "samples")},
    }
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"data": data}))
    main(["analyze", "--config", str(config), "--batches", "1", "--trainer.precision", "bf16-mixed"])
    assert (tmp_path / "runs" / "analysis" / "analysis.json").exists()


SCORES = (
    ["--scores+=BlockInfluence"],
    "scores looks at the decoder layers of image-text models, and AttentionDistillation has none",
)
MISTAKES = [
    SCORES,
    (["--maps", "ImageMaps"], "maps looks at the decoder layers of image-text models"),
    (["--buckets", "0"], "buckets is 0; allowed: 1 or more"),
    (["--batches", "0"], "batches is 0; allowed: 1 or more"),
    (["--mixers+=NoMixin"], "did you mean NoMixing"),
    (["--trainer.devices", "2"], "analyze runs in one process, not 2"),
    (["--budget", "0.01"], "budget is 0.01, but the cheapest choice of these mixers costs 0."),
    (["--budget", "1.5"], "budget is 1.5; allowed: above 0 and below 1"),
    (["--budget", "0.9", "--prediction_batches", "0"], "prediction_batches is 0; allowed: 1 or more, for a budget"),
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    few(MISTAKES, SCORES),
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_mistakes_end_in_one_readable_message(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["analyze", "--config", str(distillation_config(tmp_path)), *arguments])
    assert message in capsys.readouterr().err + str(stop.value)
    assert not (tmp_path / "runs" / "analysis").exists()


@pytest.mark.parametrize(("arguments", "message"), [SCORES, (["--budget", "1.5"], "budget is 1.5; allowed: above 0")])
def test_options_alone_are_looked_at_before_weights_are_loaded(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any, **options: Any) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr(AttentionDistillation, "load_base", load)
    with pytest.raises(SystemExit, match=message):
        main(["analyze", "--config", str(distillation_config(tmp_path)), *arguments])
