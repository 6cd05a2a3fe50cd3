"""Old names that users may have written down lead to the new ones."""

from __future__ import annotations

from importlib import import_module

import pytest

from sparsight.common.checkpoint.run_record import check_options
from sparsight.common.moved import MODULES, current_class_path


@pytest.mark.parametrize("old", MODULES)
def test_every_old_name_leads_to_modules_that_are_there(old: str) -> None:
    for new in MODULES[old]:
        import_module(new)


@pytest.mark.parametrize(
    ("old", "name", "new"),
    [
        ("sparsight.metrics", "FrechetDistance", "sparsight.evaluation.images.frechet"),
        ("sparsight.metrics", "BLEU", "sparsight.evaluation.texts.bleu"),
        ("sparsight.cli", "SparsightCLI", "sparsight.command.cli"),
        ("sparsight.diffusion.model", "load_pipeline", "sparsight.diffusion.model.load"),
        ("sparsight.lvlm.selection", "Uniform", "sparsight.lvlm.surgery.selection"),
    ],
)
def test_imports_of_old_names_warn_and_give_what_is_there(old: str, name: str, new: str) -> None:
    with pytest.warns(FutureWarning, match=rf"{old}\.{name} is .*{name} now"):
        found = getattr(import_module(old), name)
    assert found.__module__ == new


def test_what_never_was_is_not_there() -> None:
    with pytest.raises(AttributeError, match=r"sparsight\.metrics.*NoSuchMetric"):
        _ = import_module("sparsight.metrics").NoSuchMetric
    with pytest.raises(ModuleNotFoundError):
        import_module("sparsight.lvlm.nothing")


def test_class_paths_of_checkpoints_are_compared_as_they_are_called_now() -> None:
    assert current_class_path("sparsight.lvlm.selection.Uniform") == "sparsight.lvlm.surgery.selection.Uniform"
    assert current_class_path("torch.optim.AdamW") == "torch.optim.AdamW"
    old = {"layers": {"class_path": "sparsight.lvlm.selection.Uniform", "init_args": {"k": 2}}}
    now = {"layers": {"class_path": "sparsight.lvlm.surgery.selection.Uniform", "init_args": {"k": 2}}}
    check_options(old, now, class_path="X", source="a.ckpt")
