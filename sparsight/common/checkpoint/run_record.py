"""What a run may change against the checkpoint it goes on from: everything is compared but what is listed here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from sparsight.common.datamodule import datamodule_of
from sparsight.common.errors import CheckpointError
from sparsight.common.moved import as_now, current_class_path
from sparsight.common.plain import flatten

FLAG_WINS = (
    "base",
    "compute",
    "evaluation",
    "loading.attn_implementation",
    "loading.revision",
    "loading.trust_remote_code",
    "loading.variant",
    "max_skipped_steps",
    "pretrained",
    "revision",
    "sampling.guidance_scale",
    "sampling.steps",
    "teacher",
    "trust_remote_code",
    "variant",
)
"""Options of a module whose value on the command line or in YAML beats the checkpoint's; others must be equal."""

DATA_WINS = (
    "allowed",
    "cache.folder",
    "cache.shard_size",
    "cache.verify_days",
    "compute",
    "loading.revision",
    "loading.trust_remote_code",
    "loading.variant",
    "model",
    "num_workers",
    "revision",
    "teacher",
    "test",
    "trust_remote_code",
    "val",
    "variant",
)
"""Options of a datamodule that change neither the records that are trained on nor their order: not compared."""

WRAPPED = "images.init_args."
"""Options of a datamodule that another one wraps; they count as its own."""

PLACES = ("file", "files", "font", "images", "labels", "path", "root")
"""Options of sources that say where data are: they may differ if the records there are the same."""

_OTHER_DATA = "(identity: records were added, removed or reordered, or a file, text or label of them was changed)"

_LONGER = "(stages: to train on after their end, leave those there are as they were and add one behind them)"
_STAGE = re.compile(r"  stages\.\d+\.steps:")

RUN = "sparsight_run"  # key in checkpoints
DATA = "datamodule_hyper_parameters"  # Lightning's key for the options of a datamodule
CONTENT, EIGHT = "content", "sha256"  # facts of data: of all of them, and of eight records, as earlier versions have
CHANGED = "changed"  # when files of data were changed last, in ns: a copy has another time, and is the same


@runtime_checkable
class Shaping(Protocol):
    """A callback whose options decide what training comes to; they must be equal."""

    def shaping(self) -> Mapping[str, Any]:
        """Those options, as plain data."""


@runtime_checkable
class Identified(Protocol):
    """Data that can be told apart by what they hold, wherever they are."""

    def identity(self) -> Mapping[str, Any] | None:
        """Plain facts that are equal for equal training records; none if they cannot be told."""


@runtime_checkable
class Batched(Protocol):
    """Data in batches of a fixed size."""

    batch_size: int


def run_record(trainer: Trainer) -> dict[str, Any]:
    """What a checkpoint keeps of a run, beside the options of its module and its data."""
    data = datamodule_of(trainer)
    batch = data.batch_size if isinstance(data, Batched) else None
    seed = os.environ.get("PL_GLOBAL_SEED")
    return {
        "data_class": None if data is None else type(data).__name__,
        "identity": dict(data.identity() or {}) if isinstance(data, Identified) else {},
        "global_batch": None if batch is None else batch * trainer.world_size,
        "seed_everything": None if seed is None else int(seed),
        "processes": trainer.world_size if batch is None else None,
        "trainer": _arithmetic(trainer),
        "callbacks": {
            type(callback).__name__: dict(callback.shaping())
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, Shaping)
        },
        "rounding": {
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "matmul_precision": torch.get_float32_matmul_precision(),
        },
    }


def _arithmetic(trainer: Trainer) -> dict[str, Any]:
    """Options of the trainer that must be equal, as plain data."""
    algorithm = trainer.gradient_clip_algorithm
    plans = [each.scheduling for each in trainer.callbacks if isinstance(each, GradientAccumulationScheduler)]  # type: ignore[attr-defined]
    return {
        "accumulate_grad_batches": str(plans[0]) if plans else trainer.accumulate_grad_batches,
        "gradient_clip_algorithm": None if algorithm is None else _word(algorithm),
        "gradient_clip_val": trainer.gradient_clip_val,
        "limit_train_batches": trainer.limit_train_batches,
        "precision": str(trainer.precision),
    }


