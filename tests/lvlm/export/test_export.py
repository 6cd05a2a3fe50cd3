"""Exported image-text models: they load in a fresh process without this project, and say where they come from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from sparsight.command.cli import main
from sparsight.lvlm.export import write as export
from sparsight.lvlm.export.adapters import verify_adapters, write_adapters
from sparsight.lvlm.export.reload import example_inputs
from sparsight.lvlm.model.load import load_lvlm
from sparsight.lvlm.model.lora import merge_lora
from sparsight.lvlm.model.provenance import FILE, read_provenance
from sparsight.lvlm.model.tower import find_parts
from sparsight.lvlm.surgery.remove import remove_layers
from tests.tiny_lvlm import tiny_inputs, tiny_lvlm, tiny_processor
from tests.tiny_processors import PROCESSORS, family_processor
from tests.tiny_tokens import VOCABULARY
from tests.tiny_tuning import SCORE, STAGE, adapted_module, checkpoint, pruning, tuning_config, with_callback

LORA = {"rank": 2, "alpha": 4, "dropout": 0.1}


WRITTEN = ("llava_next", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "lfm2_vl", "smolvlm")
FAST = ("llava",)
SLOW = [pytest.param(family, marks=pytest.mark.slow) for family in PROCESSORS if family not in FAST]


def save_base(folder: Path, family: str, **options: Any) -> Path:
    """Model and processor of a family; the model has settings for writing that are its own."""
    processor = family_processor(family)
    model = tiny_lvlm(family, vocab_size=max(VOCABULARY, len(processor.tokenizer)), **options)
    model.generation_config.repetition_penalty = 1.25
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", [*FAST, *SLOW])
def test_a_pruned_run_with_adapters_loads_as_a_plain_model(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if family != FAST[0]:  # one shows that no process of this project is needed
        request.getfixturevalue("reload_here")
    monkeypatch.setattr(export, "SHARD", "60KB")
    tied = family == "llava"
    base = save_base(tmp_path / "base", family, tie_word_embeddings=tied)
    config = with_callback(tuning_config(tmp_path, family, prune=SCORE, lora=LORA), pruning())
    cli = main(["fit", "--config", str(config)])
    folder = tmp_path / "exported"
    arguments = ["--config", str(config), "--ckpt_path", str(checkpoint(tmp_path, 4)), "--weights", "raw"]
    main(["export", *arguments, "--output", str(folder)])

    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert type(model).__name__ == type(cli.model.model).__name__
    inputs = example_inputs(AutoProcessor.from_pretrained(folder))
    cli.model.eval()
    with torch.no_grad(), cli.model.retired.taken_out():
        wanted = cli.model.model(**inputs).logits
    torch.testing.assert_close(model(**inputs).logits, wanted, rtol=1e-4, atol=1e-5)
    assert [layer.self_attn.layer_idx for layer in find_parts(model).layers] == [0, 1, 2, 3]

    assert len(list(folder.glob("*.safetensors"))) > 1
    weights = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert any(name.endswith("lm_head.weight") for name in weights) != tied
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    for settings in (model.generation_config, cli.model.model.generation_config):
        assert settings.repetition_penalty == 1.25
    template = "chat_template.jinja"
    assert (folder / template).read_text() == (base / template).read_text()

    record = json.loads((folder / FILE).read_text())
    assert record["tuned_layers"] == [1, 4] and record["removed_layers"] == cli.model.retired.indices == [2, 3]
    assert record["tuned_layers_now"] == [1, 2] and record["kept_of_first"] == [0, 1, 4, 5]
    card = (folder / "README.md").read_text()
    assert "2 of 6 decoder layers tuned, 2 removed" in card and "AutoModelForImageTextToText" in card
    assert not list(tmp_path.glob(".exported*"))


@pytest.mark.parametrize(
    "train", [["layers"], pytest.param(["layers", "projector"], marks=pytest.mark.slow)], ids=["layers", "both"]
)
def test_adapters_are_kept_for_peft_too(tmp_path: Path, train: list[str]) -> None:
    stage = STAGE | {"steps": 2, "train": train}
    config = tuning_config(tmp_path, "llava", stages=[stage], lora=LORA)
    cli = main(["fit", "--config", str(config)])
    cli.model.eval()
    assert write_adapters(cli.model, tmp_path / "exported", base="base")
    files = {path.name for path in (tmp_path / "exported" / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    base = load_lvlm(str(tmp_path / "base"))
    adapted = PeftModel.from_pretrained(base, tmp_path / "exported", subfolder="adapter")
    inputs = example_inputs(AutoProcessor.from_pretrained(tmp_path / "base"))
    with torch.no_grad():
        torch.testing.assert_close(adapted(**inputs).logits, cli.model.model(**inputs).logits)
        assert not torch.equal(load_lvlm(str(tmp_path / "base"))(**inputs).logits, adapted(**inputs).logits)
    if "projector" in train:
        verify_adapters(cli.model, tmp_path / "exported", inputs)  # in a process of its own
    cli.model.retired.set([3])
    assert not write_adapters(cli.model, tmp_path / "pruned", base="base")


def shifted(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value + 0.1 for name, value in tensors.items()}


WRONG: list[tuple[str, Any, Any, str]] = [
    (
        "_saved_as",
        lambda name: f"base_model.model.{name}".replace(".default.", ".other."),
        SystemExit,
        "do not fit their configuration",
    ),
    ("save_file", lambda tensors, *to, **kind: save_file(shifted(tensors), *to, **kind), RuntimeError, "relative"),
]


@pytest.mark.slow
@pytest.mark.usefixtures("reload_here")
def test_an_export_whose_adapters_answer_otherwise_does_not_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tuning_config(tmp_path, "llava", lora=LORA, loading={"dtype": "bfloat16"})
    main(["fit", "--config", str(config), "--trainer.max_steps=1", "--trainer.precision=bf16-mixed"])
    arguments = ["export", "--config", str(config), "--ckpt_path", str(checkpoint(tmp_path, 1)), "--weights", "raw"]
    main([*arguments, "--output", str(tmp_path / "good")])
    assert (tmp_path / "good" / "adapter").is_dir()
    for function, wrong, error, message in WRONG:

        def write(*given: Any, named: str = function, put: Any = wrong, **options: Any) -> bool:
            with monkeypatch.context() as patch:
                patch.setattr(f"sparsight.lvlm.export.adapters.{named}", put)
                return write_adapters(*given, **options)

        with monkeypatch.context() as patch:
            patch.setattr(export, "write_adapters", write)
            with pytest.raises(error, match=message):
                main([*arguments, "--output", str(tmp_path / "bad")])
        assert not (tmp_path / "bad").exists()


def reloaded(base: Any, folder: Path) -> Any:
    """The adapters on a base model, as the card says; every weight of the file must have found its place."""
    beside = folder / "adapter" / "projector.safetensors"
    if beside.exists():
        assert not base.load_state_dict(load_file(beside), strict=False).unexpected_keys
    adapted = PeftModel.from_pretrained(base, folder / "adapter").eval()
    assert (
        get_peft_model_state_dict(adapted).keys() == load_file(folder / "adapter" / "adapter_model.safetensors").keys()
    )
    return adapted


@pytest.mark.parametrize("family", WRITTEN)
def test_every_familys_adapters_and_projector_are_put_on_the_base_again(family: str, tmp_path: Path) -> None:
    """Qwen3-VL's projector is a module and a list of modules, those of LLaVA-NeXT a module and a parameter."""
    model = tiny_lvlm(family)
    module = adapted_module(model, find_parts(model))
    assert write_adapters(module, tmp_path, base="base")
    assert (tmp_path / "adapter" / "projector.safetensors").exists() == (family in ("llava_next", "llava_onevision"))
    inputs = tiny_inputs(family, module.model)
    with torch.no_grad():
        wanted, plain = module.model(**inputs).logits, tiny_lvlm(family)(**inputs).logits
        torch.testing.assert_close(reloaded(tiny_lvlm(family), tmp_path)(**inputs).logits, wanted)
    assert (wanted - plain).abs().max() > 1e-2


