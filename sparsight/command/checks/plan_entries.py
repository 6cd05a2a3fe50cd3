"""Entries of a plan as they are written, before the parser fills in what was left out.

The parser takes a key of a type that may be null as null where it is missing, and takes a missing key from an earlier
list of equal length.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule

from sparsight.command.arguments import CONFIG_OPTIONS, given_options
from sparsight.common.disk.yaml_files import yaml_value
from sparsight.common.errors import ConfigurationError
from sparsight.common.names import named
from sparsight.diffusion.surgery.plan import PlanEntry, check_entry

PLAN = "plan"
FIGURES = "plan.json"  # as `analyze` writes them
OPTIONS = ("--model.plan", "--model.plan+", "--model.init_args.plan", "--model.init_args.plan+")


def check_plans(arguments: Sequence[str]) -> None:
    """Refuse entries of plans that lack a key, have another one, or hold what can be no sites or no mixer.

    Args:
        arguments: Of the command, with config files resolved.

    Raises:
        ConfigurationError: There is one, and the message names its position, its file and the remedy; or a plan's
            option names a config.
    """
    for _, option, value in given_options(arguments, (*CONFIG_OPTIONS, *OPTIONS)):
        configuration = Path(value).with_suffix(".yaml")
        if Path(value).name == FIGURES and configuration.is_file():
            raise ConfigurationError(
                f"{option}: {value} holds the figures of a plan: give the configuration beside it, --config "
                f"{configuration}"
            )
        if option in CONFIG_OPTIONS:
            continue
        if "model" in _mapping(_content(value)):  # as `analyze` and exports write it
            raise ConfigurationError(
                f"{option}: {value} is a config and no list of entries: give it as --config {value}"
            )
    found = list(_models(arguments))
    if not _takes_plan(found):
        return
    for source, model in found:
        options = {**model, **(_mapping(model.get("init_args")))}
        for name in (PLAN, f"{PLAN}+"):
            entries = options.get(name)
            if name.endswith("+") and isinstance(entries, Mapping):
                check_entry(entries, f"model.{name}", source)
            for position, entry in enumerate(entries if isinstance(entries, list) else ()):
                check_entry(entry, f"model.{name}.{position}", source)


def _models(arguments: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where something is said of the module, and what, in order."""
    for _, option, value in given_options(arguments, (*CONFIG_OPTIONS, *OPTIONS, "--model.class_path")):
        content = _content(value)
        if option in ("-c", "--config"):
            yield f" in {value}", _mapping(_mapping(content).get("model"))
        elif option == "--model":
            yield f" in {option}", content if isinstance(content, Mapping) else {"class_path": content}
        elif option.startswith("--model."):
            yield f" in {option}", {option.rpartition(".")[2]: content}


def _content(value: str) -> Any:
    """What a value on the command line means, or what the file that it names holds."""
    content = yaml_value(value)
    if isinstance(content, str) and content.endswith((".yaml", ".yml", ".json")) and Path(content).is_file():
        return yaml_value(Path(content).read_text("utf-8-sig"))
    return content


def _takes_plan(models: Sequence[tuple[str, Mapping[str, Any]]]) -> bool:
    """Whether the last module named is of a class whose plan has such entries."""
    name = next((model["class_path"] for _, model in reversed(models) if model.get("class_path")), "")
    found = named(name) if "." in str(name) else None
    kinds = [found] if inspect.isclass(found) else _of_name(LightningModule, str(name))
    annotations = (inspect.signature(kind).parameters.get(PLAN) for kind in kinds)
    return any(each is not None and PlanEntry.__name__ in str(each.annotation) for each in annotations)


def _of_name(base: type, name: str) -> list[type]:
    found = [base] if base.__name__ == name else []
    kinds: list[type] = type.__subclasses__(base)
    for kind in kinds:
        found += _of_name(kind, name)
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
