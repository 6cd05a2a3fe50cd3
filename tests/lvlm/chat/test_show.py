"""The ``inspect`` verb: records of a split, as the model will see them, without the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsight.command.cli import main
from tests.tiny_distillation import distillation_config
from tests.tiny_tuning import tuning_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("show")


@pytest.fixture(scope="module")
def config(folder: Path) -> str:
    return str(tuning_config(folder))


def test_records_are_shown_with_their_loss_and_no_model_is_loaded(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_modules.lvlm.load_lvlm", lambda *_, **__: pytest.fail("the model was loaded"))
    main(["inspect", "--config", config, "--index", "4", "--count", "2"])
    said = capsys.readouterr().out
    assert said.count("train record") == 2
    assert "train record 4" in said and "train record 5" in said
    assert "<image>(x16)" in said and "</s>]]" in said


def test_items_are_shown_with_their_candidates(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", "--config", config, "--split", "val", "--index", "0"])
    said = capsys.readouterr().out
    assert "val record 0" in said and "  * " in said and "[[" not in said


def test_what_cannot_be_used_says_why_among_what_can(
    config: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["inspect", "--config", config, "--index", "23", "--count", "2"])
    said = capsys.readouterr().out
    assert "train record 23, " in said and "train record 24 cannot be used: index is 24; allowed: 0 to 23" in said
    with pytest.raises(SystemExit, match=r"^sparsight: .*train record 0 cannot be used: .*beyond max_length=8$"):
        main(["inspect", "--config", config, "--data.batching.max_length", "8"])
    with pytest.raises(SystemExit, match=r"^sparsight: .*train record 1 cannot be used"):
        main(["inspect", "--config", config, "--data.batching.max_length", "8", "--count", "2"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "test"], "no records to test on; set `test`"),
        (["--count", "0"], "count is 0"),
        (["--data.chat.template", "{{ 'nothing' }}"], "chat template"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_cannot_be_shown_is_one_line(config: str, options: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message) as stop:
        main(["inspect", "--config", config, *options])
    assert len(str(stop.value).splitlines()) == 1


def test_other_datamodules_are_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="ImageDataModule does not describe records: use "):
        main(["inspect", "--config", str(distillation_config(tmp_path))])
