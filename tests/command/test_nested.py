"""Values of options below an option of a class, given on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from sparsight.command.parser import Parser
from sparsight.command.parsing.nested import keep_nulls


@dataclass(frozen=True)
class Adapters:
    """Options with an option that may be nothing."""

    rank: int = 4
    targets: list[str | None] | None = None


@dataclass(frozen=True)
class Parts:
    """Options in a group."""

    name: str | None = "a name"
    size: int | None = 1
    adapters: Adapters | None = field(default_factory=Adapters)


class Owner:
    """What has a group."""

    def __init__(self, parts: Parts = Parts()) -> None:
        """Take anything."""


@pytest.fixture
def parser() -> Parser:
    keep_nulls()
    parser = Parser(exit_on_error=False)
    parser.add_subclass_arguments(Owner, "owner")
    return parser


@pytest.mark.parametrize(
    ("option", "given", "kept"),
    [
        ("name", "null", None),
        ("name", "other", "other"),
        ("size", "null", None),
        ("size", "3", 3),
        ("adapters", "null", None),
        ("adapters.rank", "2", 2),
        ("adapters.targets", "null", None),
        ("adapters.targets", "[null, a, '\u00fc', it's]", [None, "a", "\u00fc", "it's"]),
    ],
)
def test_null_is_nothing_at_any_depth(parser: Parser, option: str, given: str, kept: Any) -> None:
    config = parser.parse_args(["--owner", f"{__name__}.Owner", f"--owner.parts.{option}={given}"])

    assert config[f"owner.init_args.parts.{option}"] == kept
