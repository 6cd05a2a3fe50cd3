"""What the ``list`` verb does: everything that a configuration can name, with papers and properties."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from sparsight.command.plugins import GROUPS, Plugin, known_plugins
from sparsight.common.errors import ConfigurationError
from sparsight.common.near import did_you_mean

NARROW, WIDE = 80, 120  # columns
USAGE = f"""\
usage: sparsight list [GROUP ...] [--json]

Names what a configuration can choose, with papers and properties: everything, or the groups named, with all options.
Classes of yours, in Python files of the current folder, are listed after ours.

groups: {", ".join(GROUPS)}
"""


def main(arguments: Sequence[str]) -> None:
    """Print the list.

    Args:
        arguments: Names of groups, all of them if there are none; ``--json`` for a form that programs read.

    Raises:
        ConfigurationError: There is no such group.
    """
    if "--help" in arguments or "-h" in arguments:
        print(USAGE, end="")
        return
    chosen = [each for each in arguments if each != "--json"]
    for each in chosen:
        if each not in GROUPS:
            close = did_you_mean(each, list(GROUPS))
            raise ConfigurationError(f"list: there is no group {each!r}{close}; groups are {', '.join(GROUPS)}")
    found = known_plugins(chosen or GROUPS, folder=Path.cwd())
    if "--json" in arguments:
        print(json.dumps({group: [asdict(plugin) for plugin in plugins] for group, plugins in found.items()}, indent=2))
        return
    width = min(max(shutil.get_terminal_size((NARROW, 0)).columns, NARROW), WIDE)
    column = max((len(plugin.name) for plugins in found.values() for plugin in plugins), default=0) + 4
    for group, plugins in found.items():
        print(f"{group}: {GROUPS[group].title}")
        for plugin in plugins:
            print("\n".join(_lines(plugin, min(column, width // 2), width, in_full=bool(chosen) or group == "mixers")))
        print()


def _lines(plugin: Plugin, column: int, width: int, *, in_full: bool) -> Iterator[str]:
    """A plug-in's lines: name and summary, then what it declares, each below the other."""
    declared = [*plugin.papers, *plugin.properties]
    declared += [f"logged as {', '.join(plugin.logged)}"] if plugin.logged else []
    texts = [plugin.summary, "; ".join(declared)]
    if in_full and plugin.options:
        texts.append(f"options: {', '.join(plugin.options)}")
    first = f"  {plugin.name}"
    if len(first) >= column:
        yield first
        first = ""
    indent = " " * column
    for text in filter(None, texts):
        yield textwrap.fill(
            text,
            width,
            initial_indent=first.ljust(column),
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        first = ""
    if first:
        yield first
