"""What is certain to fail at the end of a run fails before its first step, with what would fail."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsight.common.errors import ConfigurationError
from sparsight.lvlm.export import adapters
from sparsight.lvlm.export.rehearsal import check_removal, rehearse_export, skeleton
from sparsight.lvlm.model.tower import find_parts
from sparsight.publish.export import check_destination
from tests.tiny_lvlm import tiny_lvlm
from tests.tiny_processors import family_processor
from tests.tiny_tokens import VOCABULARY
from tests.tiny_tuning import adapted_module


def about_to_train(family: str) -> tuple[SimpleNamespace, Any]:
    processor = family_processor(family)
    model = tiny_lvlm(family, vocab_size=max(VOCABULARY, len(processor.tokenizer)))
    module = adapted_module(model, find_parts(model))
    return SimpleNamespace(**vars(module), prune=None, device="cpu"), processor


@pytest.mark.parametrize("family", ["llava_next", "qwen3_vl_moe", "qwen3_5"])
def test_a_run_that_can_be_exported_is_left_as_it_is(family: str) -> None:
    module, processor = about_to_train(family)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    rehearse_export(module, processor)
    after = module.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_adapters_that_peft_would_refuse_are_found_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of modules as a whole, as it was once named to peft."""
    module, processor = about_to_train("qwen3_vl")
    monkeypatch.setattr(adapters, "_single_modules", lambda parts: list(parts))
    with pytest.raises(ConfigurationError, match=r"fail to keep the adapters for peft: TypeError: modules_to_save"):
        rehearse_export(module, processor)


def test_what_transformers_does_not_save_or_load_is_found_before_training() -> None:
    module, processor = about_to_train("llava")
    module.model.generation_config.temperature = -1.0
    module.model.generation_config.do_sample = False
    with pytest.raises(ConfigurationError, match="fail to save the generation settings"):
        rehearse_export(module, processor)
    module, processor = about_to_train("llava")
    module.model.config.text_config.intermediate_size += 8  # no longer what the weights are
    with pytest.raises(ConfigurationError, match=r"build the model from its configuration again: .*parameters differ"):
        rehearse_export(module, processor)


def test_a_removal_that_another_model_would_be_loaded_after_is_found() -> None:
    check_removal(skeleton(tiny_lvlm("gemma3")), 2)
    with pytest.raises(ValueError, match="deepstack"):
        check_removal(skeleton(tiny_lvlm("qwen3_vl")), 1)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be made: Not a directory"):
        check_destination(tmp_path / "file" / "export", overwrite=False)
    assert check_destination(tmp_path / "new" / "export", overwrite=False) == tmp_path / "new" / "export"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
