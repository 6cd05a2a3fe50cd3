"""Whatever stands in a config, reading it ends in success or in one line; no weights are loaded for that."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsight.command.arguments import find_config, resolve_configs, set_back
from sparsight.command.checks.early_checks import check_early
from sparsight.command.cli import SparsightCLI
from sparsight.command.mistakes import in_one_line
from sparsight.command.parser import Parser
from sparsight.common.errors import ConfigurationError

SHIPPED = sorted(str(path.relative_to("configs").with_suffix("")) for path in Path("configs/experiment").glob("*.yaml"))
TEXTS = {name: Path(find_config(name)).read_bytes() for name in SHIPPED}
TREES = {name: yaml.safe_load(text) for name, text in TEXTS.items()}
DEEP: Any = "x"
for _ in range(60):
    DEEP = [DEEP]
VALUES = st.one_of(
    st.sampled_from(
        [None, True, -1, 0, 10**30, 1e308, float("nan"), float("inf"), "", "no", "a" * 5000, "\u2028", DEEP]
    ),
    st.text(max_size=12),
    st.integers(),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=6), st.integers(), max_size=3),
    st.sampled_from(
        [{"class_path": "blocks.Nothing"}, {"class_path": 5}, {"class_path": "os.system"}, {"init_args": {}}]
    ),
)
PIECES = [
    b"\t",
    b"\xff",
    b"\0",
    b"&a ",
    b"*a ",
    b"? ",
    b": ",
    b"- ",
    b"{",
    b"]",
    b"'",
    b"|\n",
    b"!!int ",
    b"%",
    b"\r",
    b"<<: ",
    b"\n",
]
CASES: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
}


@pytest.fixture(scope="module")
def parser() -> Parser:
    """The command's parser, as it stands before it sees arguments."""

    class Built(BaseException):
        pass

    class Command(SparsightCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise Built(parser)

    with pytest.raises(Built) as stop:
        Command()
    return stop.value.args[0]


def in_tree(data: st.DataObject, tree: Any) -> Any:
    """The tree with one to three of its values, or keys, changed."""
    tree = copy.deepcopy(tree)
    for _ in range(data.draw(st.integers(1, 3))):
        at = tree
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(at[key], (dict, list)) or not at[key] or data.draw(st.integers(0, 3)) == 0:
                break
            at = at[key]
        what = data.draw(st.sampled_from(["drop", "value", "value", "misspell", "wrap"]))
        if what == "drop":
            del at[key]
        elif what == "misspell" and isinstance(at, dict) and isinstance(key, str):
            place = data.draw(st.integers(0, len(key)))
            at[key[:place] + data.draw(st.text(max_size=2)) + key[place + 1 :]] = at.pop(key)
        else:
            at[key] = [at[key]] if what == "wrap" else copy.deepcopy(data.draw(VALUES))
        if not tree:
            return tree
    return tree


def in_text(data: st.DataObject, text: bytes) -> bytes:
    """The text with some bytes left out, put in, or lines repeated."""
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(start + 40, len(text))))
        piece = data.draw(st.one_of(st.sampled_from(PIECES), st.binary(max_size=6), st.just(text[start:end] * 2)))
        text = text[:start] + piece + text[end if data.draw(st.booleans()) else start :]
    return text


def check(parser: Parser, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Read the config as the command does."""
    capsys.readouterr()
    arguments = ["fit", "--config", str(path)]
    try:
        set_back(resolve_configs(arguments))
        config = parser.parse_args(arguments)
        check_early(config["fit"], "fit")
    except SystemExit as stop:
        lines = capsys.readouterr().err.splitlines()
        assert stop.code == 2 and len(lines) == 2 and lines[0].startswith("sparsight"), lines
    except ConfigurationError as error:
        assert len(str(error).splitlines()) == 1, str(error)
    except Exception as error:
        line = in_one_line(error, begun=False)
        assert line is not None and len(line.splitlines()) == 1, repr(error)


def broken_trees(data: st.DataObject, parser: Parser, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = in_tree(data, TREES[data.draw(st.sampled_from(SHIPPED))])
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8", errors="surrogateescape")
    check(parser, path, capsys)


def broken_texts(data: st.DataObject, parser: Parser, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_bytes(in_text(data, TEXTS[data.draw(st.sampled_from(SHIPPED))]))
    check(parser, path, capsys)


@settings(max_examples=8, **CASES)
@given(data=st.data())
def test_values_and_keys(data: Any, parser: Parser, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken_trees(data, parser, tmp_path / "config.yaml", capsys)


@settings(max_examples=25, **CASES)
@given(data=st.data())
def test_bytes(data: Any, parser: Parser, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken_texts(data, parser, tmp_path / "config.yaml", capsys)


@pytest.mark.faults
@settings(max_examples=3000, **CASES)
@given(data=st.data())
def test_values_and_keys_at_length(
    data: Any, parser: Parser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken_trees(data, parser, tmp_path / "config.yaml", capsys)


@pytest.mark.faults
@settings(max_examples=4000, **CASES)
@given(data=st.data())
def test_bytes_at_length(data: Any, parser: Parser, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken_texts(data, parser, tmp_path / "config.yaml", capsys)