def _word(choice: object) -> str:
    return str(choice.value if isinstance(choice, Enum) else choice)


def _comparable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the trainer so that those which mean the same are equal."""
    clip = options["gradient_clip_val"] or None
    algorithm = options["gradient_clip_algorithm"] or "norm"
    return {
        **options,
        "gradient_clip_val": clip,
        "gradient_clip_algorithm": clip and _word(algorithm),
        "limit_train_batches": repr(options["limit_train_batches"]),  # 1 is one batch, 1.0 are all
    }


def check_module(saved: Mapping[str, Any], module: LightningModule, *, source: str) -> None:
    """Compare a module with the one that a checkpoint was saved from.

    Args:
        saved: The checkpoint's ``hyper_parameters``.
        module: What it is to be loaded into.
        source: Where the checkpoint is, for the message.

    Raises:
        CheckpointError: Its class or an option outside ``FLAG_WINS`` differs.
    """
    check_options(saved, dict(module.hparams), class_path=type(module).__name__, source=source)


def check_options(saved: Mapping[str, Any], current: Mapping[str, Any], *, class_path: str, source: str) -> None:
    """The comparison behind ``check_module``, for options that nothing was built from yet."""
    saved_class = saved.get("_class_path", class_path)
    if saved_class.rpartition(".")[2] != class_path.rpartition(".")[2]:
        raise CheckpointError(f"{source} was saved from {saved_class}, but the configuration asks for {class_path}")
    known, given = as_now(class_path, _plain(saved)), _plain(current)
    _refuse(source, _differences(known, given, free=FLAG_WINS), free=FLAG_WINS, what="the configuration")


def check_stages(saved: Sequence[Mapping[str, Any]], current: Sequence[Mapping[str, Any]], *, source: str) -> None:
    """Compare the stages of a run that goes on with those that it had; more may follow them.

    Args:
        saved: Fields of each, as the checkpoint keeps them.
        current: Fields of each, as configured.
        source: Where the checkpoint is, for the message.

    Raises:
        CheckpointError: One differs, or is missing.
    """
    if len(current) < len(saved):
        raise CheckpointError(
            f"the configuration has {len(current)} of the {len(saved)} stages that {source} was trained in: "
            "give them all"
        )
    _refuse(
        source,
        _differences(flatten({"stages": saved}), flatten({"stages": current}), free=()),
        free=FLAG_WINS,
        what="the configuration",
    )


def check_run(checkpoint: Mapping[str, Any], trainer: Trainer, *, source: str) -> None:
    """Compare data, batch, seed and arithmetic of a run that goes on with the checkpoint's; older ones tell less.

    Raises:
        CheckpointError: Something differs that decides what is trained on, or in which order.
    """
    saved = checkpoint.get(RUN)
    if trainer.state.fn != TrainerFn.FITTING or saved is None:
        return
    saved, current = ({**one, "trainer": _comparable(one["trainer"])} for one in (saved, run_record(trainer)))
    last_digits = _differences(saved.pop("rounding", {}), current.pop("rounding"), free=())
    if last_digits:
        rank_zero_warn(f"sums are rounded otherwise than in {source}:\n" + "\n".join(last_digits))
    here = datamodule_of(trainer)
    options = _plain({} if here is None else dict(here.hparams))
    known = as_now(type(here).__name__, _plain(checkpoint.get(DATA, {})))
    facts, before, now = _identities(saved, current)
    if facts and before == now and saved["identity"].get(CHANGED, 0) < current["identity"].get(CHANGED, 0):
        rank_zero_warn(
            f"files of the training data were changed, or copied, since {source} was saved. They are too many to be "
            "read whole; names, sizes, number and samples of their content are the same"
        )
    moved = [
        key for key in known.keys() & options.keys() if _is_place(key) and not same_value(known[key], options[key])
    ]
    if moved and facts and before == now:
        told = ", ".join(f"{key} {known[key]!r}, now {options[key]!r}" for key in sorted(moved))
        rank_zero_warn(f"the data have moved, but their records are those of {source}: {told}")
    elif moved and not facts:
        raise CheckpointError(
            f"{source} was trained on data in another place, and whether they are the same cannot be told: "
            + "; ".join(f"data.{key}: {known[key]!r} in the checkpoint, {options[key]!r} now" for key in sorted(moved))
            + ". Let the old path lead there, for example by a link"
        )
    skipped = (*DATA_WINS, *([] if current["global_batch"] is None else ["batch_size"]))
    different = _differences(known, options, free=skipped, prefix="data.", without=moved)
    different += _differences(_named(facts, before), _named(facts, now), free=())
    different += [
        line
        for key in (saved.keys() & current.keys()) - {"identity"}
        for line in _differences(flatten(saved[key], key), flatten(current[key], key), free=())
        if saved[key] not in (None, {}) and current[key] not in (None, {})
    ]
    _refuse(source, sorted(different), free=DATA_WINS, what="the run")


def _identities(saved: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[list[str], list[Any], list[Any]]:
    """The facts that both know of their data, and what each holds them for."""
    facts = saved["identity"].keys() & current["identity"].keys()
    facts -= {CHANGED, *([EIGHT] if CONTENT in facts else [])}
    names = sorted(facts)
    return names, [saved["identity"][name] for name in names], [current["identity"][name] for name in names]


def _named(facts: Iterable[str], values: Iterable[Any]) -> dict[str, Any]:
    return {f"identity.{fact}": value for fact, value in zip(facts, values, strict=True)}


def _refuse(source: str, different: Iterable[str], *, free: Iterable[str], what: str) -> None:
    lines = list(different)
    if lines:
        raise CheckpointError(
            f"{what} differs from {source} in what cannot change after training has begun:\n"
            + "\n".join(lines)
            + ("\n" + _OTHER_DATA if any(line.startswith("  identity.") for line in lines) else "")
            + ("\n" + _LONGER if any(map(_STAGE.match, lines)) else "")
            + f"\nMake them equal; only {', '.join(free)} may differ."
        )


def _differences(
    known: Mapping[str, Any], given: Mapping[str, Any], *, free: Iterable[str], prefix: str = "", without: Any = ()
) -> list[str]:
    skipped = {*free}
    return [
        f"  {prefix}{key}: {known[key]!r} in the checkpoint, {given[key]!r} in the configuration"
        for key in sorted(known.keys() & given.keys())
        if key not in without
        and not same_value(known[key], given[key])
        and not is_among(key.removeprefix(WRAPPED), skipped)
    ]


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return flatten({key: value for key, value in options.items() if not key.startswith("_")})


def is_among(key: str, options: Iterable[str]) -> bool:
    """Whether a dotted key is one of ``options``, or lies in one."""
    return any(f"{key}.".startswith(f"{option}.") for option in options)


def _is_place(key: str) -> bool:
    names = [part for part in key.removeprefix(WRAPPED).split(".") if not part.isdigit()]
    return names[0] not in DATA_WINS and names[-1] in PLACES


def same_value(one: Any, other: Any) -> bool:
    """Equal, or two spellings of one path or class."""
    if one == other:
        return True
    if isinstance(one, str) and isinstance(other, str) and current_class_path(one) == current_class_path(other):
        return True
    if isinstance(one, str | os.PathLike) and isinstance(other, str | os.PathLike):
        return Path(one).exists() and Path(one).resolve() == Path(other).resolve()
    return False
