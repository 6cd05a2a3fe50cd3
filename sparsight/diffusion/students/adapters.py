"""Adapters made for the base model, on a student: weights for replaced self-attentions are named, not lost in silence.

This file's text travels inside exports of UNets, so it holds to what
``sparsight.diffusion.students.remote`` says of itself.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import nn

GONE = "belong to self-attentions that mixers have replaced"


@runtime_checkable
class InPlace(Protocol):
    """What stands where an attention was: a StudentAttention, of this project or of the code of an export.

    Attentions of diffusers have no grid, and the shell around an attention and its student has no connection.
    """

    grid: Any
    residual_connection: bool


def check_adapter(student: nn.Module, adapter: Mapping[str, Any], *, on_dead_keys: str = "raise") -> dict[str, Any]:
    """Refuse a LoRA that a student cannot take in full.

    Args:
        student: A denoiser with mixers at some of its sites, whether or not their teachers still stand beside them.
        adapter: Weights of a LoRA by the module paths of diffusers or PEFT, joined by dots or (kohya) by underscores.
        on_dead_keys: ``raise``, or ``warn``.

    Returns:
        The weights that the student can take.

    Raises:
        ValueError: Some address a projection that the student no longer has; the message lists them.
    """
    dead = dead_keys(student, adapter)
    report_dead_keys(dead, GONE, on_dead_keys=on_dead_keys)
    return {key: value for key, value in adapter.items() if key not in dead}


def dead_keys(student: nn.Module, keys: Iterable[str]) -> set[str]:
    """Keys of a LoRA that address a projection which the student no longer has."""
    sites = {path: module for path, module in student.named_modules() if _is_in_place(module)}
    patterns = {_pattern(path.removesuffix(".student")): site for path, site in sites.items()}
    return {key for key in keys if any(_is_dead(pattern.search(key), site) for pattern, site in patterns.items())}


def _is_in_place(module: nn.Module) -> bool:
    return isinstance(module, InPlace)


def _pattern(path: str) -> re.Pattern[str]:
    """Finds what of a key comes after the path of a site."""
    return re.compile(rf"(?:^|[._]){path.replace('.', '[._]')}[._](?:processor\.)?(.+)")


def _is_dead(found: re.Match[str] | None, site: nn.Module) -> bool:
    return found is not None and not any(found[1].startswith(name) for name, _ in site.named_children())


def report_dead_keys(dead: Iterable[str], why: str, *, on_dead_keys: str) -> None:
    """Raise or warn with the list of dead keys, if there are any.

    Raises:
        ValueError: There are dead keys, and ``on_dead_keys`` is not ``warn``.
    """
    listed = "".join(f"\n  {key}" for key in sorted(dead))
    if not listed:
        return
    text = f"these weights of the adapter {why}:{listed}\n"
    if on_dead_keys != "warn":
        raise ValueError(
            f"{text}Nothing was loaded. Use an adapter that leaves self-attention alone, or set on_dead_keys = "
            '"warn" on the denoiser to load it without these weights, which is not what it was trained as.'
        )
    warnings.warn(f"{text}They are left out.", stacklevel=3)


class AdapterGuard:
    """Mixed into a student of a diffusers UNet, in front of it.

    Attributes:
        on_dead_keys: ``raise``, or ``warn`` to load what is left of an adapter without its dead weights.
    """

    on_dead_keys = "raise"

    def load_lora_adapter(self, source: Any, *args: Any, **options: Any) -> Any:
        """Load a LoRA as diffusers does; ``pipeline.load_lora_weights`` ends here, with the weights.

        Raises:
            ValueError: It has weights for replaced self-attentions.
        """
        if isinstance(source, Mapping):
            source = check_adapter(self, source, on_dead_keys=self.on_dead_keys)  # type: ignore[arg-type]
        return super().load_lora_adapter(source, *args, **options)  # type: ignore[misc]

    def _load_ip_adapter_weights(self, state_dicts: Any, *args: Any, **options: Any) -> Any:
        """Load an IP-Adapter as diffusers does: its weights are for cross-attentions, which are all there.

        Raises:
            ValueError: It is a Face ID one, whose LoRA has weights for replaced self-attentions.
        """
        adapters = state_dicts if isinstance(state_dicts, list) else [state_dicts]
        left = self._numbers()
        keys = [key for adapter in adapters for key in adapter["ip_adapter"] if "_lora." in key]
        dead = [key for key in keys if int(key.partition(".")[0]) not in left]
        report_dead_keys(dead, GONE, on_dead_keys=self.on_dead_keys)
        return super()._load_ip_adapter_weights(state_dicts, *args, **options)  # type: ignore[misc]

    def _load_ip_adapter_loras(self, state_dicts: Any) -> Any:
        """The LoRA of a Face ID adapter, whose keys count the attentions of the base, for those that are left."""
        left, renumbered = self._numbers(), []
        for adapter in state_dicts:
            split = ((key.partition("."), weight) for key, weight in adapter["ip_adapter"].items() if "_lora." in key)
            kept = {f"{left[int(n)]}.{rest}": weight for (n, _, rest), weight in split if int(n) in left}
            renumbered.append({**adapter, "ip_adapter": kept})
        return super()._load_ip_adapter_loras(renumbered)  # type: ignore[misc]

    def _numbers(self) -> dict[int, int]:
        """Numbers that the attentions have here, by those that they have in the base."""
        here = {name.removesuffix(".processor"): n for n, name in enumerate(self.attn_processors)}  # type: ignore[attr-defined]
        modules = self.named_modules()  # type: ignore[attr-defined]
        base = [path for path, module in modules if path in here or _is_in_place(module)]
        return {number: here[path] for number, path in enumerate(base) if path in here}
