"""Dependencies point one way.

Between packages: blocks <- sparsight <- datamodules, callbacks, lightning_modules <- sparsight.command. Inside
sparsight and datamodules: the order of ``ROOMS``, without an edge between the wings.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("blocks", "sparsight", "datamodules", "callbacks", "lightning_modules")
MAY_IMPORT = {
    "blocks": {"blocks"},
    "sparsight": {"sparsight", "blocks"},
    "datamodules": {"datamodules", "sparsight", "blocks"},
    "callbacks": {"callbacks", "sparsight", "blocks"},
    "lightning_modules": {"lightning_modules", "sparsight", "blocks"},
}
JOIN_ALL = ("sparsight/command/cli.py", "sparsight/command/functions.py")
ROOMS = (  # of sparsight and datamodules, each of which may import those before it
    *("common", "common.disk", "common.quantised", "common.measure", "common.checkpoint", "common.training"),
    *("testing", "publish"),
    *("diffusion.pipelines", "diffusion.families", "diffusion.surgery", "diffusion.students", "diffusion.model"),
    *("diffusion.measure", "diffusion.train", "diffusion.analyze", "diffusion.export"),
    *(
        "lvlm.model",
        "lvlm.methods",
        "lvlm.chat",
        "lvlm.scores",
        "lvlm.surgery",
        "lvlm.train",
        "lvlm.answer",
        "lvlm.export",
    ),
    *(
        "evaluation.images",
        "evaluation.texts",
        "evaluation.questions",
        "evaluation.drawn_scores",
        "evaluation.reform_eval",
        "evaluation.harness",
        "evaluation.compare",
    ),
    *("datamodules.sampler", "datamodules.sources", "datamodules.record_dataset"),
    *("datamodules.allowed", "datamodules.process", "datamodules.base"),
    *("datamodules.images", "datamodules.conversations", "datamodules.evaluation", "datamodules.evaluation.tasks"),
    "datamodules.evaluation.benchmarks",
    *("report", "command", "__main__"),
)
WINGS = {"diffusion", "lvlm"}
MOST_FILES = 15  # of a folder, besides __init__.py
FILES = [path.relative_to(ROOT).as_posix() for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
BLOCKS = [file for file in FILES if file.startswith("blocks/") and file != "blocks/__init__.py"]


@cache
def import_statements(source: str) -> list[ast.Import | ast.ImportFrom]:
    """Those of a file, wherever in it they stand; a file is read by many tests."""
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom))]


def imported(source: str, package: str = "") -> Iterator[str]:
    """Dotted names of all modules that ``source`` imports, wherever in it; relative ones belong to ``package``."""
    for node in import_statements(source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            yield ".".join(filter(None, [package if node.level else "", node.module]))


@cache
def imports_of(file: str) -> frozenset[str]:
    return frozenset(imported((ROOT / file).read_text(), file.split("/")[0]))


def roots(names: Iterable[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_imports_are_found_wherever_they_stand() -> None:
    source = "import a.b as c\ndef f():\n    from d.e import g\n    from . import h\n    from .i import j\n"
    assert set(imported(source, "own")) == {"a.b", "d.e", "own", "own.i"}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_has_files_that_are_checked(package: str) -> None:
    assert f"{package}/__init__.py" in FILES


@pytest.mark.parametrize("file", [file for file in FILES if file not in JOIN_ALL])
def test_file_imports_only_what_lies_below_it(file: str) -> None:
    ours = roots(imports_of(file)) & set(PACKAGES)
    assert ours <= MAY_IMPORT[file.split("/")[0]], f"{file} imports {sorted(ours - MAY_IMPORT[file.split('/')[0]])}"


def room_of(module: str) -> str:
    """The room of a module of sparsight or datamodules, by its dotted name."""
    parts = module.removeprefix("sparsight.").split(".")
    return next((".".join(parts[:n]) for n in (3, 2, 1) if ".".join(parts[:n]) in ROOMS), "")


def rooms_that(file: str) -> set[str]:
    """Rooms that a file imports from, whichever way it spells that."""
    found = set()
    for node in import_statements((ROOT / file).read_text()):
        module = [node.module] if isinstance(node, ast.ImportFrom) else []
        found |= {".".join(filter(None, [*module, alias.name])) for alias in node.names}
    return {room_of(name) for name in found if name.startswith(("sparsight.", "datamodules."))} - {""}


INSIDE = [
    f
    for f in FILES
    if f.startswith(("sparsight/", "datamodules/")) and "/assets/" not in f and not f.endswith("__init__.py")
]


@pytest.mark.parametrize("file", INSIDE)
def test_rooms_import_only_rooms_before_them(file: str) -> None:
    room = room_of(file.removesuffix(".py").replace("/", "."))
    assert room, f"{file} lies in no room of ROOMS"
    above = {other for other in rooms_that(file) if ROOMS.index(other) > ROOMS.index(room)}
    assert not above, f"{file} imports {sorted(above)}, which come after {room}"
    wings = {name.split(".")[0] for name in (room, *rooms_that(file))} & WINGS
    assert room.split(".")[0] not in WINGS or len(wings) == 1, f"{file} joins both wings"


def test_every_room_is_there() -> None:
    assert {room_of(file.removesuffix(".py").replace("/", ".")) for file in INSIDE} == set(ROOMS)


@pytest.mark.parametrize("folder", sorted({file.rpartition("/")[0] for file in INSIDE}))
def test_a_folder_holds_files_on_one_subject(folder: str) -> None:
    files = [file for file in INSIDE if file.rpartition("/")[0] == folder]
    assert len(files) <= MOST_FILES, f"{folder} holds {len(files)} files: give a part of them a folder of its own"


def test_names_that_moved_lead_to_what_is_there() -> None:
    for old, new in json.loads((ROOT / "tests" / "moved_names.json").read_text()).items():
        module, _, name = new.partition(":")
        assert not name or hasattr(import_module(module), name), f"{old}: {new} is not there"
        assert find_spec(module) is not None, f"{old}: {new} is not there"


def test_only_the_command_joins_all_packages() -> None:
    assert roots(imports_of(JOIN_ALL[0])) >= set(PACKAGES)


@pytest.mark.parametrize("file", BLOCKS)
def test_block_imports_torch_and_blocks_only_so_that_exports_can_carry_it(file: str) -> None:
    known = sys.stdlib_module_names | {"blocks"}
    foreign = {n for n in imports_of(file) if n.split(".")[0] not in known}
    assert roots(foreign) <= {"torch"}, f"{file} imports {sorted(foreign)}"


def of_tests(file: Path) -> set[str]:
    """Dotted names of the modules of `tests` that a file imports or names in a class path, its own left out."""
    source = file.read_text()
    taken = [n for n in import_statements(source) if isinstance(n, ast.ImportFrom) and n.module == "tests"]
    names = {*imported(source), *(f"tests.{alias.name}" for node in taken for alias in node.names)}
    names |= set(re.findall(r"\btests(?:\.[a-z_]\w*)+", source))
    own = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return {name for name in names if name.startswith("tests.") and not f"{name}.".startswith(f"{own}.")}


ASKED_BY_NAME = re.compile(r"\b(getattr|hasattr)\(")
MOST_ASKED_BY_NAME = 5


def test_neighbours_are_known_by_what_they_declare() -> None:
    """An attribute asked for by its name breaks in silence when it is renamed; what cannot be declared says why."""
    found = [
        f"{file}:{number}: {line.strip()}"
        for file in FILES
        if not file.startswith("blocks/") and "/assets/" not in file
        for number, line in enumerate((ROOT / file).read_text().splitlines(), 1)
        if ASKED_BY_NAME.search(line)
    ]
    listed = "\n".join(found)
    assert len(found) <= MOST_ASKED_BY_NAME, f"declare what is asked for, or ask with isinstance:\n{listed}"
    without = [line for line in found if "  # " not in line]
    assert not without, f"say in a comment why: {without}"


def test_no_object_is_known_by_the_name_of_its_class() -> None:
    """A subclass, or a class that is renamed, would pass for another one."""
    named = re.compile(r"type\(\w+\)\.__name__ (==|!=|in \()|__name__\.startswith\(|__name__ == \"(?!__main__)")
    found = [
        f"{file}: {line.strip()}"
        for file in FILES
        if file != "sparsight/command/config_keys.py"  # which compares with a class path that was written down
        for line in (ROOT / file).read_text().splitlines()
        if named.search(line)
    ]
    assert not found


def test_what_several_tests_use_lies_in_tiny_modules() -> None:
    """A test that needs another test file fails with it, moves with it, and hides where a helper is."""
    used = {file: of_tests(file) for file in sorted((ROOT / "tests").rglob("*.py"))}
    assert sum(map(len, used.values())) > 100
    for file, names in used.items():
        others = sorted(name for name in names if not name.startswith("tests.tiny"))
        assert not others, f"{file.relative_to(ROOT)} uses {others}: move what it needs to tests/tiny*.py"


@cache
def declared() -> dict[str, str]:
    """Canonical name of every declared dependency, with the extra that brings it ('' where none is needed).

    From ``pyproject.toml``: what is installed tells of the dependencies when it was.
    """
    core = ProjectMetadata(str(ROOT), PluginManager()).core
    found = {
        canonicalize_name(Requirement(r).name): extra for extra, rs in core.optional_dependencies.items() for r in rs
    }
    return found | {canonicalize_name(Requirement(r).name): "" for r in core.dependencies}


def test_every_third_party_import_is_declared() -> None:
    distributions, dependencies = packages_distributions(), declared()
    known = {*sys.stdlib_module_names, *PACKAGES}
    undeclared = {
        (file, module)
        for file in FILES
        for module in roots(imports_of(file)) - known
        if not {canonicalize_name(d) for d in distributions.get(module, [module])} & set(dependencies)
    }
    assert not undeclared


def test_module_level_imports_need_no_extra() -> None:
    distributions, dependencies = packages_distributions(), declared()
    for file in FILES:
        tree = ast.parse((ROOT / file).read_text())
        top = ast.Module([n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))], type_ignores=[])
        for module in roots(set(imported(ast.unparse(top)))):
            extras = {dependencies.get(canonicalize_name(d), "") for d in distributions.get(module, [module])}
            assert "" in extras, (
                f"{file} imports {module} of extra {extras} at module level: import it where it is used"
            )
