"""From a tuned and pruned image-text model to a folder that transformers loads."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from safetensors.torch import load_file
from torch import Tensor

from sparsight.common.disk.files import write_text
from sparsight.common.tables import json_text
from sparsight.lvlm.export import reload
from sparsight.lvlm.export.adapters import verify_adapters, write_adapters
from sparsight.lvlm.export.card import write_lvlm_card
from sparsight.lvlm.export.recipe_code import carry_recipe
from sparsight.lvlm.methods.recipe import Recipe
from sparsight.lvlm.model.lora import merge_lora
from sparsight.lvlm.model.processor import load_processor
from sparsight.lvlm.model.provenance import FILE, provenance, read_provenance
from sparsight.lvlm.model.recompute import keep_activations
from sparsight.lvlm.surgery.remove import remove_layers
from sparsight.publish.facts import Base, Run
from sparsight.publish.fresh_process import EXACT, relative_l2, run_fresh
from sparsight.publish.secrets import hide_places, without_places

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NEW = ("with_cache", "without_cache")
SHARD = "5GB"  # largest safetensors file


@runtime_checkable
class Processing(Protocol):
    """Data that a processor of transformers is needed for."""

    def load_processor(self) -> Any:
        """The processor, as samples are made with it."""
        ...


def write_lvlm(
    module: Any,
    folder: Path,
    name: str,
    *,
    processor: Any,
    run: Run,
    base: Base,
    lacking: str | None,
    licence: dict[str, Any],
) -> None:
    """Write model, processor, provenance and card; load them in a fresh process and compare.

    Adapters are merged, and kept beside where peft can load them; layers that are retired are taken out, and what was
    trained in float32 goes back to the precision of the rest.

    Args:
        module: A SparseLayerTuning; stays as it is.
        folder: Made if it is not there.
        name: How the card says that the folder is loaded.
        processor: What the data were made with; none takes the base model's.
        run: What the card tells about the training.
        base: What is known of the base model.
        lacking: What should have been trained and was not, for the card.
        licence: Licence entries of the card.

    Raises:
        RuntimeError: The folder, or its adapters, do not load without a missing or left-over weight, or answers differ.
    """
    tuned = module.learned_layers()
    processor = processor or load_processor(module.base, **module.source)
    depth = len(module.parts.layers)
    model = finished(module.whole_copy(), removed=module.retired.indices, dtype=module.frozen_dtype)
    model.save_pretrained(folder, max_shard_size=SHARD)
    processor.save_pretrained(folder)
    kept = bool(tuned) and write_adapters(module, folder, base=base.name)
    record = provenance(
        base=base.name,
        revision=module.revision,
        base_hash=module.base_hash,
        depth=depth,
        tuned=tuned,
        parts=module.trained_so_far(),
        removed=module.retired.indices,
        earlier=read_provenance(module.base),
        selection=module.selection,
        pruning=module.removals,
    )
    if module.quantised is not None:
        record["trained_beside"] = module.quantised
    recipe = copy.deepcopy(module.recipe)  # its weights go where it works
    if recipe is not None:
        record["recipe"] = recipe.record()
        carry_recipe(folder, recipe, type(model))
    write_text(folder / FILE, json_text(without_places(record)))
    hide_places(folder)
    difference = verify_lvlm(model, processor, folder)
    if recipe is not None:
        verify_recipe(model, processor, folder, recipe)
    if kept:
        verify_adapters(module, folder, reload.example_inputs(processor))
    write_lvlm_card(
        folder,
        name,
        model=model,
        record=record,
        run=run,
        base=base,
        licence=licence,
        difference=difference,
        lacking=lacking,
    )


def processor_of(datamodule: Any) -> Any:
    """The processor that a datamodule makes its samples with, if it has one."""
    return datamodule.load_processor() if isinstance(datamodule, Processing) else None


def finished(model: PreTrainedModel, *, removed: Collection[int], dtype: torch.dtype) -> PreTrainedModel:
    """A model in main memory with adapters merged and layers taken out, in one precision and eval mode, in place."""
    merge_lora(model)
    if removed:
        remove_layers(model, removed)
    keep_activations(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)  # buffers stay: rotary frequencies must not be rounded
    return model.eval()


def verify_lvlm(model: PreTrainedModel, processor: Any, folder: Path) -> float:
    """Load a folder where this project is not, and compare its answers with those of the model in memory.

    Returns:
        Relative L2 difference of logits, both computed in fp32.

    Raises:
        RuntimeError: It does not load, or processor, logits or generated tokens differ.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "answers.safetensors")
        run_fresh(reload.__file__, [str(folder.resolve()), str(file)], scratch=scratch)
        found = load_file(file)
    inputs = reload.example_inputs(processor)
    different = [key for key, value in inputs.items() if not torch.equal(found[f"inputs.{key}"], value)]
    if different:
        raise RuntimeError(f"the exported processor makes other {', '.join(different)} of the same image and question")
    whole = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    try:
        expected: dict[str, Tensor] = reload.answers(whole, inputs)
    except IndexError as problem:
        raise RuntimeError(
            f"the model to export cannot go on with a cache (IndexError: {problem}): did a decoder layer keep the "
            "number, such as layer_idx, that it had before others were removed?"
        ) from problem
    error = relative_l2(found["logits"], expected["logits"])
    if not error <= EXACT:
        raise RuntimeError(f"the export answers differently after reloading: relative L2 difference {error:.2e}")
    for key in NEW:
        if not torch.equal(found[key], expected[key]):
            raise RuntimeError(f"the export generates other tokens after reloading ({key.replace('_', ' ')})")
    if not torch.equal(found["with_cache"], found["without_cache"]):
        raise RuntimeError("the export generates other tokens with a cache than without: are layers numbered right?")
    return error


def verify_recipe(model: PreTrainedModel, processor: Any, folder: Path, recipe: Recipe) -> None:
    """Load a folder with its code where this project is not, and compare its answers under the recipe.

    Raises:
        RuntimeError: It does not load, or logits or generated tokens differ.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "answers.safetensors")
        run_fresh(reload.__file__, [str(folder.resolve()), str(file), "recipe"], scratch=scratch)
        found = load_file(file)
    whole = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    with recipe.on(whole):
        expected: dict[str, Tensor] = reload.answers(whole, reload.example_inputs(processor), recipe=True)
    error = relative_l2(found["logits"], expected["logits"])
    if not error <= EXACT:
        raise RuntimeError(f"the export answers differently under its recipe: relative L2 difference {error:.2e}")
    if not torch.equal(found["with_cache"], expected["with_cache"]):
        raise RuntimeError("the export generates other tokens under its recipe after reloading")