def odd_projector(model: Any) -> dict[str, Any]:
    """Give a model a projector of all kinds of parts, and beside it a module whose name ends as one of them."""
    torch.manual_seed(0)
    model.between = torch.nn.ModuleList([torch.nn.ModuleDict({"norm": torch.nn.LayerNorm(8)}), torch.nn.Identity()])
    model.scales = torch.nn.ParameterList([torch.ones(8), torch.ones(1)])
    model.shift = torch.nn.Parameter(torch.zeros(8))
    model.aligner = torch.nn.BatchNorm1d(8)  # has buffers
    model.generation_aligner = torch.nn.Linear(8, 8)
    return {name: getattr(model, name) for name in ("between", "scales", "shift", "aligner")}


def test_parts_of_a_projector_that_peft_refuses_or_takes_for_others_are_kept(tmp_path: Path) -> None:
    model, base = tiny_lvlm("llava"), tiny_lvlm("llava")
    module = adapted_module(model, dataclasses.replace(find_parts(model), projector=odd_projector(model)))
    odd_projector(base)
    for parameter in (model.scales[0], model.shift, model.aligner.weight, model.between[0]["norm"].bias):
        parameter.data += 1.0
    model.aligner.running_mean += 2.0
    assert write_adapters(module, tmp_path, base="base")
    aligned = model.aligner.state_dict(prefix="aligner.")
    assert set(load_file(tmp_path / "adapter" / "projector.safetensors")) == {"scales.0", "scales.1", "shift", *aligned}
    found = reloaded(base, tmp_path)
    assert type(base.generation_aligner) is torch.nn.Linear
    again = found.merge_and_unload().state_dict()
    merge_lora(model)
    for name, wanted in model.state_dict().items():
        torch.testing.assert_close(again[name], wanted, msg=name)


