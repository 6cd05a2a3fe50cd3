"""What users install: the wheel's content, the version pins, the command's quick answers and start-up checks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from email.message import Message
from email.parser import Parser
from importlib.metadata import distribution
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sparsight
from sparsight.__main__ import HELP
from sparsight.command.startup import PLUGINS, check_plugins, check_torch_pair
from sparsight.common.import_path import current_folder_last
from tests.tiny_rows import few

ROOT = Path(__file__).parents[1]
PACKAGES = {"sparsight", *PLUGINS}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return ZipFile(next(folder.glob("*.whl")))


@pytest.fixture(scope="module")
def metadata(wheel: ZipFile) -> Message:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


@pytest.fixture(scope="module")
def pins() -> dict[str, Requirement]:
    lines = (ROOT / "tests/constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(r.name): r for r in requirements}


def run_sparsight(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sparsight", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


# -- the wheel ---------------------------------------------------------------------------------------------------


def test_wheel_holds_the_five_packages_and_nothing_else(wheel: ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == PACKAGES


def test_every_package_in_the_wheel_says_that_it_is_typed(wheel: ZipFile) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(wheel.namelist())


def test_wheel_holds_every_config_where_the_command_looks_for_it(wheel: ZipFile) -> None:
    shipped = {f"sparsight/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.*")}
    assert shipped
    assert {name for name in wheel.namelist() if name.startswith("sparsight/configs/")} == shipped


@pytest.mark.parametrize("teacher", ["fashion_mnist_dit", "emoji_sd3"])
def test_wheel_holds_the_teachers_that_are_shipped(wheel: ZipFile, teacher: str) -> None:
    folder = f"sparsight/assets/{teacher}"
    weights = wheel.getinfo(f"{folder}/transformer/diffusion_pytorch_model.safetensors")
    assert 1_000_000 < weights.file_size < 12_000_000
    assert f"{folder}/model_index.json" in wheel.namelist()


def test_wheel_names_version_licence_and_bars_uploads(metadata: Message) -> None:
    assert metadata["Version"] == sparsight.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Private :: Do Not Upload" in metadata.get_all("Classifier", [])


# -- versions ----------------------------------------------------------------------------------------------------


def test_every_dependency_has_a_lower_and_an_upper_bound(metadata: Message) -> None:
    for requirement in map(Requirement, metadata.get_all("Requires-Dist", [])):
        assert {s.operator for s in requirement.specifier} == {">=", "<"}, str(requirement)


def test_every_tested_dependency_is_pinned_within_its_range(metadata: Message, pins: dict[str, Requirement]) -> None:
    for requirement in map(Requirement, metadata.get_all("Requires-Dist", [])):
        if any(extra in str(requirement.marker) for extra in ("fused", "quantised", "topiq", "video", "wandb")):
            continue  # optional, and not part of what the tests run with
        pin = pins[canonicalize_name(requirement.name)]
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert exact.version in requirement.specifier, f"{pin} is outside {requirement}"


def test_constraints_hold_names_and_versions_only(pins: dict[str, Requirement]) -> None:
    for pin in pins.values():
        assert pin.url is None
        assert not pin.extras


def test_pinned_torchvision_takes_the_pinned_torch(pins: dict[str, Requirement]) -> None:
    versions = {name: next(iter(pins[name].specifier)).version for name in ("torch", "torchvision")}
    installed = distribution("torchvision")
    if installed.version.split("+")[0] != versions["torchvision"]:
        pytest.skip("says something of the pinned versions only, which are not installed")
    wanted = next(r for r in map(Requirement, installed.requires or []) if r.name == "torch")
    assert versions["torch"] in wanted.specifier


# -- the command -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "answer"), [("--version", f"sparsight {sparsight.__version__}\n"), ("--help", HELP)]
)
def test_quick_answers_import_neither_torch_nor_lightning(option: str, answer: str) -> None:
    script = (
        "import sys; from sparsight.__main__ import main; main([sys.argv[1]]);"
        "print(sorted({'torch', 'lightning', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, option], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == answer
    assert done.stderr == "[]\n"


def test_no_verb_gives_help_and_a_usage_error(tmp_path: Path) -> None:
    done = run_sparsight(cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stdout, done.stderr) == (2, "", HELP)


def test_help_lists_exactly_the_verbs_of_the_command() -> None:
    from sparsight.command.cli import SparsightCLI

    without_config = {"compare", "completion", "evaluate", "report", "schema", "list"}
    listed = set(re.findall(r"^  (\w+)  ", HELP, flags=re.MULTILINE))
    assert listed == set(SparsightCLI.subcommands()) | without_config


# -- start-up checks ---------------------------------------------------------------------------------------------


def test_current_folder_comes_last_and_once(tmp_path: Path) -> None:
    here, other = str(tmp_path), str(tmp_path.parent)
    assert current_folder_last(["", here, other, f"{here}/"], here) == [other, here]


def test_modules_of_the_folder_one_stands_in_are_not_run_in_place_of_libraries(tmp_path: Path) -> None:
    for name in ("yaml", "json", "csv", "torch"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / f'ran_{name}')!r}, 'w')")
    command = [sys.executable, "-m", "sparsight", "fit", "--config", "no/such/config"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and "no config" in done.stderr
    assert not list(tmp_path.glob("ran_*"))


@pytest.mark.parametrize("name", PLUGINS)
def test_users_own_folder_of_the_same_name_does_not_hide_ours(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package was imported')")
    script = (
        "import os, sys; from sparsight.common.import_path import current_folder_last;"
        "from sparsight.command.startup import check_plugins;"
        "sys.path[:] = current_folder_last(sys.path, os.getcwd()); check_plugins()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_package_that_hides_ours_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks" / "__init__.py").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run_sparsight("fit", "--help", cwd=elsewhere, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    assert str(tmp_path / "callbacks") in done.stderr
    assert "PYTHONPATH" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsight.command.startup.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="'blocks' is missing"):
        check_plugins()


UNFIT = ("RuntimeError('operator torchvision::nms does not exist')", "ImportError('no .so')")


@pytest.mark.parametrize("error", few(UNFIT, UNFIT[0]))
def test_torch_pair_that_does_not_fit_is_one_readable_line(error: str, tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text(f"raise {error}")
    done = run_sparsight("fit", "--help", cwd=tmp_path.parent, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    assert re.search(r"torch \d\S* and torchvision \d\S* do not work together", done.stderr)
    assert error.split("'")[1] in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_installed_torch_pair_fits() -> None:
    check_torch_pair()
