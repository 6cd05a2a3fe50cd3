"""The command's parser, whose errors are a line for the reader and not a page of usage.

jsonargparse says what was wrong for every type that it tried, one inside the other by indentation. What was meant is
the deepest of them.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

KEY = re.compile(r'Parser key "(.+)":')
CLASS = re.compile(r"Problem with given class_path '(.+)':")
TYPE = re.compile(r"<class '([\w.]+)'>")
TYPES = re.compile(r"(?:\w+\.)+\w+")
VALUE = re.compile(r"Given value: (.+)")
OPTION = re.compile(r"Option '(.+)' is not accepted")
NO_CLASS = re.compile(r"Expected a dot import path string: (.+)")
EXPECTED = re.compile(r"Expected an? (.+?)(?:\. Got value: (.*))?$")
UNKNOWN = re.compile(r"unrecognized arguments: ([^\s=]+)|accept option '(.+?)'|invalid choice: '(.+?)'")
CALLABLE = re.compile(r"Type .+ expects a function or a callable class: (.+?)\. Got value: (?:.*?class_path='(.+?)')?")
REQUIRED = re.compile(r"the following arguments are required: \w+\.(data|model)")
NOISE = re.compile(r"$|Does not validate|Errors:|Given value type|Expected a <class 'NoneType'>|Expected a path but")


class Parser(LightningArgumentParser):
    """LightningCLI's parser of the command and of each verb."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong with the arguments and where help is, and end."""
        if not self.exit_on_error:  # one of those that try a type
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        known = [name for action in parser._actions for name in (*action.option_strings, *(action.choices or ()))]
        prog = parser.prog.replace(" [options]", "")
        sys.stderr.write(f"{prog}: {in_one_line(message, known)}\nsee {prog} {help_option(message)}\n")
        self.exit(2)


@dataclass
class _Complaint:
    depth: int
    text: str
    keys: list[str]
    kinds: list[str]  # classes whose options these are, outermost first
    bases: list[str]  # classes of which one may be given
    value: str = ""


def in_one_line(message: str, known: Iterable[str] = ()) -> str:
    """What jsonargparse says of arguments, as one line with key, value and close names.

    Args:
        message: What it says.
        known: Names that the parser knows, such as ``--trainer.max_steps`` and ``fit``.
    """
    complaints = _meant(message)
    if not complaints or not complaints[0].keys:
        unknown = UNKNOWN.search(message)
        name = next(filter(None, unknown.groups())) if unknown else ""
        close = _close(name, {option.lstrip("-"): option for option in known})
        remedy = "; give a --config that has them" if REQUIRED.match(message) else ""
        return " ".join(message.split()) + close + remedy
    first = complaints[0]
    key = ".".join(first.keys).replace("init_args.", "")
    if found := OPTION.match(first.text):
        path = next(iter(first.kinds[-1:]), "")
        close = _close(found[1], {name: name for name in _options(path)})
        return f"{key}.{found[1]}: {path.rpartition('.')[2]} has no such option{close}"
    if found := NO_CLASS.match(first.text):
        names = {name for base in first.bases for name in _subclasses(base)}
        return f"{key}: there is no class {found[1]!r}{_close(found[1], {name: name for name in names})}"
    expected = [EXPECTED.match(complaint.text) for complaint in complaints]
    if all(expected):
        types = " or ".join(_plain(match[1]) for match in expected if match)
        value = next((match[2] for match in expected if match and match[2]), first.value)
        return f"{key}: expected {types}, got {value!r}"
    return f"{key}: {'; '.join(complaint.text for complaint in complaints)}"


def help_option(message: str) -> str:
    """The option that lists what could have been given: a class's own help where one of its options is wrong."""
    meant = next(iter(_meant(message)), None)
    if meant is not None and OPTION.match(meant.text) and meant.keys in (["model"], ["data"]):
        return f"--{meant.keys[0]}.help {meant.kinds[0]}"
    return "--help"


def _meant(message: str) -> list[_Complaint]:
    """The deepest complaints; several if several types were possible."""
    found = list(_complaints(message))
    deepest = max((complaint.depth for complaint in found), default=0)
    chosen = {complaint.text: complaint for complaint in found if complaint.depth == deepest}
    return list(chosen.values())


def _complaints(message: str) -> list[_Complaint]:
    found: list[_Complaint] = []
    headings: list[tuple[int, re.Pattern[str], list[str]]] = []
    for line in message.splitlines():
        text = line.lstrip(" -")
        depth = len(line) - len(text)
        if NOISE.match(text):
            continue
        headings = [heading for heading in headings if heading[0] < depth]
        if match := VALUE.match(text):
            for complaint in found:
                if complaint.depth > depth and not complaint.value:
                    complaint.value = match[1]
        elif match := KEY.match(text) or CLASS.match(text):
            headings.append((depth, match.re, [match[1]]))
        elif text.startswith("Subtypes: "):
            headings.append((depth, TYPES, TYPES.findall(text)))
        else:
            above = {kind: [n for _, k, names in headings if k is kind for n in names] for kind in (KEY, CLASS, TYPES)}
            if match := CALLABLE.match(text):
                above[TYPES] += TYPES.findall(text)
                text = match[1]
                above[CLASS] += [match[2]] if match[2] else []
            found.append(_Complaint(depth, text, above[KEY], above[CLASS], above[TYPES]))
    return found


def _close(name: str, known: dict[str, str]) -> str:
    close = get_close_matches(name.lstrip("-"), known, n=2)
    return f"; did you mean {' or '.join(known[match] for match in close)}?" if close else ""


def _imported(path: str) -> Any:
    """What a dotted name means; none if nothing."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None


def _options(path: str) -> list[str]:
    kind = _imported(path)
    return list(inspect.signature(kind).parameters) if inspect.isclass(kind) else []


def _subclasses(path: str) -> Iterator[str]:
    kinds = [_imported(path)]
    while kinds:
        kind = kinds.pop()
        if inspect.isclass(kind) and kind is not type:
            kinds += kind.__subclasses__()
            yield kind.__name__


def _plain(kind: str) -> str:
    named = TYPE.match(kind)
    return named[1] if named else kind.removeprefix("typing.")