@pytest.mark.slow
@pytest.mark.usefixtures("reload_here")
def test_a_second_run_starts_from_an_export_and_remembers_the_first(tmp_path: Path) -> None:
    first = with_callback(tuning_config(tmp_path, prune=SCORE), pruning(1))
    main(["fit", "--config", str(first)])
    folder = tmp_path / "first"
    arguments = ["--ckpt_path", str(checkpoint(tmp_path, 4)), "--weights", "raw", "--output", str(folder)]
    main(["export", "--config", str(first), *arguments])
    layers = {"class_path": "Explicit", "init_args": {"layers": [0]}}
    config = tuning_config(tmp_path, base=str(folder), prune=SCORE, layers=layers)
    cli = main(["fit", "--config", str(with_callback(config, pruning(1))), "--trainer.max_steps=2"])
    assert cli.model.depth == 5
    tuned_before = read_provenance(folder)["tuned_layers_now"]  # type: ignore[index]
    assert not set(cli.model.retired.indices) & {*tuned_before, 0, 4}
    second = export.provenance(
        base="first",
        revision=None,
        base_hash="",
        depth=5,
        tuned=[],
        parts=["projector"],
        removed=cli.model.retired.indices,
        earlier=read_provenance(folder),
    )
    assert len(second["kept_of_first"]) == 4 and set(second["kept_of_first"]) < set(range(6))
    # what the first run tuned stays known, and so protected, though the second tuned the projector alone
    assert second["tuned_layers"] == [] and [second["kept_of_first"][i] for i in second["tuned_layers_now"]] == [1, 4]


@pytest.mark.usefixtures("reload_here")
def test_an_export_that_answers_otherwise_does_not_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tuning_config(tmp_path)
    main(["fit", "--config", str(config), "--trainer.max_steps=1"])
    honest: Any = export.finished

    def lying(*args: Any, **kwargs: Any) -> Any:
        model = honest(*args, **kwargs)
        save = model.save_pretrained

        def save_other(folder: Path, **options: Any) -> None:
            with torch.no_grad():
                find_parts(model).layers[1].mlp.down_proj.weight.mul_(1.5)
                save(folder, **options)
                find_parts(model).layers[1].mlp.down_proj.weight.div_(1.5)

        model.save_pretrained = save_other
        return model

    monkeypatch.setattr(export, "finished", lying)
    arguments = ["--ckpt_path", str(checkpoint(tmp_path, 1)), "--weights", "raw"]
    with pytest.raises(RuntimeError, match="answers differently"):
        main(["export", "--config", str(config), *arguments, "--output", str(tmp_path / "bad")])
    assert not (tmp_path / "bad").exists()


