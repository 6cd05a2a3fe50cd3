"""The model card of an export."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from sparsight.diffusion.families.known import FAMILIES
from sparsight.publish.card import CONFIG, LICENCE, measured_text, stated_licence, training_text
from sparsight.publish.facts import Base, Run
from sparsight.publish.fresh_process import EXACT
from sparsight.publish.shared_config import shared_config

SAMPLES = "samples.png"
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a block, in a name
OVERHEAD = (
    "Not compiled, each of these costs 0.1 to 1 ms of a processor for every call, most where text and image attend "
    "together, which hides behind the work of a large model and not behind that of a small one; "
    "`denoiser.compile_repeated_blocks()` takes it away."
)


@dataclass(frozen=True)
class Model:
    """The exported model.

    Args:
        name: How its folder is loaded: a hub id, or the folder's own name.
        denoiser: Name of the diffusers class.
        part: ``unet`` or ``transformer``.
        size: Sides that the denoiser was made for, in model space.
        checked: Sides at which it was compared after loading it again.
        class_conditional: Whether it draws classes rather than captions.
        example_call: Arguments of the pipeline that the card shows.
        licence: Entries of a card's metadata that begin with ``license``.
        sites: Recorded mixers by the path of the self-attention that they replace.
        all_sites: Number of self-attentions before.
        parameters: Number of the denoiser's parameters before and now.
        pipeline_code: Whether the pipeline's class travels in the folder.
        fp16: Whether there are half-precision weights.
        delta: Whether there is a ``delta`` folder.
        reloaded: Relative L2 differences found after loading it again.
        untrained: What should have been trained and was not; none if there is nothing of that kind.
        cores: Paths of the sites at which the attention's core alone was replaced.
        rest: Names of the denoiser's own parameters that were trained beside mixers.
        learned_variance: Whether the second half of its output's channels is a variance, which nothing here trains.
        quantised: What the base's frozen layers were held in while it was trained, if not in their precision.
    """

    name: str
    denoiser: str
    part: str
    size: tuple[int, ...]
    checked: tuple[int, ...]
    class_conditional: bool
    example_call: str
    licence: Mapping[str, Any]
    sites: Mapping[str, Any]
    all_sites: int
    parameters: tuple[int, int]
    pipeline_code: bool
    fp16: bool
    delta: bool
    reloaded: Mapping[str, float]
    cores: Collection[str] = ()
    untrained: str | None = None
    rest: Collection[str] = ()
    learned_variance: bool = False
    quantised: str | None = None


def write_card(folder: Path, *, model: Model, run: Run, base: Base | None) -> None:
    """Write ``README.md``, and the run's configuration beside it if it is known.

    Args:
        folder: The export.
        model: What was exported.
        run: How it came about.
        base: What it was made from; none if it was trained from scratch.
    """
    if run.config is not None and run.steps != 0:
        (folder / CONFIG).write_text(shared_config(run.config), encoding="utf-8")
    if run.samples is not None and run.steps != 0:
        shutil.copyfile(run.samples, folder / SAMPLES)
    sections = {
        "Samples": _samples(folder),
        "Use": _use(model, base),
        "What was changed": _changes(model),
        "Training": training_text(run, untrained=model.untrained),
        "Measured": measured_text(run),
        "Precision": _precision(model),
        "Limits": _limits(model),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    title, metadata = model.name.rpartition("/")[2], _metadata(model, base, trained=run.steps != 0).to_yaml()
    text = f"---\n{metadata}\n---\n\n# {title}\n\n{_summary(model, base, trained=run.steps != 0)}\n\n{body}\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


def _samples(folder: Path) -> str:
    if not (folder / SAMPLES).is_file():
        return ""
    return (
        f"![Samples of the teacher, where there is one, above those of this model, from the same noise]({SAMPLES})\n\n"
        "Drawn while it was trained, the last time that the run drew any; rows and prompts are named in the image."
    )


def _metadata(model: Model, base: Base | None, *, trained: bool) -> ModelCardData:
    licence = {key: model.licence[key] for key in LICENCE if key in model.licence}
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag=None if model.class_conditional else "text-to-image",
        base_model=base.name if base is not None and base.on_hub else None,
        tags=["sparsight", "attention-distillation"] if model.sites and trained else ["sparsight"],
        **licence,
    )


def _summary(model: Model, base: Base | None, *, trained: bool) -> str:
    made = "from scratch" if base is None else f"from `{base.name}`"
    how = ("distilled" if model.delta else "trained") if trained else "made without training"
    changed = f"with {len(model.sites)} of its {model.all_sites} self-attentions replaced by token mixers, "
    text = f"A `{model.denoiser}`, {changed if model.sites else ''}{how} {made} with Sparsight."
    if model.untrained:
        text += f" **Do not use it for pictures: {model.untrained}.**"
    return f"{text} {stated_licence(model.licence, base)}"


def _use(model: Model, base: Base | None) -> str:
    trust = ", trust_remote_code=True" if model.sites or model.pipeline_code else ""
    alone = f'"{model.name}", subfolder="{model.part}"{", trust_remote_code=True" if model.sites else ""}'
    text = (
        "```python\nfrom diffusers import AutoModel, DiffusionPipeline\n\n"
        f'pipeline = DiffusionPipeline.from_pretrained("{model.name}"{trust})\n'
        f"image = pipeline({model.example_call}).images[0]\n\n"
        f"denoiser = AutoModel.from_pretrained({alone})  # by itself\n```\n"
    )
    if trust:
        text += (
            "\nThis needs nothing but what the pipeline needs anyway. `trust_remote_code` runs the Python files in "
            "this repository: read them first."
        )
    text += "\n"
    if model.delta and base is not None:
        text += (
            f"\nThe folder `delta` holds only what differs from `{base.name}`. With Sparsight installed, and the "
            f"repository downloaded to `{model.name.rpartition('/')[2]}`, no code of it is run:\n\n"
            "```python\nfrom sparsight.diffusion.model.load import load_pipeline\n"
            "from sparsight.diffusion.export.delta import mount\n\n"
            f'pipeline = mount(load_pipeline("{base.name}"), "{model.name.rpartition("/")[2]}/delta")\n```\n'
        )
    return text.strip()


def _changes(model: Model) -> str:
    if not model.sites:
        return ""
    kinds: dict[tuple[str, str], list[str]] = {}
    for path, entry in model.sites.items():
        options = ", ".join(f"{name}={json.dumps(value)}" for name, value in entry["options"].items())
        kinds.setdefault((entry["class_path"].rpartition(".")[2], options), []).append(f"`{path}`")
    rows = ["| mixer | options | in place of |", "|---|---|---|"]
    for (name, options), paths in kinds.items():
        rows.append(f"| {name} | {f'`{options}`' if options else '-'} | {', '.join(paths)} |")
    before, now = model.parameters
    counts = f"The denoiser has {now:,} parameters; before, it had {before:,}."
    if model.rest:
        alike = sorted({NUMBER.sub("*", name) for name in model.rest})
        counts += (
            f" Beside the mixers {len(model.rest)} of its own tensors were trained, adapters being merged: "
            f"{', '.join(f'`{name}`' for name in alike)}."
        )
    return "\n".join([*rows, "", counts])


def _precision(model: Model) -> str:
    whole = max(value for name, value in model.reloaded.items() if name != "fp16")
    text = (
        f"Weights are in fp32. Loaded in a fresh process, the denoiser answers like the one that was exported "
        f"(relative L2 {whole:.1e}, fixed random inputs, {_sides(model.checked)}, CPU)."
    )
    if whole > EXACT:
        text += " The difference is that of precision or device: the original did not compute in fp32 on a CPU."
    if model.quantised:
        text += (
            f" While it was trained, frozen linear layers of the base were held in {model.quantised}; what is here are "
            "their weights as the base has them."
        )
    if model.fp16:
        text += (
            f' With the weights rounded to half precision (`variant="fp16"`) and fp32 arithmetic it differs by '
            f"{model.reloaded['fp16']:.1e}. Arithmetic in fp16 was not checked: its range ends at 65504, so prefer "
            "`torch_dtype=torch.bfloat16` where there is a choice, or if images come out black."
        )
    return text


def _sides(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


def _places(count: int, model: Model) -> str:
    return f"{count} of the {len(model.sites)} replaced places" if count < len(model.sites) else "The replaced places"


def _limits(model: Model) -> str:
    lines = [f"- Made for {_sides(model.size)} in the space of the denoiser; nothing is said here about other sizes."]
    lines.append("- One object draws one size at a time: threads that draw at different sizes need a copy each.")
    lines.append(
        f'- `device_map="balanced"` wants the denoiser by hand, `{model.part}=AutoModel.from_pretrained(FOLDER, '
        f'subfolder="{model.part}", trust_remote_code=True)`: diffusers 0.42 forgets `trust_remote_code` as it plans.'
    )
    whole = len(model.sites) - len(model.cores)
    if whole:
        lines.append(
            f"- {_places(whole, model)} hold no diffusers attention any more: attention processors and backends do "
            "nothing there, attention masks are refused, and a LoRA's weights for them have nowhere to go. "
            + (
                "Loading such a LoRA, or a Face ID IP-Adapter with one, is an error that lists them; set "
                '`on_dead_keys = "warn"` on the denoiser to go on without them.'
                if FAMILIES[model.denoiser].loads_adapters
                else "PEFT leaves them out without saying so."
            )
        )
    if model.cores:
        lines.append(
            f"- {_places(len(model.cores), model)} are diffusers attentions with another core: projections, their "
            "adapters and processors work there as long as a processor calls torch's `scaled_dot_product_attention` "
            "once; others, slicing and attention masks are refused. What a LoRA was trained to do, it did with softmax "
            f"attention. {OVERHEAD}"
        )
    if model.learned_variance:
        lines.append(
            "- The second half of the output's channels is a learned variance, which training did not look at: "
            "diffusers' pipelines do not use it, and with samplers that do (`variance_type: learned_range`) nothing is "
            "known of this model."
        )
    return "\n".join([*lines, "- The biases of its data, and of the base model if it has one, are its own as well."])
