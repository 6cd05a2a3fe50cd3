"""YAML files whose mistakes are told with file, line and column."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import yaml

from sparsight.common.errors import ConfigurationError

try:
    from yaml import CSafeLoader as FastLoader
except ImportError:  # PyYAML without its library in C
    from yaml import SafeLoader as FastLoader

_DEEPEST = 100  # levels: no config of ours has more than a dozen
_LARGEST = 100_000  # values, those that aliases repeat counted each time
_SHOWN = 80


class _Loader(FastLoader):
    """Plain data only, and dates stay text, as in the command's own parser."""

    yaml_implicit_resolvers: ClassVar[Any] = {
        letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_yaml(path: Path) -> dict[str, Any]:
    """The options that a YAML file holds.

    Raises:
        ConfigurationError: It is not UTF-8, no YAML, no mapping, names a key twice, or is nested too deep; the message
            says where.
        OSError: It cannot be read.
    """
    text = _text(path)
    try:
        _check_depth(path, text)
        node = yaml.compose(text, Loader=_Loader)
        if not isinstance(node, yaml.MappingNode):
            kind = "is empty" if node is None else f"holds a {'list' if node.id == 'sequence' else 'text'}"
            raise ConfigurationError(f"{path} {kind}, not a mapping of options such as `trainer:` and `model:`")
        _check_size(path, node, {}, set())
        content = _built(path, node)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}{_where(error)}: {_problem(error)}") from error
    return content


def yaml_value(text: str) -> Any:
    """What a text on the command line means as YAML; the text itself where it is none."""
    try:
        return yaml.load(text, Loader=_Loader)  # a safe loader
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8: save the file as UTF-8"
        ) from error


def _check_depth(path: Path, text: str) -> None:
    """Refuse what would exhaust the stack of those that read it by recursion."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ConfigurationError(f"{path}, {_line(event.start_mark)}: nested more than {_DEEPEST} levels deep")


def _check_size(path: Path, node: yaml.Node, sizes: dict[int, int], above: set[int]) -> int:
    """Number of values with aliases written out; refuses aliases of what holds them, and keys that come twice."""
    if id(node) in above:
        raise ConfigurationError(f"{path}, {_line(node.start_mark)}: an alias refers to what it is a part of")
    if id(node) not in sizes:
        if isinstance(node, yaml.MappingNode):
            _check_keys(path, node)
        size = 1 + sum(_check_size(path, part, sizes, above | {id(node)}) for part in _parts(node))
        if size > _LARGEST:
            raise ConfigurationError(f"{path}, {_line(node.start_mark)}: more than {_LARGEST} values")
        sizes[id(node)] = size
    return sizes[id(node)]


def _check_keys(path: Path, node: yaml.MappingNode) -> None:
    seen: dict[tuple[str, str], Any] = {}
    for key, _ in node.value:
        name = (key.tag, str(key.value))
        if isinstance(key, yaml.ScalarNode) and name in seen:
            raise ConfigurationError(
                f"{path}, {_line(key.start_mark)}: {key.value!r} is in {_line(seen[name])} already: leave one out"
            )
        seen[name] = key.start_mark


def _parts(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _built(path: Path, node: yaml.MappingNode) -> dict[str, Any]:
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    except ValueError as error:  # such as a number of more digits than Python converts
        text = next((part for part in _scalars(node) if not _is_fine(part)), node)
        raise ConfigurationError(
            f"{path}, {_line(text.start_mark)}: {str(text.value)[:_SHOWN]!r} cannot be read: {error}"
        ) from error
    finally:
        loader.dispose()


def _scalars(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.ScalarNode):
        yield node
    for part in _parts(node):
        yield from _scalars(part)


def _is_fine(node: yaml.ScalarNode) -> bool:
    loader = _Loader("")
    try:
        loader.construct_document(node)
    except ValueError:
        return False
    finally:
        loader.dispose()
    return True


def _where(error: yaml.YAMLError) -> str:
    mark = (error.problem_mark or error.context_mark) if isinstance(error, yaml.MarkedYAMLError) else None
    return "" if mark is None else f", {_line(mark)}, column {mark.column + 1}"


def _line(mark: Any) -> str:
    return f"line {mark.line + 1}"


def _problem(error: yaml.YAMLError) -> str:
    parts = [error.context, error.problem] if isinstance(error, yaml.MarkedYAMLError) else []
    told = ", ".join(part for part in parts if part)
    return (told or " ".join(str(error).split())) + (
        ": indent with spaces, not tabs" if "cannot start any token" in told else ""
    )
