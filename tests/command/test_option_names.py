"""Options, keys and classes that there are not are refused from source alone; what there is never is."""

from __future__ import annotations

import inspect
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from sparsight.command.checks.option_names import check_option_names
from sparsight.command.cli import METHODS, SparsightCLI
from sparsight.command.options import SHARED, options_of_verb
from sparsight.common.errors import ConfigurationError

QUICK = ["fit", "--config", "experiment/quickstart"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["fit", "--confg", "x"],
            r"^fit: there is no option --confg; did you mean --config\?; see sparsight fit --help$",
        ),
        (["fit"], r"^fit: no model is given: add --config CONFIG, such as experiment/quickstart"),
        (["fit", "--model.sampling.steps", "3"], r"^fit: no model is given: add --config CONFIG"),
        (["fit", "--model.class_path.help", "--trainer.max_stepz=1"], r"^trainer\.max_stepz"),  # which asks only
        (["fit", "--config"], r"^fit: --config needs a value"),
        ([*QUICK, "--trainer.max_steps", "--report", "false"], r"^fit: --trainer\.max_steps needs a value"),
        (["fit", "experiment/quickstart"], r"belongs to no option; did you mean --config experiment/quickstart\?"),
        (["fit", "--max_steps", "3"], r"^fit: there is no option --max_steps; did you mean --trainer\.max_steps\?"),
        (["fit", "-config", "x"], r"there is no option -config; did you mean --config"),
        (["validate", "--ckpt", "x"], r"there is no option --ckpt; did you mean --ckpt_path\?"),
        (["export", "--outputt=x"], r"export: there is no option --outputt; did you mean --output"),
        (["fit", "--output", "x"], r"fit: there is no option --output"),  # of other verbs
        (
            ["predict", *QUICK[1:], "--images.count", "4"],
            r"^predict: there is no option --images\.count; did you mean --images\.folder\?",
        ),
        ([*QUICK, "--trianer.max_steps", "3"], r"did you mean --trainer\.max_steps\?"),
        ([*QUICK, "--trainer.max_stepz", "3"], r"^trainer\.max_stepz: the trainer has no .* did you mean max_steps"),
        ([*QUICK, "--model.layers", "All"], r"^model\.layers: Att.* has no such option; SparseLayerTuning has it$"),
        ([*QUICK, "--model.techer", "x"], r"^model\.techer: AttentionDistillation has no .* did you mean teacher"),
        ([*QUICK, "--model.init_args.techer", "x"], r"^model\.techer: AttentionDistillation has no such option"),
        (
            [*QUICK, "--data.batchsize=3"],
            r"^data\.batchsize: TeacherSamplesDataModule .* did you mean batch_size",
        ),
        ([*QUICK, "--model.sampling.stepz=3"], r"^model\.sampling\.stepz: Sampling has no .* did you mean steps\?"),
        ([*QUICK, "--model.loading.variantt", "3"], r"^model\.loading\.variantt: TeacherLoading .* mean variant\?"),
        ([*QUICK, "--model.trained.lora.rnk", "3"], r"^model\.trained\.lora\.rnk: LoRA has .* did you mean rank\?"),
        (
            [*QUICK, "--model.mixer.init_args.kernle_size=3"],
            r"^model\.mixer\.kernle_size: DeltaConvBlock has no such option; did you mean kernel_size\?",
        ),
        (
            [*QUICK, "--model.stages.0.lr", "1e-3"],
            r"^fit: --model\.stages\.0\.lr: an entry of a list .* its number: give --model\.stages '\[\.\.\.\]'",
        ),
        (
            [*QUICK, "--trainer.callbacks.3.every_n_steps=2"],
            r"give --trainer\.callbacks '\[\.\.\.\]' as a whole, or write",
        ),
        (["fit", "--model", "SparseLayerTunning"], r"^model: there is no class .* did you mean SparseLayerTuning\?"),
        (["fit", "--data", "datamodules.ImagDataModule"], r"did you mean datamodules\.ImageDataModule or"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_what_there_is_not_is_refused_on_the_command_line(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        check_option_names(arguments)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "model: {class_path: AttentionDistillation, init_args: {stages: [{stepz: 3}]}}",
            r"model\.stages\.stepz: Stage has",
        ),
        (
            "model: {class_path: AttentionDistillation, init_args: {trained: {lora: {rnk: 3}}}}",
            r"model\.trained\.lora\.rnk: LoRA has no such option; did you mean rank\?",
        ),
        ("modell: {}\ndata: [class_path]", r"there is no option modell; did you mean model\?"),
        ("trainer: {max_step: 3}", r"trainer\.max_step: the trainer has no such option; did you mean max_steps"),
        ("data: {class_path: InstructionDataModule, init_args: {batch: 3}}", r"data\.batch: InstructionDataModule has"),
        (
            "data: {class_path: ImageDataModule, init_args: {allowed: {corupt_share: 1}}}",
            r"data\.allowed\.corupt_share: AllowedImages has no such option; did you mean corrupt_share",
        ),
        (
            "data: {class_path: ImageDataModule, init_args: {train: {class_path: FolderRecords, init_args: {rot: a}}}}",
            r"data\.train\.rot: FolderRecords has no such option; did you mean root\?",
        ),
        (
            "data: {class_path: ImageDataModule, init_args: {train: {class_path: datamodules.FolderRecord}}}",
            r"data\.train: there is no class 'datamodules\.FolderRecord'; did you mean datamodules\.FolderRecords",
        ),
        (
            "trainer: {callbacks+: [{class_path: callbacks.SampleGrid, init_args: {every_step: 3}}]}",
            r"trainer\.callbacks\.0\.every_step: SampleGrid has no such option; did you mean every_n_steps\?",
        ),
        (
            "trainer: {callbacks+: [{class_path: callbacks.TrainableEMA, init_arg: {decay: 0.9}}]}",
            r"trainer\.callbacks\.0\.init_arg stands beside class_path; did you mean init_args\?",
        ),
        (
            "data: {class_path: ImageDataModule, batch_size: 4}",
            r"data\.batch_size stands beside class_path: options of a class stand below init_args",
        ),
        ("model: null", r"model is null: name a class"),
    ],
    ids=lambda value: value[:30],
)
def test_and_in_a_config_file(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=rf"^{file}: {said}"):
        check_option_names(["fit", "--config", str(file)])