@pytest.mark.usefixtures("reload_here")
def test_an_export_whose_configuration_counts_removed_layers_does_not_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_callback(tuning_config(tmp_path, prune=SCORE), pruning())
    main(["fit", "--config", str(config)])

    def only_cut(model: Any, removed: list[int]) -> None:
        parts = find_parts(model)
        layers = [layer for index, layer in enumerate(parts.layers) if index not in removed]
        parts.decoder.layers = torch.nn.ModuleList(layers)

    monkeypatch.setattr(export, "remove_layers", only_cut)
    monkeypatch.setenv("SPARSIGHT_TRACEBACK", "1")  # the helper that reads back here is no part of the project
    arguments = ["--ckpt_path", str(checkpoint(tmp_path, 4)), "--weights", "raw"]
    with pytest.raises(RuntimeError, match="missing_keys"):
        main(["export", "--config", str(config), *arguments, "--output", str(tmp_path / "bad")])
    assert not (tmp_path / "bad").exists()


def old_numbers(model: Any, removed: list[int]) -> None:
    for number, layer in zip(remove_layers(model, removed), find_parts(model).layers, strict=True):
        layer.self_attn.layer_idx = number


def old_layer_types(model: Any, removed: list[int]) -> None:
    config = model.config.get_text_config()
    before = list(config.layer_types)
    remove_layers(model, removed)
    config.layer_types = before


@pytest.mark.usefixtures("reload_here")
@pytest.mark.parametrize(
    ("remove", "error", "message"),
    [
        (old_numbers, RuntimeError, r"cannot go on with a cache.*layer_idx"),
        (old_layer_types, Exception, r"num_hidden_layers.*layer.types"),
    ],
)
def test_layers_that_are_removed_in_part_only_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remove: Any, error: type[Exception], message: str
) -> None:
    monkeypatch.setattr(export, "remove_layers", remove)
    model, processor = tiny_lvlm("fast_vlm"), tiny_processor("fast_vlm")
    with pytest.raises(error, match=message):
        whole = export.finished(model, removed=[2, 3], dtype=torch.float32)
        whole.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        export.verify_lvlm(whole, processor, tmp_path)


@pytest.mark.usefixtures("reload_here")
@pytest.mark.parametrize(("prune", "name"), [(None, "tuned"), pytest.param(SCORE, "pruned", marks=pytest.mark.slow)])
def test_a_run_that_ends_exports_to_a_folder_of_that_name(tmp_path: Path, prune: Any, name: str) -> None:
    config = with_callback(tuning_config(tmp_path, prune=prune), {"class_path": "callbacks.ExportAtEnd"})
    if prune is not None:
        with_callback(config, pruning(1))
    main(["fit", "--config", str(config), "--trainer.max_steps=2"])
    assert [path.parent.name for path in (tmp_path / "run").glob("*/config.json")] == [name]


@pytest.mark.slow
@pytest.mark.usefixtures("reload_here")
def test_weights_in_low_precision_are_written_in_it(tmp_path: Path) -> None:
    config = tuning_config(tmp_path, loading={"dtype": "bfloat16"})
    main(["fit", "--config", str(config), "--trainer.max_steps=1", "--trainer.precision=bf16-mixed"])
    arguments = ["--ckpt_path", str(checkpoint(tmp_path, 1)), "--weights", "raw"]
    main(["export", "--config", str(config), *arguments, "--output", str(tmp_path / "half")])
    assert load_lvlm(str(tmp_path / "half"), dtype="bfloat16").dtype == torch.bfloat16
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
