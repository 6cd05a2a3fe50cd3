"""GenEval's prompts drawn into the folders that its scorer reads, and what its scorer wrote read back."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from callbacks import GenEvalImages
from datamodules import TeacherSamplesDataModule
from lightning_modules import DenoiserTraining
from sparsight.common.disk.cache_options import CacheOptions
from sparsight.common.errors import ConfigurationError
from sparsight.common.finite import NonFiniteError
from sparsight.diffusion.model.sampling import Sampling
from sparsight.evaluation.images.images import to_uint8
from sparsight.publish.facts import read_metrics
from sparsight.publish.geneval import geneval_scores
from sparsight.report.read import read_run
from tests import tiny

PROMPTS = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"},
    {"tag": "counting", "include": [{"class": "cat", "count": 2}], "prompt": "two cats"},
    {"tag": "counting", "include": [{"class": "dog", "count": 3}], "prompt": "three dogs"},
]


def asked(folder: Path) -> str:
    file = folder / "evaluation_metadata.jsonl"
    file.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    return str(file)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_sd_pipeline(tmp_path_factory.mktemp("teacher") / "sd"))


@pytest.fixture(scope="module")
def module(pipeline: str) -> DenoiserTraining:
    return DenoiserTraining(pretrained=pipeline, sampling=Sampling(2))


def process(folder: Path, *, rank: int, processes: int) -> Any:
    """What the callback asks of the trainer of one of several processes."""
    plain = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    given = {"log_dir": str(folder), "world_size": processes, "global_rank": rank, "is_global_zero": rank == 0}
    return SimpleNamespace(**given, precision="32-true", precision_plugin=plain.precision_plugin)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_run_draws_what_the_scorer_reads(pipeline: str, module: DenoiserTraining, tmp_path: Path) -> None:
    cache = CacheOptions(str(tmp_path / "cache"))
    data = TeacherSamplesDataModule(
        pipeline, captions=["x"], count=2, val_count=1, sampling={"steps": 1}, batch_size=1, mode="samples", cache=cache
    )
    callback = GenEvalImages(asked(tmp_path), samples=2, batch_size=4)
    trainer = Trainer(
        accelerator="cpu",
        logger=CSVLogger(tmp_path),
        callbacks=[callback],
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    trainer.test(module, datamodule=data, verbose=False)
    folder = Path(str(trainer.log_dir)) / "geneval"
    samples = [f"{prompt:05d}/samples/{number:05d}.png" for prompt in range(3) for number in range(2)]
    assert files(folder) == sorted(["drawing.txt", *samples, *(f"{prompt:05d}/metadata.jsonl" for prompt in range(3))])
    for prompt, wanted in enumerate(PROMPTS):
        with (folder / f"{prompt:05d}" / "metadata.jsonl").open() as file:
            assert json.load(file) == wanted  # as the scorer reads it
        captions = {"caption": [wanted["prompt"]] * 2}
        drawn = to_uint8(module.draw(captions, torch.tensor([prompt, prompt + 3])))
        for number, pixels in enumerate(drawn):
            image = Image.open(folder / f"{prompt:05d}" / "samples" / f"{number:05d}.png")
            assert np.abs(np.asarray(image).astype(int) - pixels.permute(1, 2, 0).numpy()).max() <= 1
    assert "6 samples, seed 0, 2 sampler steps" in (folder / "drawing.txt").read_text()
    with pytest.raises(ConfigurationError, match="geneval is not empty: name another folder, or delete it"):
        GenEvalImages(asked(tmp_path), folder=str(folder)).setup(trainer, module, "test")


def test_two_processes_write_what_one_does(module: DenoiserTraining, tmp_path: Path) -> None:
    for processes in (1, 2):
        callback = GenEvalImages(asked(tmp_path), samples=3, folder=str(tmp_path / str(processes)), batch_size=2)
        for rank in range(processes):
            callback.on_test_epoch_end(process(tmp_path, rank=rank, processes=processes), module)
    one, two = tmp_path / "1", tmp_path / "2"
    assert files(one) == files(two) and len(files(one)) == 3 * (1 + 3) + 1
    for name in files(one):
        if name.endswith("png"):
            pair = [np.asarray(Image.open(folder / name)).astype(int) for folder in (one, two)]
            assert np.abs(pair[0] - pair[1]).max() <= 1
        else:
            assert (one / name).read_text() == (two / name).read_text()


def test_what_cannot_be_drawn_is_refused(module: DenoiserTraining, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="prompts: there is no file nowhere"):
        GenEvalImages("nowhere.jsonl")
    for content, message in {
        "": "is empty",
        "{": "line 1: not JSON",
        '{"prompt": "a cat"}': "line 1: expected an object with prompt and tag",
        "[1]": "line 1: expected an object",
    }.items():
        (tmp_path / "other.jsonl").write_text(content)
        with pytest.raises(ValueError, match=message):
            GenEvalImages(str(tmp_path / "other.jsonl"))
    with pytest.raises(ValueError, match="samples is 0"):
        GenEvalImages(asked(tmp_path), samples=0)
    callback = GenEvalImages(asked(tmp_path), folder=str(tmp_path / "drawn"))
    labels = DenoiserTraining(pretrained=str(tiny.save_pixel_pipeline(tmp_path / "dit")), sampling=Sampling(2))
    with pytest.raises(ConfigurationError, match=r"given captions, but DiT.* is conditioned on labels"):
        callback.setup(process(tmp_path, rank=0, processes=1), labels, "test")
    broken = torch.rand(2, 3, 4, 4)
    broken[1] = torch.nan
    with pytest.raises(NonFiniteError, match="drawn images: pixels of sample 7 is not finite"):
        callback._write(broken, torch.tensor([3, 7]), [True, True], tmp_path / "drawn")
    assert not (tmp_path / "drawn").exists()


# -- results -----------------------------------------------------------------------------------------------------


def scored(file: Path) -> Path:
    """What GenEval's scorer writes: four images of three prompts, by pandas, in the order of the disk."""
    right = {(1, 0): True, (0, 1): False, (0, 0): True, (2, 0): False}
    rows = [
        {
            "filename": f"drawn/{prompt:05d}/samples/{number:05d}.png",
            "tag": PROMPTS[prompt]["tag"],
            "prompt": PROMPTS[prompt]["prompt"],
            "correct": correct,
            "reason": "" if correct else "expected cat>=2, found 1",
            "metadata": json.dumps(PROMPTS[prompt]),
            "details": "{}",
        }
        for (prompt, number), correct in right.items()
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_json(file, orient="records", lines=True)
    return file


def test_scores_are_those_of_the_summary_of_geneval(tmp_path: Path) -> None:
    file = scored(tmp_path / "results.jsonl")
    (tmp_path / "drawing.txt").write_text("6 samples, seed 0\n")
    table = pd.read_json(io.StringIO(file.read_text()), orient="records", lines=True)
    tasks = table.groupby("tag")["correct"].mean()
    scores, protocol = geneval_scores(file)
    assert scores == pytest.approx(
        {
            "geneval_overall": tasks.mean(),
            "geneval_counting": tasks["counting"],
            "geneval_single_object": tasks["single_object"],
            "geneval_images": table["correct"].mean(),
            "geneval_prompts": table.groupby("metadata")["correct"].any().mean(),
        }
    )
    assert scores["geneval_overall"] == 0.5 and scores["geneval_prompts"] == pytest.approx(2 / 3)
    assert protocol == "6 samples, seed 0; GenEval's scorer on 4 images of 3 prompts"
    assert {metric.name: metric.value for metric in read_metrics(file)} == scores


def test_the_report_of_a_run_shows_them(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed_everything: 0\n")
    scored(tmp_path / "geneval" / "results.jsonl")
    metrics = read_run(tmp_path).metrics
    assert metrics["geneval"][0].name == "geneval_overall" and metrics["geneval"][0].value == 0.5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no result of GenEval's scorer"),
        ("{", "line 1: not JSON"),
        ('{"tag": "counting"}', "line 1: expected an object with tag, metadata and correct"),
        ('{"correct": true, "tag": "counting"}', "line 1: there is no 'metadata'"),
    ],
)
def test_files_of_something_else_are_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_metrics(tmp_path / "results.jsonl")
