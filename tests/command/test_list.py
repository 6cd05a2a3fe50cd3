"""``sparsight list`` reads source; here it is compared with what imports of everything find."""

from __future__ import annotations

import inspect
import json
import pkgutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from lightning.pytorch import Callback, LightningDataModule, LightningModule

from blocks import CoreMixer, Grid, Site, SoftmaxMixer, TokenMixer
from blocks.tokens import Edit
from datamodules.evaluation.task import EvaluationTask
from datamodules.sources.records import Records
from sparsight.__main__ import main
from sparsight.command.listing import USAGE
from sparsight.command.plugins import DECLARED, GROUPS, HOME, known_plugins
from sparsight.command.startup import PLUGINS
from sparsight.diffusion.families.family import Family
from sparsight.evaluation.images import FeatureExtractor, GenerationMetric
from sparsight.evaluation.texts import AnswerMetric
from sparsight.lvlm.scores import LayerScore
from sparsight.lvlm.surgery.selection import LayerSelection

ROOTS: dict[str, type] = {
    "mixers": TokenMixer,
    "methods": Edit,
    "families": Family,
    "modules": LightningModule,
    "datamodules": LightningDataModule,
    "sources": Records,
    "tasks": EvaluationTask,
    "selections": LayerSelection,
    "scores": LayerScore,
    "image_metrics": GenerationMetric,
    "features": FeatureExtractor,
    "text_metrics": AnswerMetric,
    "callbacks": Callback,
}
BY_OPTION = {"PooledAttention", "RoutedAttention"}
"""Mixers that have nothing to train unless an option asks for it."""
OWN = """
from pathlib import Path
import lightning as L
from blocks import FeatureMixer as Base
import datamodules

class Half(Base):
    '''Half of everything (Nobody et al., arXiv 2601.00001).'''

    def __init__(self, site, *, share=0.5):
        super().__init__(site)

class Whole(Half):
    '''All of it.'''

    def forward(self, hidden, grid): return hidden
    def flops(self, grid): return 0

class Beep(L.Callback):
    '''Beeps.'''

class Bad(datamodules.RecordSource): pass
class Other: pass
"""


def below(kind: type) -> Iterator[type]:
    for each in kind.__subclasses__():
        yield each
        yield from below(each)


@pytest.fixture(scope="module")
def imported() -> None:
    for package in (*PLUGINS, "sparsight"):
        for found in pkgutil.walk_packages([str(HOME / package)], f"{package}."):
            if "assets" not in found.name:
                import_module(found.name)


def offered(kind: type) -> bool:
    """Whether a class of ours is complete and public, and in the list of the package that names its kind."""
    parts = kind.__module__.split(".")
    if parts[0] not in (*PLUGINS, "sparsight") or kind.__name__.startswith("_"):
        return False
    if any(getattr(getattr(kind, name, None), "__isabstractmethod__", False) for name in dir(kind)):
        return False
    packages = [sys.modules[".".join(parts[:length])] for length in range(1, len(parts))]
    listed = [
        package.__all__ for package in packages if package.__name__ != "sparsight" and hasattr(package, "__all__")
    ]
    return not listed or kind.__name__ in listed[0]


def path_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


@pytest.mark.usefixtures("imported")
@pytest.mark.parametrize("group", GROUPS)
def test_list_names_what_imports_find(group: str) -> None:
    packages = GROUPS[group].where
    found = {each for each in below(ROOTS[group]) if path_of(each).startswith(tuple(f"{p}." for p in packages))}
    listed = known_plugins([group])[group]
    assert {plugin.class_path for plugin in listed} == {path_of(each) for each in found if offered(each)}
    assert listed
    ends = {each for each in found if not each.__subclasses__() and not each.__name__.startswith("_")}
    assert {path_of(each) for each in ends} <= {plugin.class_path for plugin in listed}, "its package does not name it"


