"""Lists that are given twice: the later one is all that counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ActionConfigFile

from sparsight.command.parser import Parser
from sparsight.command.parsing.lists import replace_lists


class Piece:
    """What a list holds."""

    def __init__(self, size: int = 1, inside: list[Piece] | None = None, **more: Any) -> None:
        """Take anything."""


class Owner:
    """What has lists."""

    def __init__(
        self,
        pieces: list[Piece] | None = None,
        named: dict[str, list[Piece]] | None = None,
        single: Piece | None = None,
    ) -> None:
        """Take anything."""


def piece(**options: Any) -> dict[str, Any]:
    return {"class_path": f"{__name__}.Piece", "init_args": options}


def owner(**options: Any) -> dict[str, Any]:
    return {"owner": {"class_path": f"{__name__}.Owner", "init_args": options}}


@pytest.fixture
def parser() -> Parser:
    replace_lists()
    parser = Parser(exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_subclass_arguments(Owner, "owner")
    parser.add_argument("--listed", type=list[Piece])
    return parser


def parse(parser: Parser, folder: Path, *given: Any) -> Any:
    arguments = []
    for number, each in enumerate(given):
        if isinstance(each, dict):
            file = folder / f"{number}.yaml"
            file.write_text(yaml.safe_dump(each))
            arguments += ["--config", str(file)]
        else:
            arguments.append(each)
    return parser.parse_args(arguments)


ONE = [piece(size=7, inside=[piece(size=8)])]
OTHER = [piece(inside=[piece()])]


@pytest.mark.parametrize("second", ["file", "option"])
def test_entries_of_a_later_list_inherit_nothing(parser: Parser, tmp_path: Path, second: str) -> None:
    text = yaml.safe_dump(OTHER, default_flow_style=True, width=10_000).strip()
    as_file = [owner(pieces=OTHER, named={"a": OTHER}) | {"listed": OTHER}]
    as_option = [f"--owner.pieces={text}", f"--owner.named={{a: {text}}}", f"--listed={text}"]
    given = as_file if second == "file" else as_option
    found = parse(parser, tmp_path, owner(pieces=ONE, named={"a": ONE}) | {"listed": ONE}, *given)
    options = found.owner.init_args
    for entries in (options.pieces, options.named["a"], found.listed):
        assert entries[0].init_args.size == 1
        assert entries[0].init_args.inside[0].init_args.size == 1


def test_what_is_no_list_still_inherits_and_lists_are_still_added_to(parser: Parser, tmp_path: Path) -> None:
    config = owner(pieces=ONE, single=piece(size=7)) | {"listed": ONE}
    kind = f"{__name__}.Piece"
    given = ["--owner.single.inside=[]", f"--listed+={kind}", "--listed.size=5"]
    found = parse(parser, tmp_path, config, owner(single=piece(inside=[])), *given)
    options = found.owner.init_args
    assert (options.single.init_args.size, options.pieces[0].init_args.size) == (7, 7)
    assert [entry.init_args.size for entry in found.listed] == [7, 5], "the last one is the one that is set"
