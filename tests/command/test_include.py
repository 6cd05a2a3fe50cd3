"""Configs that are laid over others, and what experiments may not repeat."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparsight.command.arguments import check_arguments, find_config, read_config, resolve_configs, set_back
from sparsight.command.cli import main
from sparsight.common.errors import ConfigurationError
from sparsight.common.plain import flatten
from tests.tiny_distillation import distillation_config

EXPERIMENTS = sorted(Path("configs/experiment").glob("*.yaml"))
MOST = 8  # of about 25 experiments that write the same setting; more share it in a file that they include
OWN = ("class_path", "dropout", "batch_size", "num_workers")  # what a reader wants to see where it is used


def write(folder: Path, **files: Any) -> None:
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_a_config_includes_comes_before_it_and_once(here: Path) -> None:
    write(here, bottom={"trainer": {}}, left={"include": ["bottom"]}, right={"include": ["bottom.yaml"]})
    write(here, top={"include": ["left", "right"]}, other={"include": ["left"]})
    found = ["bottom.yaml", "left.yaml", "right.yaml", "top.yaml"]
    assert resolve_configs(["fit", "--config", "top", "--x"]) == [
        *("fit", "--config", "bottom.yaml", "--config", "left.yaml", "--config", "right.yaml", "--config", "top.yaml"),
        "--x",
    ]
    assert resolve_configs(["fit", "--config=top"]) == ["fit", *(f"--config={name}" for name in found)]
    again = resolve_configs(["fit", "-c", "top", "-c", "other.yaml"])
    assert [value for value in again if value != "-c"] == ["fit", *found, "other.yaml"], "left is not laid over top"
    assert resolve_configs(again) == again, "started once more, as for another process, it stays as it is"


def test_a_config_may_be_included_from_its_own_folder_or_by_a_shipped_name(here: Path) -> None:
    (here / "mine").mkdir()
    write(here / "mine", run={"include": ["base", "shared/standard"]}, base={"trainer": {"max_steps": 3}})
    assert resolve_configs(["fit", "--config", "mine/run.yaml"])[2:5:2] == [
        "mine/base.yaml",
        find_config("shared/standard"),
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": {"include": "b"}}, r"a\.yaml: include is 'b'; allowed: a list of names of configs"),
        ({"a": {"include": {"b": 1}}}, r"a\.yaml: include is .*; allowed: a list"),
        ({"a": {"include": [1]}}, r"a\.yaml: include is \[1\]; allowed: a list"),
        (
            {"a": {"include": ["shared/standrd"]}},
            r"a\.yaml: include: no config 'shared/standrd'; did you mean shared/sta",
        ),
        ({"a": {"include": ["a"]}}, r"a\.yaml includes a\.yaml: leave one of them out"),
        (
            {"a": {"include": ["b"]}, "b": {"include": ["./a.yaml"]}},
            r"a\.yaml includes b\.yaml includes a\.yaml: leave",
        ),
        ({"a": {"include": ["b"]}, "b": ["x"]}, r"b\.yaml holds a list, not a mapping"),
    ],
)
def test_mistakes_are_told_with_the_file_before_anything_is_imported(here: Path, files: Any, message: str) -> None:
    write(here, **files)
    with pytest.raises((ConfigurationError, FileNotFoundError), match=message):
        check_arguments(["fit", "--config", "a"])


def test_the_command_line_has_config_for_that() -> None:
    with pytest.raises(ConfigurationError, match=r"include stands in config files: on the command line give --config"):
        resolve_configs(["fit", "--include", "shared/standard"])


def test_an_option_that_an_included_file_overrules_is_told(here: Path) -> None:
    write(here, base={"trainer": {"max_steps": 3}}, top={"include": ["base"]})
    (line,) = set_back(resolve_configs(["fit", "--trainer.max_steps", "2", "--config", "top"]))
    assert line.startswith("--trainer.max_steps 2 is set back to 3 by base.yaml")


def test_a_run_combines_them_as_they_are_read_and_keeps_the_whole(here: Path) -> None:
    """The run's own config.yaml needs no other file."""
    whole = yaml.safe_load(distillation_config(here).read_text())
    callbacks = [{"class_path": "Throughput"}]
    write(here, base={**whole, "trainer": {**whole["trainer"], "max_steps": 9, "callbacks": callbacks}})
    monitor = {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}
    trained = {"trained": {"init_samples": 0}}
    top = {"trainer": {"max_steps": 1, "callbacks+": [monitor]}, "model": {"init_args": trained}}
    write(here, top={"include": ["base"], **top})
    run = main(["fit", "--config", "top"])
    kept = yaml.safe_load((Path(run.trainer.log_dir) / "config.yaml").read_text())
    assert run.trainer.global_step == 1 and "include" not in kept
    assert kept["model"]["init_args"]["trained"]["init_samples"] == 0
    names = [each["class_path"].rpartition(".")[2] for each in kept["trainer"]["callbacks"]]
    assert names == ["Throughput", "LearningRateMonitor"]
    assert read_config("top")["trainer"]["callbacks"] == [*callbacks, monitor]
    assert read_config("top")["model"]["init_args"] == {**whole["model"]["init_args"], **trained}


def test_another_class_takes_no_options_of_the_one_below(here: Path) -> None:
    write(here, base={"data": {"class_path": "A", "init_args": {"x": 1}}})
    write(here, top={"include": ["base"], "data": {"class_path": "B", "init_args": {"y": 2}}})
    assert read_config("top") == {"data": {"class_path": "B", "init_args": {"y": 2}}}


def settings(content: dict[str, Any]) -> set[tuple[str, str]]:
    """Every setting outside a list with its value, and every callback without options."""
    flat = flatten({key: value for key, value in content.items() if key != "include"})
    found = {(key, str(value)) for key, value in flat.items() if not any(part.isdigit() for part in key.split("."))}
    callbacks = [*content["trainer"].get("callbacks", []), *content["trainer"].get("callbacks+", [])]
    return found | {("callback", each["class_path"]) for each in callbacks if "init_args" not in each}


def test_experiments_do_not_repeat_what_they_can_include() -> None:
    contents = [yaml.safe_load(path.read_text()) for path in EXPERIMENTS]
    counted = Counter(setting for content in contents for setting in settings(content))
    repeated = {f"{key}: {value}": count for (key, value), count in counted.items() if count > MOST}
    assert not {setting: n for setting, n in repeated.items() if setting.partition(":")[0].split(".")[-1] not in OWN}
    assert all(content.get("include") for content in contents), "an experiment that shares nothing with others"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_write_their_model_once(path: Path) -> None:
    """Data follow the module: what is in both would have to be changed in both."""
    content = read_config(f"experiment/{path.stem}")
    model, data = content["model"]["init_args"], content["data"]["init_args"]
    written = flatten(model)
    pairs = [("teacher", "teacher"), ("guidance_scale", "sampling.guidance_scale"), ("model", "base")]
    assert not [option for option, source in pairs if option in data and source in written]
