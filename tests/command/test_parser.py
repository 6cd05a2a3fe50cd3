"""Mistakes in arguments: one line with key, value and close names, one with where help is, and no page of usage."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Union

import pytest
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import Trainer

from sparsight.command.cli import SparsightCLI, main
from sparsight.command.parser import in_one_line

DEMO = ["--config", "experiment/lvlm_demo"]
QUICK = ["--config", "experiment/quickstart"]
TUNING = "lightning_modules.SparseLayerTuning"


@pytest.mark.parametrize(
    ("arguments", "said", "see"),
    [
        (["fti", *DEMO], "sparsight: .*invalid choice: 'fti'.*; did you mean fit?", "sparsight --help"),
        (["fit"], "sparsight: .* required: fit.data, fit.model; give a --config that has them", "sparsight --help"),
        (
            ["fit", *DEMO, "--model.stage", "3"],
            "sparsight fit: model.stage: SparseLayerTuning has no such option; did you mean stages?",
            f"sparsight fit --model.help {TUNING}",
        ),
        (["fit", *DEMO, "--trainer.max_stepz", "3"], "unrecognized .*; did you mean --trainer.max_steps or", None),
        (["fit", *DEMO, "--trainer.max_steps", "abc"], "trainer.max_steps: expected int, got 'abc'", None),
        (["fit", *DEMO, "--model.layers", "Unifrom"], "model.layers: there is no class 'Unifrom'.* Uniform", None),
        (
            ["fit", *DEMO, "--model.layers.ratioo", "1"],
            "model.layers.ratioo: Uniform has no .* did you mean ratio",
            None,
        ),
        (["fit", *DEMO, "--model.layers.ratio", "x"], "model.layers.ratio: expected float, got 'x'", None),
        (
            ["fit", *QUICK, "--model.sampling.stepz", "3"],
            "model.sampling.stepz: there is no .* did you mean steps?",
            None,
        ),
        (
            ["fit", *QUICK, "--model.sampling", "20"],
            "model.sampling: 20 is given, where options are asked for: --model.sampling.steps, ",
            None,
        ),
        *(
            (
                ["fit", *QUICK, "--model.sites", given],
                f"model.sites: {re.escape(given)} is given, where options are asked for: --model.sites.include, .*, "
                "--model.sites.min_tokens",
                None,
            )
            for given in ("*.attn2", "1024", "['mid_block*']")
        ),
        (
            ["fit", *QUICK, "--model.trained.lora", "3"],
            "model.trained.lora: 3 is given, where options are asked for: --model.trained.lora.rank, ",
            None,
        ),
        *(
            (
                ["fit", *DEMO, "--model.layers", given],
                f"model.layers: {re.escape(given)} is given, where a class is asked for, such as .*Explicit",
                None,
            )
            for given in ("[1, 2]", "0.25")
        ),
        (
            ["fit", *QUICK, "--model.mixer", "[1, 2]"],
            r"model.mixer: \[1, 2\] is given, where a class is asked for",
            None,
        ),
        *(
            (["fit", *QUICK, option, given], f"{option[2:]}: there is no class '{given}'; did you mean {meant}", None)
            for option, given, meant in (
                ("--model.optimizer", "AdamX", "Adamax or Adam?"),
                ("--model.optimizer", "torch.optim.AdamX", "torch.optim.Adamax or torch.optim.Adam?"),
                ("--model.mixer", "blockss.DeltaConvBlock", "blocks.DeltaConvBlock?"),
            )
        ),
        (["fit", *DEMO, "--model.layers", "\u2028&"], "model.layers: '' is given, where a class is asked for", None),
        (
            ["fit", *QUICK, "--model.optimizer.lr", "3"],
            "model.optimizer.lr: AdamW gets lr from the model, where stages or schedule have it",
            None,
        ),
        (
            ["fit", *QUICK, "--trainer.callbacks+", "ExportAtEnd", "--trainer.callbacks.outptu", "x"],
            "trainer.callbacks.outptu: ExportAtEnd has no such option; did you mean output?",
            None,
        ),
        (["fit", *DEMO, "--model.stages", "[{steps: x}]"], "model.stages.0.steps: expected int, got 'x'", None),
        (
            ["fit", *DEMO, "--trainer.callbacks+=callbacks.Foo"],
            "trainer.callbacks: there is no class 'callbacks.Foo'$",
            None,
        ),
        (["fit", *QUICK, "--model.mixer.kernel_siz", "3"], "kernel_siz: DeltaConvBlock has no .* kernel_size", None),
        (["analyze", *DEMO, "--scores+=BlockInfluenc"], "scores: there is no class .* did you mean BlockInflu", None),
        (["analyze", *QUICK, "--mixers", "NoMix"], r"mixers: expected a list, got 'NoMix'; write '\[NoMix\]'", None),
        (["inspect", *DEMO, "--split", "trian"], r"split: expected Literal\['train', 'val', 'test'\], got", None),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_a_line_says_what_is_wrong_and_another_where_help_is(
    arguments: list[str], said: str, see: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    check(capsys.readouterr().err, said.replace("?", r"\?"), see or f"sparsight {arguments[0]} --help")


def check(text: str, said: str, see: str) -> None:
    lines = text.splitlines()
    assert len(lines) == 2, text
    assert re.search(said, lines[0]) and lines[0].startswith("sparsight")
    assert lines[1] == f"see {see}"


@pytest.mark.parametrize("verb", SparsightCLI.subcommands())
def test_every_verb_does(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, *DEMO, "--nonsense", "3"])
    check(capsys.readouterr().err, "unrecognized arguments: --nonsense 3$", f"sparsight {verb} --help")


def test_the_same_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("model: {init_args: {dtypee: bfloat16}}")
    with pytest.raises(SystemExit):
        main(["fit", *DEMO, "--config", str(wrong)])
    check(
        capsys.readouterr().err,
        r"model.dtypee: SparseLayerTuning has no such option; did you mean loading\.dtype",
        f"sparsight fit --model.help {TUNING}",
    )


@pytest.mark.parametrize("given", ["1", "1.0"])
def test_one_batch_is_not_all_of_them(
    given: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"limit_{part}_batches" for part in ("train", "val", "test", "predict")]
    for option in options:
        other = Union[float, int, None]  # noqa: UP007  equal to Lightning's, and what typing may give in its place
        monkeypatch.setitem(inspect.unwrap(Trainer.__init__).__annotations__, option, other)
    with pytest.raises(SystemExit):
        main(["fit", *DEMO, *(f"--trainer.{option}={given}" for option in options), "--print_config"])
    shown = capsys.readouterr().out
    assert all(f" {option}: {given}\n" in shown for option in options)


def test_messages_of_an_unknown_form_are_kept_whole() -> None:
    assert in_one_line("all\n  is - not\nwell") == "all is - not well"
    assert in_one_line('Parser key "a":\n  it is so\n  and so') == "a: it is so; and so"


class Containers:
    """Options that hold several values."""

    def __init__(
        self,
        tokens: Sequence[int] = (),
        names: Collection[str] = (),
        pair: tuple[int, int] | None = None,
        sizes: Mapping[str, int] | None = None,
        table: dict[str, int] | None = None,
    ) -> None: ...


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--m.tokens=5", "m.tokens: expected a list, got '5'; write '[5]'"),
        ("--m.names=5", "m.names: expected a list, got '5'; write '[5]'"),
        ("--m.pair=[1, 2, 3]", "m.pair: expected a list with 2 elements, got '[1, 2, 3]'"),
        ("--m.sizes=5", "m.sizes: expected a mapping, got '5'"),
        ("--m.table=[1]", "m.table: expected a mapping, got '[1]'"),
        ("--m.tokens=[one]", "m.tokens: expected int, got 'one'"),
    ],
)
def test_lists_and_mappings_are_called_so(given: str, message: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Containers, "m")
    with pytest.raises(ArgumentError) as error:
        parser.parse_args([given])
    assert in_one_line(str(error.value)) == message


def test_options_are_gathered_for_the_verb_that_is_asked_for_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    add = SparsightCLI.add_arguments_to_parser
    monkeypatch.setattr(
        SparsightCLI, "add_arguments_to_parser", lambda cli, parser: (built.append(parser.prog), add(cli, parser))[1]
    )
    with pytest.raises(SystemExit):
        main(["inspect", "--help"])
    assert len(built) == 1
    built.clear()
    with pytest.raises(SystemExit):
        main(["--help"])
    assert len(built) == len(SparsightCLI.subcommands())
