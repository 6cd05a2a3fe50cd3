"""Old names of modules, classes and options that users may have written down: they work for one release.

Options of constructors do so in Python, in configs, as flags and in checkpoints.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

from sparsight.common.names import named
from sparsight.common.plain import groups_of, replaced

Kind = TypeVar("Kind", bound=type[Any])

MODULES: dict[str, tuple[str, ...]] = {  # each name of an old module is in one of the new ones
    "sparsight.analysis.bootstrap": ("sparsight.common.bootstrap",),
    "sparsight.cli": ("sparsight.command.cli",),
    "sparsight.common.training.run_progress": (
        "sparsight.common.training.progress.run_progress",
        "sparsight.common.training.progress.tell",
    ),
    "sparsight.diffusion.model": ("sparsight.diffusion.model.diffusion_model", "sparsight.diffusion.model.load"),
    "sparsight.distill.stages": ("sparsight.diffusion.train.stages",),
    "sparsight.evaluation.reform_eval.perturb": ("sparsight.evaluation.questions.variant",),
    "sparsight.export.adapters": ("sparsight.diffusion.students.adapters",),
    "sparsight.export.delta": ("sparsight.diffusion.export.delta",),
    "sparsight.lvlm.lora": ("sparsight.lvlm.model.lora",),
    "sparsight.lvlm.retire": ("sparsight.lvlm.surgery.retire",),
    "sparsight.lvlm.selection": ("sparsight.lvlm.surgery.selection",),
    "sparsight.lvlm.stages": ("sparsight.lvlm.train.stages",),
    "sparsight.lvlm.tower": ("sparsight.lvlm.model.tower",),
    "sparsight.metrics": ("sparsight.evaluation.images", "sparsight.evaluation.texts"),
    "sparsight.schedule": ("sparsight.common.training.schedule",),
    "sparsight.surgery.sites": ("sparsight.diffusion.surgery.sites",),
}
_SAMPLING = {"sample_steps": "sampling.steps", "guidance_scale": "sampling.guidance_scale"}
_CACHE = {"cache_dir": "cache.folder", "shard_size": "cache.shard_size", "verify_days": "cache.verify_days"}
_CONDITIONS = {name: f"conditions.{name}" for name in ("class_names", "text_encoder", "text_tokens")}
_SOURCE = {name: f"loading.{name}" for name in ("revision", "trust_remote_code")}
_PIPELINE = {**_SOURCE, "variant": "loading.variant"}
_COMPUTE = {name: f"compute.{name}" for name in ("gradient_checkpointing", "compile")}
_MODEL = {**_SOURCE, "dtype": "loading.dtype", "attn_implementation": "loading.attn_implementation"}
_HEALING = {
    "distill": "healing.hidden",
    "distill_logits": "healing.logits",
    "distill_layers": "healing.layers",
    "distill_from": "healing.teacher",
}
_ALLOWED = {"max_corrupt_share": "allowed.corrupt_share", "max_unused_share": "allowed.unused_share"}
_TRANSFORM = {name: f"transform.{name}" for name in ("channels", "fit", "background", "horizontal_flip")}
_IMAGES = {**_ALLOWED, "other_classes": "allowed.other_classes", **_TRANSFORM}
_CHAT = {
    "chat_template": "chat.template",
    "chat_template_kwargs": "chat.template_kwargs",
    "processor_options": "chat.processor_options",
}
_ASKED = ("methods", "runs", "perturbation", "marks", "example", "new_tokens")
OPTIONS: dict[str, dict[str, str]] = {  # by class: where an old option is now
    "AttentionDistillation": {
        **_SAMPLING,
        "sample_size": "sampling.size",
        **_PIPELINE,
        "teacher_dtype": "loading.dtype",
        "teacher_quantization": "loading.quantization",
        **_COMPUTE,
        "replicate_trained": "compute.replicate_trained",
        "train_projections": "trained.projections",
        "train_rest": "trained.rest",
        "lora": "trained.lora",
        "init_samples": "trained.init_samples",
    },
    "CachedLatentsDataModule": {
        **_CACHE,
        "dtype": "cache.dtype",
        "encode_batch_size": "compute.batch_size",
        "device": "compute.device",
        **_PIPELINE,
    },
    "DenoiserTraining": {
        **_SAMPLING,
        **_CONDITIONS,
        "variant": "loading.variant",
        "trust_remote_code": "loading.trust_remote_code",
        **_COMPUTE,
        "timesteps": "noise.timesteps",
        "snr_gamma": "noise.snr_gamma",
        "lr_schedule": "schedule.name",
        "warmup_steps": "schedule.warmup_steps",
    },
    "ImageDataModule": _IMAGES,
    "InstructionDataModule": {
        **_ALLOWED,
        **_CHAT,
        **_SOURCE,
        **{name: f"chat.{name}" for name in ("question", "answer", "reasoning")},
        **{name: f"batching.{name}" for name in ("max_length", "length_grouping", "packing")},
    },
    "LVLMEvaluation": _MODEL,
    "ReformEvalDataModule": {
        "max_corrupt_share": "allowed.corrupt_share",
        **_CHAT,
        **_SOURCE,
        **{name: f"protocol.{name}" for name in _ASKED},
    },
    "SparseLayerTuning": {
        **_MODEL,
        **_HEALING,
        "gradient_checkpointing": "compute.gradient_checkpointing",
        "vision_cache_gib": "compute.vision_cache_gib",
    },
    "StreamingImageDataModule": _IMAGES,
    "TeacherSamplesDataModule": {
        **_CACHE,
        "dtype": "cache.dtype",
        "sample_batch_size": "compute.batch_size",
        "device": "compute.device",
        **{name: f"sampling.{name}" for name in ("steps", "guidance_scale", "size")},
        "teacher_dtype": "loading.dtype",
        "teacher_quantization": "loading.quantization",
        **_PIPELINE,
    },
}
_FACTS = {"selected_layers"}  # which checkpoints hold beside options, and no constructor takes


def find_moved(module: str, name: str) -> Any:
    """What ``name`` of an old ``module`` is now.

    Raises:
        AttributeError: There is no such name.
    """
    for new in MODULES.get(module, ()) if not name.startswith("__") else ():
        found = named(f"{new}.{name}")
        if found is not None:
            warnings.warn(f"{module}.{name} is {new}.{name} now", FutureWarning, stacklevel=3)
            return found
    raise AttributeError(f"module {module!r} has no attribute {name!r}")


def current_class_path(path: str) -> str:
    """A class path as it is called now; others unchanged."""
    module, _, name = path.rpartition(".")
    if module not in MODULES:
        return path
    return next((f"{new}.{name}" for new in MODULES[module] if named(f"{new}.{name}") is not None), path)


class _Old(MetaPathFinder, Loader):
    """Makes modules of old names, which hold nothing of their own."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        known = any(old == fullname or old.startswith(f"{fullname}.") for old in MODULES)
        return ModuleSpec(fullname, self, is_package=True) if known else None

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__getattr__"] = lambda name: find_moved(module.__name__, name)


