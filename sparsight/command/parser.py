"""The command's parser, whose errors are a line for the reader and not a page of usage.

jsonargparse says what was wrong for every type that it tried, one inside the other by indentation. What was meant is
the deepest of them.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from sparsight.command.options import close_options
from sparsight.command.parsing.groups import asks_for_class, value_for_group
from sparsight.common.names import named
from sparsight.common.near import closest, did_you_mean, suggestion

KEY = re.compile(r'Parser key "(.+)":')
CLASS = re.compile(r"Problem with given class_path '(.+)':")
TYPE = re.compile(r"<class '([\w.]+)'>")
TYPES = re.compile(r"(?:\w+\.)+\w+")
VALUE = re.compile(r"Given value: (.+)")
OPTION = re.compile(r"Option '(.+)' is not accepted")
INNER_OPTION = re.compile(r"unrecognized arguments: --(\w+)\.(\w+)")  # of an option that has options itself
NO_CLASS = re.compile(r"Expected a dot import path string: (.+)")
NOT_IN_MODULE = re.compile(
    r"(?:module '(.+)' has no attribute '(\w+)'|No module named '([\w.]+)')(?:\. Got value: ([\w.]+)$)?"
)
NO_SPEC = re.compile(r"Expected an import path or a subclass spec, but got (.*)")
OTHER_KIND = re.compile(r"Expected '(.+)' to be a subclass of <class '([\w.]+)'>")
EXPECTED = re.compile(r"Expected an? (.+?)(?:\. Got value: (.*))?$")
CHOICE = re.compile(r"'([^']+)'")
UNKNOWN = re.compile(r"unrecognized arguments: ([^\s=]+)|accept option '(.+?)'|invalid choice: '(.+?)'")
CALLABLE = re.compile(r"Type (.+) expects a function or a callable class: (.+)")
ITS_CLASS = re.compile(r"\.+ Got value: (?:Namespace\(|\{)'?class_path'?[=:] ?'(.+?)'.*$")
MISSING = re.compile(r"the following arguments are required: (\w+)")
BRACKET_OR_TEXT = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|[\[\](){},]")
REQUIRED = re.compile(r"the following arguments are required: \w+\.(data|model)")
NOISE = re.compile(
    r"$|Does not validate|Errors:|Given value type|Expected a <class 'NoneType'>|Expected a path but|"
    r"Not a valid subclass|Subclass types expect|a class path \(str\)|a dict with"
)
NOT_GIVEN = ("LightningModule", "LightningDataModule")  # classes that stand for none
MADE = "Namespace(class_path="  # begins what an entry of a list was made into
CONTAINERS = {  # by the name of a type, however it is imported
    "a list": ("list", "tuple", "set", "frozenset", "sequence", "collection", "iterable", "abstractset"),
    "a mapping": ("dict", "mapping", "mutablemapping"),
}
_MOST_OPTIONS = 12  # of a class, to list them all


class Parser(LightningArgumentParser):
    """LightningCLI's parser of the command and of each verb."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong with the arguments and where help is, and end."""
        if not self.exit_on_error:  # one of those that try a type
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self  # jsonargparse adds it to argparse's errors
        known = [name for action in parser._actions for name in (*action.option_strings, *(action.choices or ()))]
        prog = parser.prog.replace(" [options]", "")
        sys.stderr.write(f"{prog}: {in_one_line(message, known)}\nsee {prog} {help_option(message)}\n")
        self.exit(2)

    def dump(self, *args: Any, **options: Any) -> str:
        """A configuration as text; it is not checked again, as that was done when it was parsed and takes long."""
        return super().dump(*args, **_without_check(options))

    def save(self, *args: Any, **options: Any) -> None:
        """A configuration as a file; it is not checked again, as that was done when it was parsed and takes long."""
        super().save(*args, **_without_check(options))


def _without_check(options: dict[str, Any]) -> dict[str, Any]:
    """Options of writing by their names of today; Lightning gives an older one."""
    renamed = {"skip_unset" if name == "skip_none" else name: value for name, value in options.items()}
    return {"skip_validation": True} | renamed