def test_options_are_those_of_the_constructor() -> None:
    for plugins in known_plugins().values():
        for plugin in plugins:
            module, _, name = plugin.class_path.rpartition(".")
            kind = getattr(import_module(module), name)
            parameters = inspect.signature(kind).parameters.values()
            known = [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
            known = known[1:] if issubclass(kind, TokenMixer) else known
            assert [option.partition("=")[0] for option in plugin.options] == known, name


def test_properties_of_mixers_are_true() -> None:
    site = Site("transformer_blocks.0.attn1", channels=32, heads=2, head_dim=16, grid=Grid(4, 4))
    for plugin in known_plugins(["mixers"])["mixers"]:
        kind = getattr(import_module("blocks"), plugin.name)
        own = [name for name, _ in kind(site).named_parameters() if not name.startswith("mixers.")]  # not of its parts
        has_parameters = plugin.name in BY_OPTION or bool(own)
        role = "core mixer" if issubclass(kind, CoreMixer) else "feature mixer"
        expected = [role, "trainable" if has_parameters else "nothing to train"]
        expected += ["can be a part of Merge"] if issubclass(kind, SoftmaxMixer) else []
        expected += ["one softmax beside text" if kind(site).is_softmax else "a learned mass per head beside text"]
        for method, told in DECLARED.items():
            expected += [told] if vars(TokenMixer)[method] is not inspect.getattr_static(kind, method) else []
        told = [each for each in plugin.properties if each.startswith("backend ")]
        assert [each.split()[1] for each in told] == [name for name in kind.backends if name != "torch"], plugin.name
        expected += told
        assert list(plugin.properties) == expected, plugin.name
    listed = {plugin.name: plugin.properties for plugin in known_plugins(["mixers"])["mixers"]}
    assert "may add to the loss" in listed["Merge"] and "pads the grid" in listed["TileAttention"]
    assert "may add to the loss" not in listed["TileAttention"]


def test_backends_tell_what_they_need_and_what_is_not_installed(tmp_path: Path) -> None:
    text = OWN.replace(
        "    def forward",
        """    backends = {"torch": "", "fast": "the package nobody_has and the package json"}

    def forward""",
    )
    (tmp_path / "my_own.py").write_text(text)
    properties = known_plugins(["mixers"], folder=tmp_path)["mixers"][-1].properties
    assert properties[-1] == "backend fast (the package nobody_has and the package json; nobody_has is not installed)"


def test_own_classes_in_the_current_folder_are_listed(tmp_path: Path) -> None:
    (tmp_path / "my_own.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("class (")
    (tmp_path / "callbacks.py").write_text(OWN)  # hidden by ours, as everywhere
    listed = known_plugins(folder=tmp_path)
    own = {group: [p.name for p in plugins if "." in p.name] for group, plugins in listed.items()}
    assert {group: names for group, names in own.items() if names} == {
        "mixers": ["my_own.Whole"],
        "callbacks": ["my_own.Beep"],
    }
    mixer = listed["mixers"][-1]
    assert (mixer.summary, mixer.options, mixer.properties[0]) == ("All of it", ("share=0.5",), "feature mixer")


def test_papers_and_names_are_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in (40, 80, 100, 500):
        monkeypatch.setenv("COLUMNS", str(columns))
        main(["list"])
        text = capsys.readouterr().out
        assert all(len(line) <= min(max(columns, 80), 120) for line in text.splitlines())
    assert all(name in text for name in ("DeltaConvBlock", "arXiv 2504.21292", "logged as block_influence", "BLEU"))
    main(["list", "mixers"])
    assert "kernel_size=13" in (text := capsys.readouterr().out) and "BLEU" not in text
    main(["list", "scores", "--json"])
    names = [each["name"] for each in json.loads(capsys.readouterr().out)["scores"]]
    assert {"GreedyLossIncrease", "LossIncrease"} <= {*names}


def test_unknown_groups_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"no group 'mixer'; did you mean mixers.*families"):
        main(["list", "mixer"])
    main(["list", "--help"])
    assert capsys.readouterr().out == USAGE
