"""What the documentation shows must run."""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from blocks import Merge
from sparsight.diffusion.export.standalone import standalone
from sparsight.diffusion.surgery.replace import finalize, replace, set_mode
from sparsight.diffusion.surgery.shell import Mode
from sparsight.lvlm.scores import score_layers
from tests import tiny
from tests.tiny import run
from tests.tiny_batches import batch_of, one_by_one
from tests.tiny_lvlm import tiny_lvlm
from tests.tiny_pages import DOCS, code_blocks


def test_configs_that_pages_name_exist() -> None:
    for page in (DOCS.parent / "README.md", *DOCS.glob("*.md")):
        for folder, name in re.findall(r"(experiment|reform_eval)/(\w+)(?![\w*/-]|\.\w)", page.read_text()):
            assert (DOCS.parent / "configs" / folder / f"{name}.yaml").is_file(), (page.name, name)


def test_rules_and_scores_of_layers_that_the_page_lists_are_those_that_there_are() -> None:
    from sparsight.lvlm import scores
    from sparsight.lvlm.surgery import selection

    page = (DOCS / "lvlm.md").read_text()
    listed = set(re.findall(r"^\| `([A-Z]\w+)`|, `([A-Z]\w+)`(?= \|)", page, flags=re.MULTILINE))
    rules = {name for name, rule in vars(selection).items() if _is_concrete(rule, selection.LayerSelection)}
    measures = {name for name, score in vars(scores).items() if _is_concrete(score, scores.LayerScore)}
    assert {name for pair in listed for name in pair if name} == rules | measures


def test_methods_that_the_page_lists_are_those_that_there_are() -> None:
    import blocks
    from blocks.tokens import Edit

    table = [line for line in (DOCS / "methods.md").read_text().splitlines() if line.startswith("| ")]
    listed = {name for line in table for name in re.findall(r"`(\w+)`", line)}
    assert listed == {name for name, method in vars(blocks).items() if _is_concrete(method, Edit)}


def test_mixers_that_the_page_lists_are_those_that_there_are() -> None:
    import blocks

    listed = re.findall(r"^\| `([A-Z]\w+)` \|", (DOCS / "mixers.md").read_text(), flags=re.MULTILINE)
    mixers = {n: mixer for n, mixer in vars(blocks).items() if _is_concrete(mixer, blocks.TokenMixer)}
    assert sorted(listed) == sorted(mixers)


def test_backends_that_the_page_lists_are_those_that_mixers_declare() -> None:
    import blocks

    listed = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", (DOCS / "mixers.md").read_text(), flags=re.MULTILINE)
    mixers = [mixer for mixer in vars(blocks).values() if _is_concrete(mixer, blocks.TokenMixer)]
    assert sorted(listed) == sorted((b, mixer.__name__) for mixer in mixers for b in mixer.backends if b != "torch")


def _is_concrete(thing: object, base: type) -> bool:
    return isinstance(thing, type) and issubclass(thing, base) and not getattr(thing, "__abstractmethods__", None)


def test_the_block_of_the_tutorial_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for code in code_blocks("your_own_block.md", "python"):
        name = re.match(r"# (\w+\.py)\n", code)
        assert name
        (tmp_path / name[1]).write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    import ripple  # type: ignore[import-not-found]
    import rows_nearby  # type: ignore[import-not-found]
    import test_ripple  # type: ignore[import-not-found]

    try:
        test_ripple.test_ripple_keeps_its_promises()
        test_ripple.test_rows_keep_their_promises()
        for mixer in (ripple.Ripple, rows_nearby.RowsNearby, partial(Merge, parts=[rows_nearby.RowsNearby])):
            denoiser = tiny.unet().eval()
            set_mode(replace(denoiser, mixer).values(), Mode.STUDENT)
            assert run(denoiser, (12, 8)).isfinite().all()
            finalize(denoiser)
            standalone(denoiser, tmp_path / "out")
    finally:
        for name in ("ripple", "rows_nearby", "test_ripple"):
            sys.modules.pop(name)


def test_the_score_of_the_page_measures_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = next(code for code in code_blocks("lvlm.md", "python") if code.startswith("# my_scores.py"))
    (tmp_path / "my_scores.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    import my_scores  # type: ignore[import-not-found]

    try:
        model = tiny_lvlm("llava")
        batch = batch_of("llava", model)
        growth = score_layers(model, [batch], [my_scores.Growth()]).values["growth"]
        single = one_by_one(batch)
        with torch.no_grad():
            states = [
                model(**each["inputs"], output_hidden_states=True, use_cache=False).hidden_states for each in single
            ]
        expected = [(of[1][0].norm(dim=-1) / of[0][0].norm(dim=-1)).mean() for of in states]
        assert growth[0] == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)
    finally:
        sys.modules.pop("my_scores")


def test_docstrings_say_what_their_own_function_does() -> None:
    packages = ("blocks", "callbacks", "datamodules", "lightning_modules", "sparsight", "benchmarks")
    files = [file for package in packages for file in (DOCS.parent / package).rglob("*.py")]
    assert len(files) > 200
    assert not [str(file) for file in files if '"""The same' in file.read_text()]
