"""The model card of an exported image-text model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCardData

from sparsight.lvlm.export.adapters import FOLDER as ADAPTERS
from sparsight.lvlm.export.adapters import PROJECTOR_FILE, beside_file
from sparsight.publish.card import CONFIG, LICENCE, measured_text, stated_licence, training_text
from sparsight.publish.facts import Base, Run
from sparsight.publish.shared_config import shared_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write_lvlm_card(
    folder: Path,
    name: str,
    *,
    model: PreTrainedModel,
    record: Mapping[str, Any],
    run: Run,
    base: Base,
    licence: Mapping[str, Any],
    difference: float,
    lacking: str | None,
) -> None:
    """Write ``README.md``, and the run's configuration beside it if it is known.

    Args:
        folder: The export.
        name: How it is loaded.
        model: What was exported.
        record: Its provenance.
        run: How it came about.
        base: What it was made from.
        licence: Licence entries of the card.
        difference: Relative L2 difference of logits after reloading.
        lacking: What should have been trained and was not.
    """
    from transformers import __version__ as transformers_version

    if run.config is not None and run.steps != 0:
        (folder / CONFIG).write_text(shared_config(run.config), encoding="utf-8")
    sections = {
        "Use": _use(name)
        + (_use_adapters(name, base, beside=beside_file(folder).exists()) if (folder / ADAPTERS).exists() else ""),
        "What was changed": _changes(model, record),
        "Training": training_text(run, untrained=lacking),
        "Measured": measured_text(run),
        "Precision": f"Weights are in {str(model.dtype).removeprefix('torch.')}. Loaded in a fresh process, the model "
        f"answers like the one that was exported (logits, relative L2 {difference:.1e}, fp32 arithmetic on the CPU) "
        f"and generates the same tokens with and without a cache. Written with transformers {transformers_version}; "
        "older major versions name the weights of vision towers otherwise.",
        "Limits": "The biases of its data and of the base model are its own as well. Nothing is said here about other "
        "tasks than those under Measured.",
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=base.name if base.on_hub else None,
        tags=["sparsight", "sparse-layer-tuning", *(["depth-pruning"] if record["removed_layers"] else [])],
        **{key: licence[key] for key in LICENCE if key in licence},
    ).to_yaml()
    tuned, removed = len(record["tuned_layers"]), len(record["removed_layers"])
    summary = f"A `{type(model).__name__}` made from `{base.name}` with Sparsight: {tuned} of {record['base_layers']} "
    summary += f"decoder layers tuned{f', {removed} removed' if removed else ''}. {stated_licence(licence, base)}"
    title = name.rpartition("/")[2]
    (folder / "README.md").write_text(f"---\n{metadata}\n---\n\n# {title}\n\n{summary}\n\n{body}\n", encoding="utf-8")


def _use(name: str) -> str:
    return (
        "```python\nfrom transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
        f'model = AutoModelForImageTextToText.from_pretrained("{name}")\n'
        f'processor = AutoProcessor.from_pretrained("{name}")\n'
        'parts = [{"type": "image", "url": "picture.png"}, {"type": "text", "text": "What is this?"}]\n'
        'messages = [{"role": "user", "content": parts}]\n'
        "inputs = processor.apply_chat_template(\n"
        '    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"\n)\n'
        "print(processor.batch_decode(model.generate(**inputs, max_new_tokens=30), skip_special_tokens=True)[0])\n```"
    )


def _use_adapters(name: str, base: Base, *, beside: bool) -> str:
    first = (
        f" Before that, weights of the projector that peft does not keep: "
        f"`base_model.load_state_dict(safetensors.torch.load_file({PROJECTOR_FILE!r}), strict=False)`, a file in that "
        "subfolder."
    )
    return (
        f"\n\nThe adapters, which are merged into these weights, are kept by themselves too. On the base model, here "
        f'`{base.name}`: `peft.PeftModel.from_pretrained(base_model, "{name}", subfolder="{ADAPTERS}")`.'
        f"{first if beside else ''}"
    )


def _changes(model: PreTrainedModel, record: Mapping[str, Any]) -> str:
    lines = [f"Layers are decoder layers, counted from 0 as in the base model, which has {record['base_layers']}."]
    if record["trained"]:
        lines += ["", f"- Trained: {' and '.join(record['trained'])}"]
    lines += [f"- Tuned layers: {_listed(record['tuned_layers'])}{_chosen_by(record['selection'])}"]
    lines += [f"- Removed layers: {_listed(record['removed_layers'])}"]
    lines += [_removal(step) for step in record["pruning"]]
    if record["removed_layers"] or record["earlier"]:
        now = _listed(record["tuned_layers_now"])
        lines += [f"- Layers that this run or an earlier one tuned, as they are numbered now: {now}"]
    if "recipe" in record:
        methods = ", ".join(map(_method, record["recipe"]))
        lines += [
            f"- Trained under a recipe: {methods}. It works where the folder is loaded with `trust_remote_code=True`, "
            "by the file of code beside the weights; without that the model answers otherwise than in training"
        ]
    if "trained_beside" in record:
        lines += [
            "- While it was trained, frozen linear layers of the decoder were held in "
            f"{record['trained_beside']}; here are their weights as the base has them"
        ]
    lines += [f"- Parameters: {sum(p.numel() for p in model.parameters()):,}"]
    return "\n".join([*lines, "", "`sparsight.json` holds the same for programs, with the records of earlier runs."])


def _chosen_by(selection: Mapping[str, Any] | None) -> str:
    if selection is None:
        return ""
    told = ", ".join(f"{name} {value}" for name, value in selection["options"].items() if value is not None)
    return f", chosen by {selection['rule']}{f' ({told})' if told else ''}"


def _method(method: Mapping[str, Any]) -> str:
    """One method of a recipe."""
    return f"{method['method']} ({', '.join(f'{name} {value}' for name, value in method['options'].items())})"


def _removal(step: Mapping[str, Any]) -> str:
    """One line about layers that left together."""
    measured, where = step["measured"], f"  - {_listed(step['layers'])}, after {step['step']} optimiser steps"
    if measured is None:
        return f"{where}, as the configuration said"
    data = ", ".join(measured["data_sha256"])
    return f"{where}, by {measured['score']} on {measured['samples']} training samples (SHA-256 of the data: {data})"


def _listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers)) if layers else "none"
