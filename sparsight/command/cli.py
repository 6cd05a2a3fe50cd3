"""The ``sparsight`` command: LightningCLI with Sparsight's plug-ins, config lookup and checkpoint policy."""

from __future__ import annotations

import inspect
import signal
import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

import blocks  # noqa: F401  plug-ins are imported so that class_path may be their bare class name
import callbacks
import datamodules  # noqa: F401
import lightning_modules  # noqa: F401
from sparsight.command.arguments import INCLUDE, OURS, WITHOUT_DATA, resolve_configs, set_back
from sparsight.command.checks.early_checks import FromFiles, check_early, names_files
from sparsight.command.checks.empty_keys import check_empty_keys
from sparsight.command.checks.plan_entries import check_plans
from sparsight.command.checks.seeds import seeds_left
from sparsight.command.mistakes import in_one_line
from sparsight.command.output.ending import after_check, ending, log_folder
from sparsight.command.output.following import following
from sparsight.command.output.quiet import quieten, quieten_diffusers
from sparsight.command.parser import Parser
from sparsight.command.parsing.former import follow_former_options
from sparsight.command.parsing.lists import replace_lists
from sparsight.command.parsing.nested import keep_nulls
from sparsight.command.trainer import SparsightTrainer
from sparsight.command.written_once import check_agreement, hand_over, hand_over_source
from sparsight.common.checkpoint.file import local
from sparsight.common.checkpoint.find import options_in
from sparsight.common.checkpoint.run_record import check_options
from sparsight.common.errors import ConfigurationError
from sparsight.common.training.averaging import averaging
from sparsight.diffusion.analyze.verb import Analysed
from sparsight.report.main import PAGE
from sparsight.report.page import write_page
from sparsight.report.read import read_run

WITHOUT_WEIGHTS = ("inspect", "reformulate")  # those that look at data alone
METHODS = dict(inspect.getmembers(SparsightTrainer, inspect.isfunction))  # a verb is called as its method
NO_MODEL = "lightning.pytorch.LightningModule"


class SaveConfig(SaveConfigCallback):
    """Keeps a run's configuration without the verb's own options, so that it serves for every verb."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write ``config.yaml``; an earlier run's ``ckpt_path`` in it would be taken up in silence by what follows."""
        for verb, filled_in in SparsightCLI.subcommands().items():
            for option in inspect.signature(METHODS[verb]).parameters.keys() - filled_in:
                self.config.pop(option, None)
        super().setup(trainer, pl_module, stage)


