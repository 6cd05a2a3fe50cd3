"""The ``sparsight`` command: LightningCLI with Sparsight's plug-ins, config lookup and checkpoint policy."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

import blocks  # plug-ins are imported so that class_path may be their bare class name
import callbacks
import datamodules
import lightning_modules
import sparsight
from datamodules.record_dataset import TooManyCorruptRecords
from sparsight.common.errors import ConfigurationError
from sparsight.common.finite import NonFiniteError
from sparsight.hyperparameters import check_against_checkpoint
from sparsight.parser import Parser
from sparsight.quiet import quieten
from sparsight.trainer import SparsightTrainer

OURS = ("export", "benchmark", "analyze", "inspect", "reformulate")  # verbs beside Lightning's
WITHOUT_WEIGHTS = ("inspect", "reformulate")  # those that look at data alone
NO_MODEL = "lightning.pytorch.LightningModule"
CONFIG_OPTIONS = ("-c", "--config", "--trainer", "--model", "--data", "--trainer.callbacks", "--trainer.logger")


def config_folders() -> list[Path]:
    """Where configs named without a path are looked up: the current folder, the repository, the installed package."""
    package = Path(__file__).parent
    return [Path("."), Path("configs"), package.parent / "configs", package / "configs"]


def find_config(name: str) -> str:
    """The file behind a config's name: ``experiment/quickstart`` is found from anywhere.

    Raises:
        FileNotFoundError: No such file; the message lists the configs of that kind.
    """
    candidates = [folder / f"{name}{suffix}" for folder in config_folders() for suffix in ("", ".yaml")]
    found = next((path for path in candidates if path.is_file()), None)
    if found is not None:
        return str(found)
    known = sorted({str(p.relative_to(f).with_suffix("")) for f in config_folders()[1:] for p in f.rglob("*.yaml")})
    raise FileNotFoundError(f"no config {name!r}; shipped are: {', '.join(known)}")


def resolve_configs(arguments: Sequence[str]) -> list[str]:
    """Replace config names on the command line by the files they mean; class names and inline values stay."""
    resolved = list(arguments)
    for position, argument in enumerate(resolved):
        option, equals, value = argument.partition("=")
        if option not in CONFIG_OPTIONS:
            continue
        if not equals and position + 1 < len(resolved):
            resolved[position + 1] = _resolve(option, resolved[position + 1])
        elif equals:
            resolved[position] = f"{option}={_resolve(option, value)}"
    return resolved


def _resolve(option: str, value: str) -> str:
    looks_like_path = "/" in value or value.endswith((".yaml", ".yml", ".json"))
    if option in ("-c", "--config") or (looks_like_path and not value.lstrip().startswith(("{", "["))):
        return find_config(value)
    return value


class SaveConfig(SaveConfigCallback):
    """Keeps a run's configuration without the verb's own options, so that it serves for every verb."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write ``config.yaml``; an earlier run's ``ckpt_path`` in it would be taken up in silence by what follows."""
        for verb, filled_in in SparsightCLI.subcommands().items():
            for option in inspect.signature(getattr(SparsightTrainer, verb)).parameters.keys() - filled_in:
                self.config.pop(option, None)
        super().setup(trainer, pl_module, stage)


class SparsightCLI(LightningCLI):
    """One command for all modules: every verb reads the same YAML."""

    def __init__(self) -> None:
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

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's verbs and ours, each with the arguments that the command fills in itself."""
        ours: dict[str, set[str]] = {verb: {"model", "datamodule"} for verb in OURS}
        return LightningCLI.subcommands() | ours

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Where predicted images go, and the precision of matrix products."""
        parser.add_lightning_class_args(callbacks.ImageWriter, "images")
        parser.add_argument(
            "--matmul_precision",
            type=str,
            default="high",
            help="torch.set_float32_matmul_precision: highest, high or medium",
        )

    def before_instantiate_classes(self) -> None:
        """Apply what must stand before any module is built."""
        torch.set_float32_matmul_precision(self._get(self.config, "matmul_precision"))
        if self.subcommand in WITHOUT_WEIGHTS:
            self._do_without_weights(self.config[self.subcommand])

    @staticmethod
    def _do_without_weights(config: Namespace) -> None:
        """Looking at data needs no model, but its name where data take the processor from it."""
        module, data = config.model.init_args, config.data.init_args
        if "model" in data and data.model is None:
            data.model = module.get("base")
            for option in ("revision", "trust_remote_code"):
                if option in data and option in module:
                    data[option] = module[option]
        config.model = Namespace(class_path=NO_MODEL)

    def instantiate_classes(self) -> None:
        """Build datamodule, module and trainer; what they refuse is the configuration's fault and ends as one line."""
        try:
            super().instantiate_classes()
        except (ValueError, FileNotFoundError, ImportError) as error:
            raise SystemExit(f"sparsight: {_said_by_class(error)}") from error

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the verb; what our own code refuses before the first batch ends as one line, too."""
        try:
            super()._run_subcommand(subcommand)
        except ValueError as error:
            if _has_begun(self.trainer) or not _is_ours(_raised_in(error)):
                raise
            raise ConfigurationError(str(error)) from error

    def _parse_ckpt_path(self) -> None:
        """Lightning lets a checkpoint's hyper-parameters beat YAML and flags in silence; here they are compared."""
        verb = self.config.get("subcommand")
        path = self.config[verb].get("ckpt_path") if verb else None
        if path and Path(path).is_file():
            check_against_checkpoint(self.config[verb], path)


def _said_by_class(error: Exception) -> BaseException:
    """The error that a class raised, out of what the parser says about it and about every other type it tried."""
    found: BaseException = error
    while "jsonargparse" in _raised_in(found) and (found.__cause__ or found.__context__) is not None:
        found = found.__cause__ or found.__context__ or found
    return found


def _raised_in(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else trace.tb_frame.f_code.co_filename


def _is_ours(file: str) -> bool:
    packages = (blocks, callbacks, datamodules, lightning_modules, sparsight)
    return any(Path(file).is_relative_to(Path(str(package.__file__)).parent) for package in packages)


def _has_begun(trainer: Trainer) -> bool:
    """Whether any batch was taken."""
    loops: list[Any] = [trainer.fit_loop.epoch_loop, trainer.validate_loop, trainer.test_loop, trainer.predict_loop]
    return any(loop.batch_progress.total.started for loop in loops)


def main(arguments: Sequence[str] | None = None) -> Any:
    """Run the command; configuration mistakes end with one readable message instead of a traceback."""
    quieten()
    before = list(sys.argv)
    try:
        # Lightning starts the other processes of a multi-GPU run with what stands in sys.argv
        sys.argv[1:] = resolve_configs(before[1:] if arguments is None else arguments)
        return SparsightCLI()
    except (FileNotFoundError, ConfigurationError, NonFiniteError, TooManyCorruptRecords) as error:
        raise SystemExit(f"sparsight: {error}") from error
    finally:
        sys.argv[:] = before
