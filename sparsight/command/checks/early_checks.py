"""What a configuration alone can tell to be wrong, found before any weights are loaded."""

from __future__ import annotations

import inspect
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback

from sparsight.command.arguments import WITHOUT_DATA, check_checkpoint, check_given, check_there
from sparsight.command.checks.analyze_options import check_analysis
from sparsight.command.checks.input_paths import WHERE, check_need, needs_of
from sparsight.command.checks.nulls import check_nulls
from sparsight.command.config_keys import Place, parts_of
from sparsight.common.datamodule import OfWing
from sparsight.common.errors import ConfigurationError, require
from sparsight.common.names import named
from sparsight.publish.export import OUTPUT_OF_EXPORT, ROOT_OF_EXPORT, NamesExport, check_destination

RANGES: dict[str, tuple[int, float]] = {  # options that libraries take without a look at it, or name no key
    "seed_everything": (0, 2**32 - 1),
    "trainer.accumulate_grad_batches": (1, math.inf),
    "trainer.gradient_clip_val": (0, math.inf),
    "trainer.min_steps": (0, math.inf),
    "trainer.min_epochs": (0, math.inf),
    "trainer.log_every_n_steps": (0, math.inf),
    "trainer.check_val_every_n_epoch": (1, math.inf),
    "trainer.num_sanity_val_steps": (-1, math.inf),
    "trainer.num_nodes": (1, math.inf),
}
MEASURES = "to measure alone there are `sparsight validate` and `test`"
TRIES = "give what the run will have"
NOTHING = {  # options whose zero leaves a verb nothing to do, and what to do instead
    "fit": {"limit_train_batches": MEASURES, "max_steps": MEASURES, "max_epochs": MEASURES, "max_time": MEASURES},
    "check": {"limit_train_batches": TRIES, "max_steps": TRIES, "max_epochs": TRIES},
    "validate": {"limit_val_batches": "leave it out"},
    "test": {"limit_test_batches": "leave it out"},
    "predict": {"limit_predict_batches": "leave it out"},
}
EXPORT = "ExportAtEnd"  # a callback
_OF_CALLBACK = re.compile(r"trainer\.callbacks\.\d+")
MOST_ON_CORES = 8  # processes, on a machine of fewer cores
WRITTEN = ("default_root_dir", "dirpath", "save_dir", "output", "folder")  # folders that a run makes


@runtime_checkable
class FromFiles(Protocol):
    """Data that can be looked at before the model is built, which loads weights."""

    def check_paths(self) -> None:
        """See that the files that they name are there, without reading them.

        Raises:
            FileNotFoundError: One is not.
        """

    def open_early(self, stage: str) -> None:
        """Open what lies on this machine and a stage needs.

        Raises:
            ValueError: It is not what the options say.
        """


def check_early(config: Any, verb: str) -> None:
    """Refuse numbers out of range, data and checkpoints that are not there, and outputs that cannot be written.

    Args:
        config: Of the verb, as parsed.
        verb: Such as ``fit``.

    Raises:
        ConfigurationError: Something is wrong; the message names the key.
    """
    for key, (least, most) in RANGES.items():
        value = config.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            allowed = f"{least} or more" if most == math.inf else f"{least} to {most}"
            require(least <= value <= most, key, value, allowed)
    interval = config.get("trainer.val_check_interval")
    if isinstance(interval, (int, float)):
        require(interval > 0, "trainer.val_check_interval", interval, "above 0, or null")
    _check_work(config, verb)
    _check_images(config, verb)
    _check_devices(config.get("trainer.devices"))
    _check_accelerator(config.get("trainer.accelerator"))
    checkpoint = config.get("ckpt_path")
    if checkpoint is not None:
        check_checkpoint(str(checkpoint))
    for part in parts_of(config):
        check_nulls(part)
        if part.key.split(".")[0] == "data":
            if verb not in WITHOUT_DATA:
                _check_inputs(part)
                _check_records(part, verb)
        else:
            _check_outputs(part)
    _check_twice(config)
    if verb == "fit":
        _check_exports(config)
    module = named(config.model.class_path) if verb == "analyze" else None
    if (
        isinstance(module, type) and issubclass(module, OfWing) and module.wing is not None
    ):  # else unknown until it is built
        check_analysis(vars(config), wing=module.wing, module=module.__name__)
    output = config.get("output")
    if output is not None:
        check_given("output", str(output))
    if verb == "export":
        output = output or os.path.join(config.trainer.default_root_dir, "export")
        check_destination(output, overwrite=config.get("overwrite", False))
    if output:
        _check_writable("output", output)


def _check_images(config: Any, verb: str) -> None:
    """Refuse a folder that holds something, among which drawn images would be lost, or in place of it written."""
    folder = config.get("images.folder")
    if verb == "predict" and folder and Path(folder).is_dir() and any(Path(folder).iterdir()):
        raise ConfigurationError(f"images.folder {folder} is not empty: name a new folder for the drawn images")


def _check_work(config: Any, verb: str) -> None:
    """Refuse zeros with which nothing would be done, and the command would end as if all were well."""
    for option, remedy in NOTHING.get(verb, {}).items():
        value = config.get(f"trainer.{option}")
        if value is not None and not isinstance(value, bool) and not _is_more(value):
            raise ConfigurationError(f"trainer.{option} is {value}, with which {verb} does nothing: {remedy}")


