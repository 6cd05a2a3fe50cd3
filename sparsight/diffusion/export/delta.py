"""The small form of an export: what differs from the teacher, for whoever has the teacher already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from sparsight import __version__
from sparsight.common.disk.files import write_text, write_whole
from sparsight.common.disk.weights import read_tensors
from sparsight.common.formats import check_format
from sparsight.common.hashes import is_state, short_hash
from sparsight.common.near import suggestion
from sparsight.diffusion.export.standalone import student_state
from sparsight.diffusion.surgery.record import apply_record, record_of
from sparsight.diffusion.surgery.replace import shells_of
from sparsight.diffusion.surgery.rest.rest import changed_in_rest
from sparsight.diffusion.surgery.sites import meta_twin

FORMAT = 1
PLAN, TENSORS = "plan.json", "mixers.safetensors"


def changed_tensors(denoiser: nn.Module) -> dict[str, Tensor]:
    """Tensors of the student that are not its teacher's, by the names that they have without shells and adapters.

    Raises:
        ValueError: Something stands around layers of the denoiser, see ``student_state``.
    """
    exported = student_state(denoiser)
    changed = {name: exported[name].detach() for name in changed_in_rest(denoiser) if name in exported}
    for path, shell in shells_of(denoiser).items():
        teacher = shell.as_teacher()
        kept = {id(tensor) for tensor in (*teacher.parameters(), *teacher.buffers())}
        for name, tensor in shell.as_student().state_dict(keep_vars=True).items():
            if id(tensor) not in kept and f"{path}.{name}" in exported and f"{path}.{name}" not in changed:
                changed[f"{path}.{name}"] = tensor.detach()
    return changed


def write_delta(
    denoiser: nn.Module,
    folder: Path,
    *,
    teacher: str,
    revision: str | None,
    variant: str | None,
    teacher_hash: str,
    quantised: str | None = None,
) -> None:
    """Write the changed tensors and the plan that ``mount`` follows.

    Args:
        denoiser: A denoiser with shells.
        folder: Made if it is not there.
        teacher: What the teacher is called: a hub id, or a name for people to read.
        revision: Its revision.
        variant: Its weight variant.
        teacher_hash: ``sparsight.common.hashes.state_hash`` of its denoiser.
        quantised: What frozen layers were held in while it was trained, if not in their precision.
    """
    tensors = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in changed_tensors(denoiser).items()
    }
    write_whole(folder / TENSORS, lambda path: save_file(tensors, path, {"format": "pt"}))
    plan = {
        "format": FORMAT,
        "sparsight": __version__,
        "teacher": teacher,
        "revision": revision,
        "variant": variant,
        "teacher_hash": teacher_hash,
        "trained_beside": quantised,
        "record": record_of(denoiser),
    }
    write_text(folder / PLAN, json.dumps(plan, indent=2) + "\n")  # last: without it, there is no delta


def mount(target: Any, folder: str | Path, *, trust_remote_code: bool = False) -> Any:
    """Turn a teacher into the student that a delta folder describes.

    Args:
        target: The teacher's pipeline, or its denoiser, in the precision that it was distilled from (fp32 unless the
            plan names a variant); changed in place. Convert it afterwards, e.g. ``pipeline.to(torch.float16)``.
        folder: The ``delta`` folder of an export.
        trust_remote_code: Import mixers that nothing but the plan names.

    Returns:
        ``target``.

    Raises:
        FileNotFoundError: The folder is no delta folder.
        ValueError: The plan is damaged, of a later format, or names a mixer that may not be imported; the denoiser is
            not the teacher bit by bit; or the tensors are not exactly those that the plan needs. The denoiser is then
            as it was.
    """
    folder = Path(folder)
    for name in (PLAN, TENSORS):
        if not (folder / name).is_file():
            meant = [str(folder / "delta")] if (folder / "delta" / name).is_file() else []
            raise FileNotFoundError(f"{folder} is no delta folder: it has no {name}{suggestion(meant)}")
    plan = _read_plan(folder / PLAN)
    denoiser = _denoiser_of(target)
    state = denoiser.state_dict()
    if not is_state(plan["teacher_hash"], state):
        raise ValueError(
            f"this denoiser is not the teacher of {folder}: load {plan['teacher']!r} (revision {plan['revision']}, "
            f"variant {plan['variant']}) in full precision and without adapters, and mount before converting it; its "
            f"weights must hash to {short_hash(plan['teacher_hash'])}"
        )
    tensors = read_tensors(folder / TENSORS)
    twin = meta_twin(denoiser)
    apply_record(twin, plan["record"], trust_remote_code=trust_remote_code)
    _check(tensors, wanted=twin.state_dict(), kept=set(state), source=folder / TENSORS)
    apply_record(denoiser, plan["record"], trust_remote_code=trust_remote_code)
    denoiser.load_state_dict(tensors, strict=False)
    return target


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    check_format(plan, FORMAT, str(path))
    missing = sorted({"teacher", "revision", "variant", "teacher_hash", "record"} - plan.keys())
    if missing:
        raise ValueError(f"{path} is damaged: it has no {', '.join(missing)}")
    return plan


def _denoiser_of(target: Any) -> nn.Module:
    from diffusers import DiffusionPipeline

    components = target.components if isinstance(target, DiffusionPipeline) else {}
    parts = [target, components.get("unet"), components.get("transformer")]
    found = next((part for part in parts if isinstance(part, nn.Module)), None)
    if found is None:
        raise ValueError(f"{type(target).__name__} is neither a denoiser nor a pipeline with a unet or transformer")
    return found


def _check(tensors: dict[str, Tensor], *, wanted: dict[str, Tensor], kept: set[str], source: Path) -> None:
    missing = sorted(wanted.keys() - kept - tensors.keys())
    unexpected = sorted(tensors.keys() - wanted.keys())
    shapes = sorted(n for n in tensors.keys() & wanted.keys() if tensors[n].shape != wanted[n].shape)
    if missing or unexpected or shapes:
        raise ValueError(
            f"{source} does not fit its plan: missing {missing[:3]}, unexpected {unexpected[:3]}, of another shape "
            f"{shapes[:3]}"
        )
