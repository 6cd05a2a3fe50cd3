"""Other libraries' messages, as far as they say something."""

from __future__ import annotations

import importlib
import logging

from sparsight.command.output.quiet import CUT_SHORT, FURTHER, FirstCut, quieten


def test_of_captions_that_are_cut_one_is_shown() -> None:
    cut, shown = FirstCut(), []
    for text in (f"{CUT_SHORT}: ['a']", "Something else", f"{CUT_SHORT}: ['b']"):
        record = logging.LogRecord("diffusers.pipelines.one", logging.WARNING, "file", 1, text, (), None)
        if cut.filter(record):
            shown.append(record.getMessage())
    assert shown == [f"{CUT_SHORT}: ['a']. {FURTHER}", "Something else"]


def test_it_is_set_once_however_many_commands_a_process_runs() -> None:
    importlib.import_module("diffusers")
    quieten()
    quieten()
    assert logging.getLogger("diffusers").handlers
    for handler in logging.getLogger("diffusers").handlers:
        assert sum(isinstance(each, FirstCut) for each in handler.filters) == 1