def lead_old_names() -> None:
    """Let imports of old names find the new ones, once."""
    if not any(isinstance(finder, _Old) for finder in sys.meta_path):
        sys.meta_path.append(_Old())  # last: what is really there comes first


def moved_options(kind: type[Any]) -> dict[str, str]:
    """Where old options of a class, and of those that it is derived from, are now."""
    return {old: new for each in reversed(kind.__mro__) for old, new in OPTIONS.get(each.__name__, {}).items()}


def current_option(kind: type[Any], option: str) -> str:
    """An option as it is called now, with a warning if it was called otherwise.

    Args:
        kind: The class.
        option: May be dotted.
    """
    first, dot, rest = option.partition(".")
    moved = _found(kind, [first])
    return f"{moved[first]}{dot}{rest}" if moved else option


def move_options(kind: type[Any], options: MutableMapping[str, Any]) -> None:
    """Put what is given under old options of a class where it belongs now; what is there already counts.

    Args:
        kind: The class.
        options: Nested plain data, as YAML, checkpoints and parsers have them; changed in place.
    """
    for old, new in _found(kind, options).items():
        group, _, name = new.partition(".")
        value = options.pop(old)
        there = options.get(group) or {}
        options[group] = {name: value, **there}


def _found(kind: type[Any], options: Iterable[str]) -> dict[str, str]:
    """Where those of these options that are old are now; a warning says so."""
    given = {*options}
    found = {old: new for old, new in moved_options(kind).items() if old in given}
    if found:
        told = ", ".join(f"{old} of {kind.__name__} is {new} now" for old, new in found.items())
        warnings.warn(f"{told}; old names go with the next release", FutureWarning, stacklevel=3)
    return found


def as_now(class_path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that a checkpoint was saved with, by their names of today.

    Args:
        class_path: Of what was made with them.
        options: Flat and dotted, as ``flatten`` makes them; those of classes inside follow ``init_args``.
    """
    kinds = {"": class_path} | {
        f"{key.removesuffix('class_path')}init_args.": str(value)
        for key, value in options.items()
        if key.endswith(".class_path")
    }
    return {_as_now(key, kinds): value for key, value in options.items()}


def _as_now(key: str, kinds: Mapping[str, str]) -> str:
    """A dotted key by its name of today; ``kinds`` are class paths by what keys of their options begin with."""
    start = max((each for each in kinds if key.startswith(each)), key=len)
    first, dot, rest = key.removeprefix(start).partition(".")
    return f"{start}{OPTIONS.get(kinds[start].rpartition('.')[2], {}).get(first, first)}{dot}{rest}"


def takes_former_options(kind: Kind) -> Kind:
    """Let a class's constructor take options by their old names, which are keywords; to be put before the class.

    What is a dataclass may also be given as a mapping of some of its fields, as checkpoints hold it.
    """
    inner = kind.__init__

    @functools.wraps(inner)
    def made(self: Any, *args: Any, **options: Any) -> None:
        groups = groups_of(kind)
        for name in _FACTS & {*options}:
            del options[name]
        for name in groups.keys() & {*options}:
            if isinstance(options[name], Mapping):
                options[name] = replaced(groups[name], options[name])
        given: dict[str, dict[str, Any]] = {}
        for old, new in _found(kind, options).items():
            group, _, name = new.partition(".")
            given.setdefault(group, {})[name] = options.pop(old)
        for group, fields in given.items():
            options[group] = replaced(options.get(group, groups[group]), fields)
        inner(self, *args, **options)

    kind.__init__ = made
    return kind
