"""Tasks written in ReForm-Eval's published format come back equal, and a file appears whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datamodules.evaluation.published import PublishedTask
from datamodules.evaluation.task import EvaluationTask
from datamodules.evaluation.write import write_published
from sparsight.evaluation.questions.question import Formulation
from sparsight.evaluation.reform_eval.sample import Sample
from sparsight.lvlm.chat.conversation import Turn


class Fixed(EvaluationTask):
    """A task of given samples."""

    def __init__(self, *samples: Sample, formulation: Formulation = "SingleChoice") -> None:
        super().__init__(name="fixed", dimension="dialogue", formulation=formulation, instructions=["Look.", "See."])
        self.samples = samples

    def _open(self) -> None: ...

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def fingerprint(self) -> str:
        return "f"


def noise(mode: str) -> Image.Image:
    return Image.effect_noise((9, 6), 60).convert(mode)


def parts(sample: Sample) -> tuple[Any, ...]:
    """All that two equal samples have in common; images by mode and pixels."""
    images = tuple((image.mode, image.size, image.convert("RGBA").tobytes()) for image in sample.images)
    return (*(value for name, value in vars(sample).items() if name != "images"), images)


def read_back(path: Path, formulation: Formulation) -> PublishedTask:
    task = PublishedTask(file=path, dimension="dialogue", formulation=formulation)
    task.open()
    return task


def test_choices_come_back_equal(tmp_path: Path) -> None:
    said = (Turn("system", "Be short."), Turn("user", "Hi"), Turn("assistant", "Stra\u00dfe"))
    options = {"options": ("cat", "dog", "2"), "answer": 2}
    task = Fixed(
        Sample("a", ("What?", "Which <image> <image>?"), (noise("RGB"), noise("L")), **options),
        Sample("b", ("And now?",), (noise("RGBA"),), **options, history=said, turn=3, dialogue="talk"),
        Sample("c", ("No picture",), (), **options, references=("2", "two"), turn=0),
        Sample("d", ("Modes",), (noise("P"), noise("1"), noise("LA")), **options),
    )
    write_published(task, tmp_path / "sub/own.json", source="noise", seed=7)
    back = read_back(tmp_path / "sub/own.json", "SingleChoice")
    assert [parts(back[n]) for n in range(len(back))] == [parts(sample) for sample in task.samples]
    assert back.instructions == ["Look.", "See."]
    header = json.loads((tmp_path / "sub/own.json").read_text())
    assert {name: header[name] for name in ("dataset_name", "source", "seed", "fingerprint")} == {
        "dataset_name": "fixed",
        "source": "noise",
        "seed": 7,
        "fingerprint": "f",
    }
    assert header["data"][1]["answer"] == 2 and header["data"][1]["answer_options"] == ["cat", "dog", "2"]


def test_open_answers_come_back_equal(tmp_path: Path) -> None:
    task = Fixed(Sample("a", ("Read.",), (noise("RGB"),), references=("x", "y")), formulation="KIEOpenEnded")
    write_published(task, tmp_path / "own.json", source="noise")
    assert parts(read_back(tmp_path / "own.json", "KIEOpenEnded")[0]) == parts(task.samples[0])
    with pytest.raises(ValueError, match="says formulation 'KIEOpenEnded', but formulation is 'OCROpenEnded'"):
        read_back(tmp_path / "own.json", "OCROpenEnded")


def test_written_file_can_be_written_again(tmp_path: Path) -> None:
    task = Fixed(Sample("a", ("What?",), (noise("RGB"),), ("cat", "dog"), 0))
    write_published(task, tmp_path / "one.json", source="noise")
    write_published(read_back(tmp_path / "one.json", "SingleChoice"), tmp_path / "two.json", source="one")
    assert parts(read_back(tmp_path / "two.json", "SingleChoice")[0]) == parts(task.samples[0])


def test_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    sample = Sample("a", ("What?",), (), ("cat", "dog"), 0)
    with pytest.raises(ValueError, match="task 'fixed': sample 1 of task fixed repeats id 'a'"):
        write_published(Fixed(sample, sample), tmp_path / "own.json", source="x")
    assert not list(tmp_path.iterdir())
