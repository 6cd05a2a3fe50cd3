"""What there is to choose from, read from source: classes of ours and of the current folder, none of them imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from sparsight.command.sources import Module, Sources, read_modules
from sparsight.command.startup import PLUGINS

HOME = Path(__file__).parents[2]
PAPER = re.compile(r"arXiv:? ?(\d{4}\.\d{4,5})")
CITED = re.compile(r"\(([^()]*\bet al\.[^()]*\d{4})\)")
ROLE = re.compile(r":\w+:`(?:[\w.]*\.)?(\w+)`")  # of Sphinx, before a name
LAYERS = re.compile(r"\bnn\.(?!Module\b|functional\b)[A-Z]\w*\(")  # what has parameters, and what holds such
LOGGED = ("scores", "image_metrics", "text_metrics")
LOGGING = ("compute", "distance")  # methods whose keys are what is logged
METHOD = re.compile(r"blocks\.(?:tokens|edits)\.base\.(\w+)")  # a kind of methods
DECLARED = {  # by mixers that override what says so
    "init_from_teacher": "starts from the teacher",
    "exact_limit": "can equal attention",
    "padded": "pads the grid",
    "auxiliary_loss": "may add to the loss",
}
NEEDED = re.compile(r"the package (\w+)")  # of a backend
LIGHTNING = r"(lightning|pytorch_lightning)\.(\w+\.)*"


@dataclass(frozen=True)
class Group:
    """One kind of plug-ins.

    Attributes:
        title: What they are.
        root: Full name of the class from which they derive, as a pattern.
        where: Packages whose classes count, beside those of users.
    """

    title: str
    root: str
    where: tuple[str, ...]


GROUPS = {
    "mixers": Group("token mixers, in the place of a self-attention", r"blocks\.base\.TokenMixer", ("blocks",)),
    "methods": Group(
        "methods inside an image-text model, for --model.recipe",
        r"blocks\.tokens\.base\.Edit",
        ("blocks",),
    ),
    "families": Group(
        "families of denoisers that are served",
        r"sparsight\.diffusion\.families\.family\.Family",
        ("sparsight.diffusion",),
    ),
    "modules": Group("what is trained, for --model", LIGHTNING + "LightningModule", ("lightning_modules",)),
    "datamodules": Group("batches, for --data", LIGHTNING + "LightningDataModule", ("datamodules",)),
    "sources": Group(
        "sources of records, for datamodules", r"datamodules\.sources\.records\.Records", ("datamodules",)
    ),
    "tasks": Group("tasks of an evaluation", r"datamodules\.evaluation\.task\.EvaluationTask", ("datamodules",)),
    "selections": Group(
        "rules that choose decoder layers", r"sparsight\.lvlm\.surgery\.selection\.LayerSelection", ("sparsight.lvlm",)
    ),
    "scores": Group("scores of decoder layers", r"sparsight\.lvlm\.scores\.base\.LayerScore", ("sparsight.lvlm",)),
    "image_metrics": Group(
        "metrics of generated images",
        r"sparsight\.evaluation\.images\.base\.GenerationMetric",
        ("sparsight.evaluation",),
    ),
    "features": Group(
        "features of images, for metrics",
        r"sparsight\.evaluation\.images\.extractor\.FeatureExtractor",
        ("sparsight.evaluation",),
    ),
    "text_metrics": Group(
        "metrics of written answers", r"sparsight\.evaluation\.texts\.answers\.AnswerMetric", ("sparsight.evaluation",)
    ),
    "callbacks": Group(
        "what happens beside training, for --trainer.callbacks",
        LIGHTNING + r"(Callback|callbacks\.(\w+\.)*\w+)",
        ("callbacks",),
    ),
}


@dataclass(frozen=True)
class Plugin:
    """One class to choose.

    Attributes:
        name: What to write in a configuration: of ours the bare name, of a user's the full one.
        class_path: Full name.
        summary: First sentence of its docstring.
        papers: Where it comes from, as its docstring or that of its file says.
        properties: What it declares about itself.
        logged: What its numbers are called, where the class alone tells that.
        options: Arguments of its constructor; those with a default as ``name=default``.
    """

    name: str
    class_path: str
    summary: str
    papers: tuple[str, ...] = ()
    properties: tuple[str, ...] = ()
    logged: tuple[str, ...] = ()
    options: tuple[str, ...] = field(default=())


def known_sources(folder: Path | None = None) -> Sources:
    """All classes of ours, and those in Python files of a folder."""
    theirs = dict(read_modules(folder.glob("*.py"), folder)) if folder is not None else {}
    return Sources({**theirs, **_ours()})


def known_plugins(groups: Iterable[str] = GROUPS, *, folder: Path | None = None) -> dict[str, list[Plugin]]:
    """Plug-ins of each group, sorted by name, those of users last.

    Args:
        groups: Names in ``GROUPS``.
        folder: With classes of a user's own; none means none.
    """
    ours, sources = _ours(), known_sources(folder)
    own = {path for path in sources.classes if sources.module_of(path).name not in ours}
    found = {}
    for group in groups:
        offered = [path for path in sources.classes if _is_offered(path, sources, GROUPS[group], of_user=path in own)]
        plugins = [_described(path, sources, group, of_user=path in own) for path in offered]
        found[group] = sorted(plugins, key=lambda plugin: ("." in plugin.name, plugin.name.lower()))
    return found


@cache
def _ours() -> dict[str, Module]:
    files = (file for package in (*PLUGINS, "sparsight") for file in (HOME / package).rglob("*.py"))
    return dict(read_modules((file for file in files if "assets" not in file.parts), HOME))


def _is_offered(path: str, sources: Sources, group: Group, *, of_user: bool) -> bool:
    """Whether a class is there to be chosen: complete, public, and named by its package where that names classes."""
    name = path.rpartition(".")[2]
    if name.startswith("_") or not any(re.fullmatch(group.root, base) for base in sources.ancestors(path)):
        return False
    if sources.is_abstract(path):
        return False
    return of_user or (
        any(f"{path}.".startswith(f"{package}.") for package in group.where) and sources.is_exported(path)
    )


def _described(path: str, sources: Sources, group: str, *, of_user: bool) -> Plugin:
    node, module = sources.classes[path], sources.module_of(path)
    text = ast.get_docstring(node) or ""
    return Plugin(
        name=path if of_user else node.name,
        class_path=path,
        summary=_first_sentence(text),
        papers=_papers(text) or _papers(ast.get_docstring(module.tree) or ""),
        properties=_properties(path, sources, group),
        logged=_logged(path, sources) if group in LOGGED else (),
        options=tuple(sources.options(path))[1 if group == "mixers" else 0 :],  # a mixer's first is its site
    )


def _first_sentence(text: str) -> str:
    paragraph = ROLE.sub(r"\1", " ".join(text.partition("\n\n")[0].split())).replace("``", "")
    return re.split(r"(?<!\bal)(?<!\be\.g)(?<!\bi\.e)\. ", paragraph, maxsplit=1)[0].rstrip(".")


def _papers(text: str) -> tuple[str, ...]:
    numbers = dict.fromkeys(PAPER.findall(text))
    return tuple(f"arXiv {number}" for number in numbers) or tuple(dict.fromkeys(CITED.findall(" ".join(text.split()))))


def _properties(path: str, sources: Sources, group: str) -> tuple[str, ...]:
    if group == "families":
        return (f"for {sources.constant(path, 'name')}",)
    if group == "methods":
        kinds = (METHOD.fullmatch(base) for base in sources.ancestors(path))
        return tuple(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind[1]).lower() for kind in kinds if kind)[:1]
    if group != "mixers":
        return ()
    kind = "core" if "blocks.base.CoreMixer" in sources.ancestors(path) else "feature"
    has_layers = any(LAYERS.search(ast.unparse(sources.classes[each])) for each in sources.ours(path))
    told = [f"{kind} mixer", "trainable" if has_layers else "nothing to train"]
    told += ["can be a part of Merge"] if "blocks.base.SoftmaxMixer" in sources.ancestors(path) else []
    told += ["one softmax" if "blocks.base.SoftmaxMixer" in sources.ancestors(path) else "a learned mass per head"]
    told[-1] += " beside text"
    base = "blocks.base.TokenMixer"
    return (
        *told,
        *(text for name, text in DECLARED.items() if sources.method(path, name) != sources.method(base, name)),
        *(_told(name, needs) for name, needs in sources.table(path, "backends").items() if name != "torch"),
    )


def _told(backend: str, needs: str) -> str:
    """A backend, what it needs, and which package that it needs is not installed here."""
    absent = [package for package in NEEDED.findall(needs) if find_spec(package) is None]
    return f"backend {backend} ({needs}{''.join(f'; {package} is not installed' for package in absent)})"


def _logged(path: str, sources: Sources) -> tuple[str, ...]:
    name = sources.constant(path, "name")
    if name:
        return (name,)
    methods = (sources.method(path, each) for each in LOGGING)
    returned = [
        each.value
        for method in methods
        if method is not None
        for each in ast.walk(method)
        if isinstance(each, ast.Return) and isinstance(each.value, ast.Dict)
    ]
    keys = [_key(key) for mapping in returned for key in mapping.keys if key is not None]
    return tuple(dict.fromkeys(filter(None, keys)))


def _key(key: ast.expr) -> str:
    """A key as it will read, with what only a run knows in angle brackets; empty if it is computed as a whole."""
    if isinstance(key, ast.Constant):
        return str(key.value)
    if not isinstance(key, ast.JoinedStr):
        return f"<{key.id}>" if isinstance(key, ast.Name) else ""
    parts = [
        str(part.value) if isinstance(part, ast.Constant) else f"<{ast.unparse(part.value).removeprefix('self.')}>"
        for part in key.values
        if isinstance(part, (ast.Constant, ast.FormattedValue))
    ]
    return "".join(parts)
