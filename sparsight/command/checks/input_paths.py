"""Files and folders of data that a config file names, looked for before anything heavy is imported.

What must be there is read from the source of the named class: its ``check_paths`` says which option is a file, a folder
or a pattern, by calls such as ``need_file(self.file, what="file", holds="...")``. The whole check, on what all of the
command line makes of the configs, comes later; this one passes over whatever it cannot be sure of.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sparsight.command.arguments import (
    FILE_OPTIONS,
    WITHOUT_DATA,
    check_given,
    check_there,
    given_options,
    resolve_configs,
)
from sparsight.command.plugins import HOME
from sparsight.common.disk.inputs import find_files, may_be_hub_id, need_file, need_folder, need_local
from sparsight.common.disk.yaml_files import read_yaml

WHERE = "datamodules"  # package of the classes
RULES: dict[str, Callable[..., Any]] = {
    rule.__name__: rule for rule in (find_files, need_file, need_folder, need_local)
}
MODELS = ("model.teacher", "model.base", "data.teacher", "data.model")  # options that name a pretrained model
ASKS_ONLY = ("--help", "-h", "--print_config")  # arguments with which nothing is run


class Need(NamedTuple):
    """What a class says of one of its options.

    Args:
        rule: Name in ``RULES``.
        option: What the rule is about.
        words: Further arguments of the rule.
    """

    rule: str
    option: str
    words: Mapping[str, str]


def check_models(arguments: Sequence[str]) -> None:
    """Refuse a pretrained model that is no name of the hub and not there, where the command line names it.

    Args:
        arguments: Of the command, its verb first.

    Raises:
        ConfigurationError: There is no such folder.
    """
    if any(each.startswith(ASKS_ONLY) for each in arguments):
        return
    for name in MODELS:
        options = (f"--{name}", f"--{name.replace('.', '.init_args.')}")
        for value in [value for _, _, value in given_options(arguments, options)][-1:]:
            if value != "null" and not may_be_hub_id(value):
                check_there(name, value)


def check_inputs(arguments: Sequence[str]) -> None:
    """Refuse data that are not there, where a config file names them and nothing behind it may change that.

    Args:
        arguments: Of the command, its verb first.

    Raises:
        ConfigurationError: A file or folder is not there.
        FileNotFoundError: Nothing fits a pattern, or a file stands where a folder should, or the other way round.
    """
    if arguments[0] in WITHOUT_DATA or any(each.startswith(ASKS_ONLY) for each in arguments):
        return
    files = [value for _, _, value in given_options(resolve_configs(arguments), FILE_OPTIONS)]
    configs = [read_yaml(Path(file)).get("data") for file in files]
    changed = [tuple(key.split(".")[1:]) for key in _keys(arguments) if key.split(".")[0] == "--data"]
    for number, data in enumerate(configs):
        for keys, kind, options in classes_in(data, ()):
            for need in needs_of(kind):
                place = (*keys, need.option)
                by_option = any(place[: len(each)] == each or each[: len(place)] == place for each in changed)
                if not by_option and not any(_speaks_of(later, place) for later in configs[number + 1 :]):
                    check_need(".".join(("data", *keys)), options, need)


@cache
def needs_of(kind: str) -> list[Need]:
    """What a class of ours says of its options; nothing of others, and of what it decides as it runs.

    Args:
        kind: Class path, or name.
    """
    package, _, name = kind.rpartition(".")
    if not name.isidentifier() or package.split(".")[0] not in ("", WHERE):
        return []
    for file in sorted((HOME / WHERE).rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if re.search(rf"^class {name}\b", text, re.MULTILINE):
            found = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == name)
            return [need for node in found for need in _told(node)]
    return []


def _told(node: ast.ClassDef) -> Iterator[Need]:
    method = next(
        (each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "check_paths"), None
    )
    for call in ast.walk(method) if method is not None else ():
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id not in RULES:
            continue
        words = {
            str(each.arg): each.value.value
            for each in call.keywords
            if isinstance(each.value, ast.Constant) and isinstance(each.value.value, str)
        }
        option = words.pop("what", None)
        if option is not None and ast.unparse(call.args[0]) == f"self.{option}":
            yield Need(call.func.id, option, words)


def check_need(key: str, options: Mapping[str, Any], need: Need) -> None:
    """See that what one option of a class names is there; what is no text is left to the parser.

    Raises:
        ConfigurationError: A file or folder is not there.
        FileNotFoundError: Nothing fits a pattern, or a file stands where a folder should, or the other way round.
    """
    value, key = options.get(need.option), f"{key}.{need.option}"
    texts = value if isinstance(value, list) and need.rule == find_files.__name__ else [value]
    if value is None or not all(isinstance(each, str) for each in texts):
        return
    for each in texts:
        check_given(key, str(each))
    if need.rule in (need_file.__name__, need_folder.__name__):
        check_there(key, value)
    with suppress(ValueError):  # braces that stand for too many names, which are refused with all other mistakes
        RULES[need.rule](value, what=key, **need.words)


def classes_in(node: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, Mapping[str, Any]]]:
    """Keys, class and options of everything with a class; keys leave ``init_args`` out, positions are numbers."""
    if isinstance(node, list):
        for number, each in enumerate(node):
            yield from classes_in(each, (*keys, str(number)))
    elif isinstance(node, Mapping):
        options = node
        if "class_path" in node:
            given = node.get("init_args")
            options = given if isinstance(given, Mapping) else {}
            yield keys, str(node["class_path"]), options
        for name, each in options.items():
            yield from classes_in(each, (*keys, str(name).rstrip("+")))


def _speaks_of(node: Any, keys: Sequence[str]) -> bool:
    """Whether a later config may change what stands under some keys: it names them, or a class on the way there."""
    if node is None or not keys:
        return node is not None
    if not isinstance(node, Mapping) or "class_path" in node:
        return True
    options = node.get("init_args", node)
    return keys[0] in options and (options[keys[0]] is None or _speaks_of(options[keys[0]], keys[1:]))


def _keys(arguments: Sequence[str]) -> Iterator[str]:
    """Dotted options of the command line, without what LightningCLI lets users leave out."""
    for each in arguments:
        if each.startswith("--"):
            yield each.partition("=")[0].rstrip("+").replace(".init_args", "").removesuffix(".class_path")
