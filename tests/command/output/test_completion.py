"""What a shell completes, asked of bash itself; no Python runs at a press of the tab key."""

from __future__ import annotations

import inspect
import shutil
import subprocess
from pathlib import Path

import pytest

import datamodules
import lightning_modules
from sparsight.__main__ import main
from sparsight.command.arguments import VERBS
from sparsight.command.output.completion import SHELLS, script
from sparsight.command.trainer import SparsightTrainer

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


@pytest.fixture(scope="module")
def completes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shell") / "sparsight.bash"
    path.write_text(script("bash"))
    return path


def completed(path: Path, line: str) -> list[str]:
    """Words for the last one of a line, which is what is there of it already."""
    words = line.split(" ")
    asked = f"COMP_WORDS=({' '.join(map(repr, words))}); COMP_CWORD={len(words) - 1}; _sparsight"
    told = 'printf "%s\\n" "${COMPREPLY[@]}"'
    found = subprocess.run(
        ["bash", "-uc", f"source {path}; {asked}; {told}"], capture_output=True, text=True, cwd=path.parent, check=True
    )
    assert not found.stderr
    return found.stdout.split()


def test_verbs_configs_and_classes(completes: Path) -> None:
    assert completed(completes, "sparsight ") == [*VERBS, "--help", "--version"]
    assert completed(completes, "sparsight be") == ["benchmark"]
    assert "experiment/quickstart" in completed(completes, "sparsight fit --config experiment/q")
    assert completed(completes, "sparsight fit --model Att") == ["AttentionDistillation"]
    assert completed(completes, "sparsight list sco") == ["scores"]
    assert completed(completes, "sparsight completion z") == ["zsh"]
    (completes.parent / "own.yaml").write_text("include: [shared/own]\n")
    assert completed(completes, "sparsight fit -c ow") == ["own.yaml"]
    assert completed(completes, "sparsight fit -c own.yaml --model.la") == ["--model.layers"]


def test_an_equals_sign_stands_for_a_blank_whether_the_shell_parts_words_there_or_not(completes: Path) -> None:
    assert completed(completes, "sparsight fit --config = experiment/quick") == ["experiment/quickstart"]
    assert completed(completes, "sparsight fit --config=experiment/quick") == ["--config=experiment/quickstart"]
    assert "AttentionDistillation" in completed(completes, "sparsight fit --model =")
    for given in ("--config=experiment/quickstart", "--config = experiment/quickstart"):
        assert completed(completes, f"sparsight fit {given} --model.mi") == ["--model.mixer"]


def test_options_whose_values_are_classes_are_given_one(completes: Path) -> None:
    assert completed(completes, "sparsight fit --model.mixer NoM") == ["NoMixing"]
    assert completed(completes, "sparsight fit --trainer.callbacks+ = SampleG") == ["SampleGrid"]
    assert completed(completes, "sparsight analyze --scores+=BlockI") == ["--scores+=BlockInfluence"]
    assert completed(completes, "sparsight fit --model.layers Top") == ["TopK"]
    assert completed(completes, "sparsight evaluate a --tasks pop") == ["pope"]


@pytest.mark.parametrize("text", ["class_path: lightning_modules.DenoiserTraining\n", "class_path: DenoiserTraining\n"])
def test_options_are_those_of_the_classes_on_the_line(completes: Path, text: str) -> None:
    start = "sparsight fit --config experiment/quickstart --model."
    assert completed(completes, f"{start}sampling.s") == ["--model.sampling.steps", "--model.sampling.size"]
    assert completed(completes, f"{start}mixer") == ["--model.mixer"] and not completed(completes, f"{start}base")
    assert completed(completes, "sparsight fit --model SparseLayerTuning --model.bas") == ["--model.base"]
    (completes.parent / "mine.yaml").write_text(f"model:\n  {text}")
    assert completed(completes, "sparsight fit --config mine.yaml --model.noise_s") == ["--model.noise_scheduler"]


def test_every_option_of_classes_and_trainer_is_there() -> None:
    text = script("bash")
    for part, module in (("model", lightning_modules), ("data", datamodules)):
        for name in module.__all__:
            kind = getattr(module, name)
            if name.endswith("DataModule") or part == "model":
                wanted = [f"--{part}.{option}" for option in inspect.signature(kind).parameters]
                line = next(line for line in text.splitlines() if f" {part}:{name}) " in line)
                assert not set(wanted) - set(line.replace('"', " ").split())
    known = {f"--trainer.{name}" for name in inspect.signature(SparsightTrainer).parameters} - {"--trainer.kwargs"}
    assert not known - set(text.split()) and "--trainer.max_steps" in text


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_are_sound(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", shell])
    assert not subprocess.run(["bash", "-n"], input=capsys.readouterr().out, text=True, check=True).stdout
    with pytest.raises(SystemExit, match="there is no shell 'bsh'; did you mean bash"):
        main(["completion", "bsh"])