@dataclass
class _Complaint:
    depth: float
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
    if group := value_for_group(message):
        return group
    complaints = _meant(message)
    if not complaints or not complaints[0].keys:
        unknown = UNKNOWN.search(message)
        close = _close_option(next(filter(None, unknown.groups())), list(known)) if unknown else ""
        remedy = "; give a --config that has them" if REQUIRED.match(message) else ""
        return " ".join(message.split()) + close + remedy
    first = complaints[0]
    key = ".".join(_with_position(message, first)).replace("init_args.", "")
    if found := OPTION.match(first.text):
        return f"{key}.{found[1]}: {_no_option(found[1], first)}"
    if found := INNER_OPTION.match(first.text):
        close = did_you_mean(found[2], _inner_options(next(iter(first.kinds[-1:]), ""), found[1]))
        return f"{key}.{found[1]}.{found[2]}: there is no such option{close}"
    if found := MISSING.match(first.text):
        return f"{key}.{found[1]} is missing: give it beside what is given of {key}"
    if found := OTHER_KIND.match(first.text):
        return f"{key}: {found[1]} is no {found[2]}"
    if found := NO_CLASS.match(first.text):
        return f"{key}: there is no class {found[1]!r}{_close_class(found[1], first)}"
    if found := NOT_IN_MODULE.match(first.text):
        missing = found[3] or f"{found[1]}.{found[2]}"
        names = [found[4], first.value, *reversed(first.kinds), None if found[3] else missing]
        given = next((name for name in names if name and f"{name}.".startswith(f"{missing}.")), None)
        if given is not None:  # else it is a package that the class itself asks for
            return f"{key}: there is no class {given!r}{_close_class(given, first)}"
    if found := NO_SPEC.match(first.text):
        kinds = [named(base) for base in first.bases]
        return asks_for_class(key, next((kind for kind in reversed(kinds) if inspect.isclass(kind)), object), found[1])
    expected = [EXPECTED.match(complaint.text) for complaint in complaints]
    if all(expected):
        types = " or ".join(_plain(match[1]) for match in expected if match and not NO_CLASS.match(match[0]))
        value = next((match[2] for match in expected if match and match[2]), first.value)
        listed = f"; write {_as_list(value)}" if types == "a list" else ""
        return f"{key}: expected {types}, got {value!r}{did_you_mean(value, CHOICE.findall(types))}{listed}"
    return f"{key}: {'; '.join(complaint.text for complaint in complaints)}"


def _as_list(value: str) -> str:
    """How what was given is written as the only entry of a list, or its entries as one."""
    if value.startswith("{"):
        return "a dash before its first key, as each entry of a list has"
    return f"'[{value}]'"


def _with_position(message: str, complaint: _Complaint) -> list[str]:
    """The keys that lead to what is wrong, with its position where it lies in a list of objects.

    jsonargparse goes through a list in order and puts what it has made of an entry in its place, so that those before
    the wrong one are namespaces when it shows the list.
    """
    missing = MISSING.match(complaint.text)
    keys = []
    for key in complaint.keys:
        keys.append(key)
        name = re.escape(key)
        shown = [rf"'{name}': ", rf"key='{name}', val=", rf"\b{name}="] + (
            ["Given value: "] if len(complaint.keys) == 1 else []
        )
        found = re.search(rf"(?:{'|'.join(shown)})\[(?=\{{|{re.escape(MADE)})", message)
        entries = _entries(message[found.end() :]) if found else []
        wrong = (
            missing and re.search(rf"\b{missing[1]}=None\b", entry) if entry.startswith(MADE) else True
            for entry in entries
        )
        keys += [str(position) for position, is_wrong in enumerate(wrong) if is_wrong][:1]
    return keys


def _entries(text: str) -> list[str]:
    """Entries of a list as Python shows it, from behind its opening bracket."""
    depth, start, entries = 0, 0, []
    for found in BRACKET_OR_TEXT.finditer(text):
        depth += (found[0] in "([{") - (found[0] in ")]}")
        if depth < 0 or (depth == 0 and found[0] == ","):
            entries.append(text[start : found.start()].strip())
            start = found.end()
        if depth < 0:
            break
    return entries


def help_option(message: str) -> str:
    """The option that lists what could have been given: a class's own help where one of its options is wrong."""
    meant = next(iter(_meant(message)), None)
    if meant is not None and OPTION.match(meant.text) and meant.keys in (["model"], ["data"]):
        return f"--{meant.keys[0]}.help {meant.kinds[0]}"
    return "--help"


def _meant(message: str) -> list[_Complaint]:
    """The deepest complaints; several if several types were possible."""
    found = list(_complaints(message))
    deepest = max((complaint.depth for complaint in found), default=0.0)
    chosen: dict[str, _Complaint] = {}
    for complaint in found:
        if complaint.depth == deepest:
            chosen.setdefault(complaint.text, complaint)  # the class that was named comes before its base
    return list(chosen.values())


def _complaints(message: str) -> list[_Complaint]:
    found: list[_Complaint] = []
    headings: list[tuple[float, re.Pattern[str], list[str]]] = []
    for depth, text in _lines(message):
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
            keys, kinds = ([names[0] for _, kind, names in headings if kind is each] for each in (KEY, CLASS))
            last_key = max((at for at, (_, kind, _) in enumerate(headings) if kind is KEY), default=0)
            bases = [name for _, kind, names in headings[last_key:] if kind is TYPES for name in names]
            found.append(_Complaint(depth, text, keys, kinds, bases))
    return found


