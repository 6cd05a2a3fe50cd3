"""The command: config lookup, help, errors in one line, what may change against a checkpoint."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml

from sparsight.command.arguments import config_folders, find_config, resolve_configs
from sparsight.command.cli import SparsightCLI, main
from sparsight.common.checkpoint.run_record import FLAG_WINS
from sparsight.common.plain import flatten
from tests.tiny_distillation import distillation_config
from tests.tiny_rows import few

CONFIGS = sorted(str(p.relative_to("configs").with_suffix("")) for p in Path("configs").rglob("*.yaml"))


BELOW = {  # what fragments are put on
    "experiment": [],
    "callbacks": ["--config", "experiment/quickstart"],
    "shared": ["--config", "experiment/quickstart"],
    "analyze": ["--config", "experiment/quickstart"],
    "reform_eval": ["--model", "LVLMEvaluation", "--model.base", "some/model"],
}


@pytest.mark.parametrize("name", few(CONFIGS, *CONFIGS[::3]))
def test_every_shipped_config_parses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = name.partition("/")[0]
    verb, below = "analyze" if folder == "analyze" else "fit", BELOW[folder]
    with pytest.raises(SystemExit) as stop:
        main([verb, *below, "--config", name, "--print_config"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["class_path"]


def test_configs_are_found_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CONFIGS
    monkeypatch.chdir(tmp_path)
    assert Path(find_config(CONFIGS[0])).is_file()
    (tmp_path / "mine.yaml").write_text("{}")
    assert find_config("mine") == "mine.yaml"
    with pytest.raises(FileNotFoundError, match=f"(?s)no config 'experiment/nothing'.*{CONFIGS[0]}"):
        find_config("experiment/nothing")
    assert Path(resolve_configs(["fit", f"--config={CONFIGS[0]}"])[1].partition("=")[2]).is_file()
    assert resolve_configs(["fit", "--model", "DenoiserTraining"]) == ["fit", "--model", "DenoiserTraining"]
    assert config_folders()


class Run(NamedTuple):
    """A distillation that is over: the configuration that it was given, its folder and its checkpoint."""

    config: str
    folder: Path
    checkpoint: str
    said: list[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = str(distillation_config(tmp_path_factory.mktemp("run")))
    with redirect_stdout(StringIO()) as said:
        cli = main(["fit", "--config", config])
    assert cli.trainer.global_step == 4
    checkpoint = str(next(Path(cli.trainer.log_dir).rglob("*.ckpt")))
    return Run(config, Path(cli.trainer.log_dir), checkpoint, said.getvalue().splitlines())


def test_a_run_ends_with_what_it_wrote_and_what_comes_next(run: Run) -> None:
    written, checkpoint, *following = run.said[-6:]
    assert written.startswith(f"Written to {run.folder}: checkpoints/, config.yaml")
    assert [checkpoint, *following] == [
        f"Last checkpoint: {run.checkpoint}",
        "Next:",
        f"  sparsight validate --config {run.folder}/config.yaml --ckpt_path {run.checkpoint}",
        f"  sparsight export --config {run.folder}/config.yaml --ckpt_path {run.checkpoint} --weights raw",
        f"  tensorboard --logdir {run.folder}",
    ]


def test_fit_validate_and_predict_read_the_same_config(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    assert (run.folder / "config.yaml").is_file()
    validated = main(["validate", "--config", run.config, "--ckpt_path", run.checkpoint])
    assert float(validated.trainer.callback_metrics["val/output_relative_l2"]) > 0
    main(["predict", "--config", run.config, "--ckpt_path", run.checkpoint, "--images.folder", str(tmp_path / "drawn")])
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 24
    assert capsys.readouterr().out.splitlines()[-3:] == [
        f"Images: {tmp_path / 'drawn'}",
        "Next:",
        f"  sparsight export --config {run.config} --ckpt_path {run.checkpoint} --weights raw",
    ]
    assert not [each for each in recwarn if "dirpath has changed" in str(each.message)], "nothing is saved"
    with pytest.raises(SystemExit, match=r"images\.folder .*drawn is not empty: name a new folder"):
        main(["predict", "--config", run.config, "--images.folder", str(tmp_path / "drawn")])


def test_the_config_of_a_run_serves_for_every_verb(run: Run, tmp_path: Path) -> None:
    again = ["--ckpt_path", run.checkpoint, "--trainer.default_root_dir", str(tmp_path)]
    resumed = main(["fit", "--config", str(run.folder / "config.yaml"), *again])
    config = Path(resumed.trainer.log_dir) / "config.yaml"
    assert "ckpt_path" not in yaml.safe_load(config.read_text())
    for verb in SparsightCLI.subcommands():
        required = ["--output", str(tmp_path / "o")] if verb == "reformulate" else []
        with pytest.raises(SystemExit) as stop:
            main([verb, "--config", str(config), *required, "--print_config"])
        assert stop.value.code == 0, verb


def test_a_checkpoint_beats_no_flag_in_silence(run: Run) -> None:
    validate = ["validate", "--config", run.config, "--ckpt_path", run.checkpoint]
    changed = main([*validate, "--model.sampling.steps", "7", "--trainer.limit_val_batches", "1"])
    assert changed.model.sample_steps == 7
    with pytest.raises(SystemExit, match=r"(?s)condition_dropout: 0\.1 in the checkpoint, 0\.3 in the configuration"):
        main([*validate, "--model.condition_dropout", "0.3"])
    with pytest.raises(SystemExit, match=r"(?s)kernel_size: 3 in the checkpoint, 5 in the configuration"):
        mixer = '{"class_path": "DeltaConvBlock", "init_args": {"kernel_size": 5}}'
        main([*validate, "--model.mixer", mixer])
    assert "sampling.steps" in FLAG_WINS and "condition_dropout" not in FLAG_WINS
    assert torch.load(run.checkpoint, weights_only=True)["hyper_parameters"]["sampling"]["steps"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.no_such_option", "1"], "no_such_option"),
        (["--model.mixer", "NoSuchBlock"], "NoSuchBlock"),
        (["--model.teacher", "./nowhere"], "nowhere"),
        (["--model.mixer.kernel_size", "4"], "kernel_size in tokens is odd"),
        (["--model.sites", '{"include": ["nothing*"]}'], "no self-attention matches 'nothing*'"),
        (["--model.stages", "[]"], "at least one stage"),
        (["--config", "no/such/config"], "no config 'no/such/config'; shipped are"),
        (["--config", "no/such/config.yaml"], "no config 'no/such/config.yaml': there is no no"),
        (["--trainer.max_stepz", "3"], "max_stepz"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_mistakes_end_in_one_readable_message(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(distillation_config(tmp_path))
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", config, *arguments])
    said = capsys.readouterr().err + str(stop.value)
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists(), "nothing may be written before the configuration stands"


def test_what_a_callback_refuses_is_said_without_the_parsers_guesses(tmp_path: Path) -> None:
    schedule = ["--trainer.callbacks+=callbacks.PruningSchedule", "--trainer.callbacks.shape=one_shot"]
    with pytest.raises(
        SystemExit,
        match=r"^sparsight: trainer.callbacks.0.order is one of score, first, last, or a list of sites; got 'x'$",
    ):
        main(["fit", "--config", str(distillation_config(tmp_path)), *schedule, "--trainer.callbacks.order=x"])


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    config = str(distillation_config(tmp_path))
    with pytest.raises(SystemExit, match="gone"):
        main(["fit", "--config", config, "--data.train.images", str(tmp_path / "gone")])


def test_every_verb_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in SparsightCLI.subcommands():
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0
        assert "--model" in capsys.readouterr().out


def test_flatten_names_every_leaf() -> None:
    assert flatten({"a": {"b": [1, {"c": None}]}, "d": {}}) == {"a.b.0": 1, "a.b.1.c": None, "d": {}}
