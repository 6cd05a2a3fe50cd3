"""What was changed in a denoiser, as plain data: kept in checkpoints and exports, and enough to do it again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
import yaml
from torch import nn

from blocks.base import Grid, Site, TokenMixer
from sparsight.common.errors import reason_of
from sparsight.common.formats import check_format
from sparsight.common.training.sharding import own_class
from sparsight.diffusion.surgery.known_mixers import mixer_class
from sparsight.diffusion.surgery.replace import finalize, replace
from sparsight.diffusion.surgery.sites import SiteSelection, students

FORMAT = 1


def record_of(denoiser: nn.Module) -> dict[str, Any]:
    """JSON-able record of the mixers in a denoiser."""
    return record_of_mixers({path: student.mixer for path, student in students(denoiser).items()})


def record_of_mixers(mixers: Mapping[str, TokenMixer]) -> dict[str, Any]:
    """JSON-able record of mixers by the sites that they are for."""
    return {"format": FORMAT, "sites": {path: _describe(mixer) for path, mixer in mixers.items()}}


def plan_in(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The plan that a record came from, as plain data in the form of YAML: an entry for each mixer and its options.

    ``AttentionDistillation`` takes it as ``plan``. Sites are told by their paths, whatever pattern chose them; those
    that keep attention are in no entry.
    """
    entries: list[dict[str, Any]] = []
    for path, site in record["sites"].items():
        mixer = {"class_path": site["class_path"], "init_args": site["options"]}
        same = next((entry for entry in entries if entry["mixer"] == mixer), None)
        if same is None:
            entries.append({"sites": [path], "mixer": mixer})
        else:
            same["sites"].append(path)
    return entries


def plan_config(record: Mapping[str, Any], **others: Any) -> str:
    """A config file that lays a record's plan over any distillation, given as a further ``--config``.

    Args:
        record: Has the plan.
        others: Options of ``AttentionDistillation`` beside it.
    """
    options = {"mixer": None, "sites": None, "plan": plan_in(record), **others}
    model = {"class_path": "lightning_modules.AttentionDistillation", "init_args": options}
    return yaml.safe_dump({"model": model}, sort_keys=False)


def differing(saved: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """In words, the first site at which two records of one denoiser say otherwise; empty if there is none.

    Options that a record of an earlier version lacks have their defaults.
    """
    old, new = saved["sites"], here["sites"]
    path = next((path for path in (*new, *old) if not _agree(old.get(path), new.get(path))), None)
    return (
        ""
        if path is None
        else f"{path} has {_in_words(old.get(path))} in the checkpoint, {_in_words(new.get(path))} now"
    )


def _agree(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> bool:
    if old == new or old is None or new is None or old["class_path"] != new["class_path"]:
        return old == new
    try:
        with torch.device("meta"):
            return _describe(mixer_from(old)) == new
    except ValueError:  # an option that there is no more
        return False


def _in_words(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "its attention"
    options = ", ".join(f"{name}={value!r}" for name, value in entry["options"].items())
    return f"{entry['class_path'].rpartition('.')[2]}({options})"


def _describe(mixer: TokenMixer) -> dict[str, Any]:
    kind = own_class(mixer)
    return {
        "class_path": f"{kind.__module__}.{kind.__qualname__}",
        "options": _plain(mixer.options),
        "site": _site(mixer.site),
    }


def _site(site: Site) -> dict[str, Any]:
    """A site; with its text if it has some: records of others are as they were before there were joint ones."""
    told = asdict(site) | {"grid": site.grid.named}
    return told if site.text is not None else {name: value for name, value in told.items() if name != "text"}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"a mixer's options must be plain data, got {value!r}")


def apply_record(denoiser: nn.Module, record: Mapping[str, Any], *, trust_remote_code: bool = False) -> None:
    """Put the recorded mixers, with fresh weights, in the place of the self-attentions; no teacher is kept.

    Args:
        denoiser: The untouched diffusers model; changed in place.
        record: What ``record_of`` made.
        trust_remote_code: Import mixers that nothing but the record names.

    Raises:
        ValueError: The record is damaged, of a later format, or names a site or a mixer that is not there.
    """
    check_format(record, FORMAT, "the record of mixers")
    recorded = record.get("sites")
    if not (isinstance(recorded, Mapping) and recorded):
        raise ValueError("the record of mixers is damaged: it has no sites")
    made = {path: _mixer_at(path, entry, trust_remote_code=trust_remote_code) for path, entry in recorded.items()}
    replace(denoiser, lambda site: made[site.path], SiteSelection(include=list(recorded)))
    finalize(denoiser)


def _mixer_at(path: str, entry: Any, *, trust_remote_code: bool) -> TokenMixer:
    wanted = ("class_path", "options", "site")
    keys = entry.keys() if isinstance(entry, Mapping) else ()
    wrong = [f"no {key}" for key in wanted if key not in keys] + [
        f"an unknown {key}" for key in keys if key not in wanted
    ]
    if wrong:
        raise ValueError(f"the record of mixers is damaged: its entry for {path} has {', '.join(wrong)}")
    return mixer_from(entry, trust_remote_code=trust_remote_code)


def mixer_from(entry: Mapping[str, Any], *, trust_remote_code: bool = False) -> TokenMixer:
    """The recorded mixer with fresh weights.

    Args:
        entry: What a record holds for one site.
        trust_remote_code: Import it if nothing but the record names it.

    Raises:
        ValueError: The entry is damaged, or the class is no mixer that may be used.
    """
    try:
        path, options, place = entry["class_path"], dict(entry["options"]), dict(entry["site"])
        site = Site(**{**place, "grid": Grid(**place["grid"])})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"an entry of the record of mixers is damaged: {reason_of(error)}") from error
    found = mixer_class(path, trust_remote_code=trust_remote_code)
    for part in _class_paths(options):
        mixer_class(part, trust_remote_code=trust_remote_code)
    try:
        return found(site, **options)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be made with the recorded options {options}: {error}") from error


def _class_paths(value: Any) -> Iterator[str]:
    """Classes that options name at any depth."""
    inner: Iterable[Any] = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    if isinstance(value, Mapping) and "class_path" in value:
        yield value["class_path"]
    for each in inner:
        yield from _class_paths(each)