def test_a_later_file_is_read_with_the_class_of_an_earlier_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for text in ("model: {sampling: {stepz: 4}}", "model: {init_args: {sampling: {stepz: 4}}}"):
        file.write_text(text)
        with pytest.raises(ConfigurationError, match=rf"^{file}: model\.sampling\.stepz: Sampling has no such option"):
            check_option_names([*QUICK, "--config", str(file)])


def test_shipped_configs_pass() -> None:
    for file in sorted(Path("configs").rglob("*.yaml")):
        check_option_names(["fit", "--config", str(file)])


@pytest.mark.parametrize(
    "arguments",
    [
        [*QUICK, "--data.cache_dir", "x", "--model.sample_size=32"],  # former names
        [*QUICK, "--model.mixer", "NoMixing", "--model.mixer.kernle_size", "3"],  # of which class, the parser knows
        [*QUICK, "--model.optimizer.whatever", "3", "--model.site_weights.transformer_blocks", "2"],
        [*QUICK, "--model.help", "--trainer.callbacks+=RunProgress"],
        [*QUICK, "--trainer.callbacks.every_n_steps", "3", "--trainer.logger.name", "x", "-c", "experiment/lvlm_demo"],
        [*QUICK, "--model", "my_models.Own", "--model.own", "-3", "--data", "{class_path: mine}", "--data.mine", "x"],
        [*QUICK, "--model", "LightningModule", "--trainer.callbacks", "callbacks.RunProgress"],
        ["--config", "experiment/quickstart", "fit", "--whatever", "x"],  # left to the parser
        ["fit", "-cexperiment/quickstart", "--trainer.max_steps", "-1"],
        ["compare", "a", "b", "--names", "a", "b"],
    ],
    ids=lambda value: " ".join(value[-2:]),
)
def test_what_source_cannot_tell_is_left_to_the_parser(arguments: list[str]) -> None:
    check_option_names(arguments)


class _Done(BaseException):
    """The parser is all that is wanted of the command."""


class _ParserOfFit(SparsightCLI):
    options: list[str]

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        actions = self._subcommand_parsers["fit"]._actions
        type(self).options = [each for action in actions for each in action.option_strings]
        raise _Done


def test_all_that_the_parser_takes_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sparsight", "fit"])
    with suppress(_Done):
        _ParserOfFit()
    assert "--trainer.max_steps" in _ParserOfFit.options
    for option in {*_ParserOfFit.options} - {"--config", "--include"}:  # whose value is looked up, and for files alone
        if option.startswith("--"):
            check_option_names([*QUICK, f"{option}=x"])
    for verb, filled_in in SparsightCLI.subcommands().items():
        own = set(inspect.signature(METHODS[verb]).parameters) - filled_in - {"self"}
        assert set(options_of_verb(verb)) == own | {*SHARED}