def _is_more(value: Any) -> bool:
    """Whether a number, or a time in Lightning's forms, is not zero."""
    if isinstance(value, str):
        return re.fullmatch(r"[0:]+", value) is None
    return any(value.values()) if isinstance(value, Mapping) else bool(value)


def names_files(kind: str) -> bool:
    """Whether a class of data can tell whether its files are there."""
    found = named(kind)
    return isinstance(found, type) and issubclass(found, FromFiles)


def _check_devices(devices: Any) -> None:
    """More processes than this bring a machine to a halt before any of them says so, where it computes on its cores."""
    most = torch.cuda.device_count() or max(MOST_ON_CORES, os.cpu_count() or 1)
    number = int(devices) if isinstance(devices, (int, str)) and str(devices).isdecimal() else 0
    require(number <= most, "trainer.devices", devices, f"up to {most} on this machine")


def _check_accelerator(accelerator: Any) -> None:
    """Refuse a GPU that is not there with what to do, which Lightning leaves out."""
    there = torch.cuda.is_available() or (accelerator == "gpu" and torch.backends.mps.is_available())
    if accelerator in ("gpu", "cuda") and not there:
        raise ConfigurationError(
            f"trainer.accelerator is {accelerator!r}, and torch finds none on this machine: leave it out, or give cpu"
        )


def _check_outputs(part: Place) -> None:
    for name in WRITTEN:
        value = part.options.get(name)
        if isinstance(value, (str, Path)):
            check_given(f"{part.key}.{name}", str(value))
            _check_writable(f"{part.key}.{name}", str(value))


def _check_twice(config: Any) -> None:
    """Refuse a callback that keeps a state in checkpoints twice, as Lightning would once everything is built."""
    places = [part for part in parts_of(config) if _OF_CALLBACK.fullmatch(part.key)]
    for kind, count in Counter(part.kind for part in places).items():
        callback = named(kind)
        stateful = callback.state_dict is not Callback.state_dict and callback.state_key is Callback.state_key
        if count > 1 and stateful:
            numbers = " and ".join(part.key.rpartition(".")[2] for part in places if part.kind == kind)
            raise ConfigurationError(
                f"trainer.callbacks has {kind.rpartition('.')[2]} {count} times, as entries {numbers}: leave one"
            )


def _check_exports(config: Any) -> None:
    """Refuse a folder that is there already where a run is to export its model when it ends."""
    for part in parts_of(config):
        if part.kind.rpartition(".")[2] != EXPORT:
            continue
        output, module = part.options.get("output"), named(config.model.class_path)
        option = ROOT_OF_EXPORT if output is None else OUTPUT_OF_EXPORT
        if output is None and isinstance(module, NamesExport):
            name = module.export_name_for(config.model.get("init_args", {}))
            output = os.path.join(config.trainer.default_root_dir, name)
        if output is not None:
            overwrite = bool(part.options.get("overwrite"))
            check_destination(output, overwrite=overwrite, option=option)


def _check_records(part: Place, verb: str) -> None:
    """Refuse a measurement of data of ours that hold out nothing for it, before any weights are loaded."""
    options = part.options
    if part.key != "data" or not part.kind.startswith(f"{WHERE}.") or not {"test", "val_share"} <= options.keys():
        return
    source = str(options["train"].class_path).rpartition(".")[2] if options["train"] else "SOURCE"
    if verb == "test" and options["test"] is None:
        raise ConfigurationError(
            f"data.test: there are no records to test on: give them, such as --data.test {source} with options of its "
            f"own (--data.test.help {source} lists them), or measure on validation records by `sparsight validate`"
        )
    if verb == "validate" and options["val"] is None and not options["val_share"]:
        raise ConfigurationError(
            f"data.val: there are no records to validate on: give them, such as --data.val {source} with options of "
            "its own, or hold some out by --data.val_share 0.1"
        )


def _check_inputs(part: Place) -> None:
    """See that files of data are there: by what our classes say of their options, and users' annotate as paths."""
    if part.kind.startswith(f"{WHERE}."):
        for need in needs_of(part.kind):
            check_need(part.key, part.options, need)
    else:
        for name, value in _input_paths(part):
            check_there(f"{part.key}.{name}", value)


def _input_paths(part: Place) -> Iterator[tuple[str, str]]:
    """Options of a class of data that are annotated as paths and were given."""
    kind = named(part.kind)
    known: Mapping[str, inspect.Parameter] = inspect.signature(kind).parameters if inspect.isclass(kind) else {}
    for option, value in part.options.items():
        parameter = known.get(option)
        if parameter is None or not isinstance(value, (str, Path)) or str(value) == str(parameter.default):
            continue
        if "Path" in str(parameter.annotation):
            yield option, str(value)


def _check_writable(key: str, value: str) -> None:
    """See that a folder can be made: the nearest one above it that is there is a folder, and may be written."""
    if "://" in value:
        return
    path = Path(value).expanduser().absolute()
    try:
        there = next(each for each in (path, *path.parents) if each.exists())
    except OSError as error:
        raise ConfigurationError(f"{key}: {value[:200]!r} cannot be a folder: {error.strerror}") from error
    if not there.is_dir():
        raise ConfigurationError(f"{key}: {value!r} cannot be a folder, as {there} is a file: give another one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{key}: {value!r} cannot be written, as {there} may not: give another one")