class SparsightCLI(LightningCLI):
    """One command for all modules: every verb reads the same YAML."""

    def __init__(self, typed: Sequence[str] = ()) -> None:
        """Parse, build and run; what the configuration or the machine is to blame for ends as one line.

        Args:
            typed: Arguments as they were typed; ``sys.argv`` has those with config files resolved.
        """
        self.typed = list(typed)
        self.config: Any = None
        self.trainer: Any = None
        self.opened: Any = None  # data that were opened before the module was built
        try:
            self._run()
        except Exception as error:
            config = None if self.config is None else self.config.get(self.config.get("subcommand", ""), self.config)
            line = in_one_line(error, begun=_has_begun(self), config=config)
            if line is None:
                raise
            raise SystemExit(f"sparsight: {line}") from error

    def _run(self) -> None:
        replace_lists()
        follow_former_options()
        keep_nulls()
        super().__init__(
            LightningModule,
            LightningDataModule,
            trainer_class=SparsightTrainer,
            trainer_defaults={"default_root_dir": "runs", "max_epochs": -1},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "sparsight"},
            parser_class=Parser,
        )
        if isinstance(self.trainer, SparsightTrainer) and self.trainer.is_global_zero:
            self._report()

    def _report(self) -> None:
        """The page of a run that is over, if it was wanted; a fault of it is told, and is none of the run."""
        folder = log_folder(self.trainer)
        if self.subcommand not in ("fit", "test") or folder is None or not self._get(self.config, "report"):
            return
        try:
            print(f"Report: {write_page([read_run(folder)], folder / PAGE)}")
        except (ConfigurationError, OSError, ValueError) as error:
            print(f"sparsight: no report of {folder} could be written: {error}", file=sys.stderr)

    def closing(self) -> list[str]:
        """What was written where, and what may be done now, made of what was typed."""
        exports = (isinstance(each, callbacks.ExportAtEnd) for each in self.trainer.callbacks)
        lines = ending(self.trainer, str(self.subcommand), exported=any(exports))
        if self.subcommand == "check":
            return lines + after_check(self.typed)
        return lines + following(
            self.typed,
            self.asked,
            root=Path(self.trainer.default_root_dir),
            averaged=averaging(self.trainer) is not None,
            denoiser=isinstance(self.model, Analysed),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's verbs and ours, each with the arguments that the command fills in itself."""
        ours: dict[str, set[str]] = {verb: {"model", "datamodule"} for verb in OURS}
        return LightningCLI.subcommands() | ours

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Lightning's parser of a verb; an empty one of a verb that was not asked for, as each takes long."""
        asked = sys.argv[1] if len(sys.argv) > 1 else ""
        if subcommand == asked or asked not in self.subcommands():
            return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        self._subcommand_method_arguments[subcommand] = []
        return self.init_parser(**kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Where predicted images go, and the precision of matrix products."""
        parser.add_lightning_class_args(callbacks.ImageWriter, "images")
        parser.add_argument(
            "--matmul_precision",
            type=Literal["highest", "high", "medium"],
            default="high",
            help="torch.set_float32_matmul_precision",
        )
        parser.add_argument(
            "--report", type=bool, default=True, help="write report.html into the log folder when fit or test ends"
        )
        # was read before the parser sees the file; what has no help is not kept in a run's config.yaml either
        parser.add_argument(f"--{INCLUDE}", type=list[str] | None, default=None, help=SUPPRESS)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, let data follow the module, and check what the configuration alone can tell."""
        check_plans(sys.argv[1:])
        super().parse_arguments(parser, args)
        check_empty_keys(sys.argv[1:], self.config[self.config.subcommand])
        hand_over(self.config[self.config.subcommand])
        check_early(self.config[self.config.subcommand], self.config.subcommand)

    def before_instantiate_classes(self) -> None:
        """Apply what must stand before any module is built."""
        quieten_diffusers()  # which is loaded by now if the module has anything to do with it
        torch.set_float32_matmul_precision(self._get(self.config, "matmul_precision"))
        config = self.config[self.subcommand]
        if self.subcommand in WITHOUT_WEIGHTS:
            self._do_without_weights(config)
        if config.get("data") and self.subcommand not in WITHOUT_DATA and names_files(config.data.class_path):
            self._open_data(config)
        if self.subcommand == "fit":
            check_agreement(config)
            if told := seeds_left(sys.argv[1:], config):
                rank_zero_only(print)(f"sparsight: {told}", file=sys.stderr)

    def _open_data(self, config: Namespace) -> None:
        """Build and open the data before the module, which loads weights when it is built."""
        parser = self._subcommand_parsers[str(self.subcommand)]
        data = parser.instantiate(Namespace(data=config.data)).data
        assert isinstance(data, FromFiles)
        data.check_paths()
        if self.subcommand in LightningCLI.subcommands():
            data.open_early(str(self.subcommand))
            self.opened = data

    @staticmethod
    def _do_without_weights(config: Namespace) -> None:
        """Looking at data needs no model, but its name where data take the processor from it."""
        module, data = config.model.init_args, config.data.init_args
        if "model" in data and data.model is None:
            data.model = module.get("base")
            hand_over_source(module, data)
        config.model = Namespace(class_path=NO_MODEL)

    def instantiate_classes(self) -> None:
        """Build datamodule, module and trainer, which is told how to be called again."""
        self.asked = self.config[self.subcommand].clone()  # from what is saved with a run, the verb's options are taken
        super().instantiate_classes()
        if self.opened is not None:
            self.datamodule = self.opened
        if isinstance(self.trainer, SparsightTrainer):
            self.trainer.command = self.typed

    def _parse_ckpt_path(self) -> None:
        """Lightning lets a checkpoint's options beat YAML and flags in silence; here they are compared.

        A file is compared before anything is built; what else can name a checkpoint, when the trainer has found it.
        """
        verb = self.config.get("subcommand")
        path = self.config[verb].get("ckpt_path") if verb else None
        if path and local(path).is_file():
            model = self.config[verb].model
            saved = options_in(local(path))
            check_options(saved, model.get("init_args", {}), class_path=model.class_path, source=str(path))


def _has_begun(command: SparsightCLI) -> bool:
    """Whether any batch was taken."""
    trainer: Any = command.trainer
    if trainer is None:
        return False
    loops: list[Any] = [trainer.fit_loop.epoch_loop, trainer.validate_loop, trainer.test_loop, trainer.predict_loop]
    return any(loop.batch_progress.total.started for loop in loops)


def _ended_by_signal(stop: SystemExit) -> int | None:
    """What a shell expects where Lightning ends with 1 after Ctrl-C, or with 0 after SIGTERM."""
    if isinstance(stop, SIGTERMException):
        return 128 + signal.SIGTERM
    return 128 + signal.SIGINT if isinstance(stop.__context__, KeyboardInterrupt) else None


def main(arguments: Sequence[str] | None = None, *, alone: bool = True) -> Any:
    """Run the command; mistakes end with one readable message instead of a traceback.

    Args:
        arguments: Of the command line; those of this process if not given.
        alone: Say at the end what was written where and what may be done now; a part of another verb does not.
    """
    before = list(sys.argv)
    arguments = before[1:] if arguments is None else arguments
    quieten(trains="fit" in arguments[:1])
    try:
        # Lightning starts the other processes of a multi-GPU run with what stands in sys.argv
        sys.argv[1:] = resolve_configs(arguments)
        for line in set_back(sys.argv[1:]):
            print(f"sparsight: {line}", file=sys.stderr)
        cli = SparsightCLI(arguments)
        if alone and isinstance(cli.trainer, SparsightTrainer) and cli.trainer.is_global_zero:
            for line in cli.closing():
                print(line)
        return cli
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except SystemExit as stop:
        raise SystemExit(_ended_by_signal(stop) or stop.code) from stop
    except (FileNotFoundError, ConfigurationError) as error:
        raise SystemExit(f"sparsight: {error}") from error
    finally:
        sys.argv[:] = before