def _lines(message: str) -> list[tuple[float, str]]:
    """Depth and text of each line.

    What a class says that was given where a function is expected begins in the line of the type, and ends with the
    name of the class: both are turned into headings like those of other classes.
    """
    lines: list[tuple[float, str]] = []
    unnamed: list[int] = []  # headings for the names that come at the end
    for line in message.splitlines():
        text = line.lstrip(" -")
        depth: float = len(line) - len(text)
        name = ITS_CLASS.search(text)
        text = text[: name.start()] if name else text
        if match := CALLABLE.match(text):
            unnamed.append(len(lines) + 1)
            lines += [(depth, f"Subtypes: [{match[1]}]"), (depth + 0.3, "")]
            depth, text = depth + 0.6, match[2]
        lines.append((depth, text))
        if name and unnamed:
            heading = unnamed.pop()
            lines[heading] = (lines[heading][0], f"Problem with given class_path '{name[1]}':")
    return lines


def _close_option(name: str, known: list[str]) -> str:
    """Options that are nearly called so, or the same one of a group that is."""
    name = name.lstrip("-")
    group, _, rest = name.partition(".")
    groups = {option.lstrip("-").partition(".")[0] for option in known if option.startswith("--")}
    if rest and group not in groups and (close := closest(group, sorted(groups))):
        return suggestion([f"--{close[0]}.{rest}"])
    named = {option.lstrip("-"): option for option in known}
    return suggestion([named[each] for each in closest(name, list(named))])


def _no_option(name: str, complaint: _Complaint) -> str:
    path = next(iter(complaint.kinds[-1:]), "")
    kind = path.rpartition(".")[2]
    if kind in NOT_GIVEN:
        which = complaint.keys[0]
        return f"no {which} is given that could have it; give a --config that names one before this, or --{which} CLASS"
    options = _options(path)
    if name in options:  # an argument that whoever makes the object fills in
        return f"{kind} gets {name} from the model, where stages or schedule have it"
    close = close_options(kind, name, options)
    listed = f"; it has {', '.join(options)}" if options and len(options) <= _MOST_OPTIONS else ""
    return f"{kind} has no such option{close or listed}"


def _close_class(given: str, complaint: _Complaint) -> str:
    """Classes that could be given there and are nearly called so; by their full name if a full name was given."""
    kinds = {kind.__name__: kind for base in complaint.bases for kind in _subclasses(named(base))}
    if not kinds:
        kinds = {kind.__name__: kind for base in _wanted(complaint) for kind in _subclasses(base)}
    module, _, name = given.rpartition(".")
    near = closest(name, list(kinds))
    return suggestion([_public(kinds[each], module) for each in near] if module else near)


def _wanted(complaint: _Complaint) -> list[type]:
    """Classes in the annotation of the option that a complaint is about."""
    owner = named(next(iter(complaint.kinds[-1:]), ""))
    if not inspect.isclass(owner) or not complaint.keys:
        return []
    option = inspect.signature(owner).parameters.get(complaint.keys[-1])
    names = re.findall(r"[\w.]+", str(option.annotation)) if option is not None else []
    found = [named(f"{owner.__module__}.{name}") or named(name) for name in names]
    return [each for each in found if inspect.isclass(each)]


def _public(kind: type, module: str) -> str:
    """A class's name in the module that was given, or in the package that offers it."""
    package = kind.__module__.partition(".")[0]
    for place in (module, package, kind.__module__):
        if named(f"{place}.{kind.__name__}") is kind:
            return f"{place}.{kind.__name__}"
    return f"{kind.__module__}.{kind.__name__}"


def _options(path: str) -> list[str]:
    kind = named(path)
    return list(inspect.signature(kind).parameters) if inspect.isclass(kind) else []


def _inner_options(path: str, option: str) -> list[str]:
    """Options of what an option of a class is by default."""
    kind = named(path)
    parameter = inspect.signature(kind).parameters.get(option) if inspect.isclass(kind) else None
    default = None if parameter is None else parameter.default
    return [each.name for each in fields(default)] if is_dataclass(default) else []


def _subclasses(base: Any) -> Iterator[type]:
    kinds = [base]
    while kinds:
        kind = kinds.pop()
        if inspect.isclass(kind) and kind is not type and kind is not object:
            kinds += kind.__subclasses__()
            yield kind


def _plain(kind: str) -> str:
    named = TYPE.match(kind)
    name, space, rest = (named[1] if named else kind.removeprefix("typing.")).partition(" ")
    last = name.rpartition(".")[2].lower()
    words = next((words for words, kinds in CONTAINERS.items() if last in kinds), name)
    return f"{words}{space}{rest}"
