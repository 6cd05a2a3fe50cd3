"""What is kept of another model's scores is told of the same items only."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from sparsight.command.cli import main
from sparsight.evaluation.questions.task_scores import TaskScores
from tests.tiny_tuning import tuning_config


@pytest.mark.slow
def test_a_reference_of_other_items_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = str(tuning_config(tmp_path))
    main(["validate", "--config", config])
    written = tmp_path / "run" / "scores_val.json"
    full, few = TaskScores.load(written), TaskScores()
    few.add(list(full.items.values())[:4])
    few.save(tmp_path / "few.json")
    wrong = TaskScores()
    wrong.add(replace(item, likeliest=1 - item.answer) for item in full.items.values())
    wrong.save(tmp_path / "wrong.json")
    written.unlink()

    given = f"--model.evaluation.reference={tmp_path / 'few.json'}"
    with pytest.raises(SystemExit, match="has answered 4 items, not the same 11 as the validation data hold"):
        main(["fit", "--config", config, given])
    assert not list((tmp_path / "run").rglob("*.ckpt"))  # before the first step
    with pytest.raises(SystemExit, match="has answered 4 items, not the same 11 as this model: 7 differ"):
        main(["validate", "--config", config, given])
    assert len(TaskScores.load(written).items) == 11  # what was answered is not lost
    main(["fit", "--config", config, given, "--trainer.fast_dev_run=1"])  # a try with one batch of them

    given = f"--model.evaluation.reference={tmp_path / 'wrong.json'}"
    short = ["--trainer.max_steps=1", "--trainer.val_check_interval=1", "--trainer.num_sanity_val_steps=1"]
    with caplog.at_level("INFO"):
        cli = main(["fit", "--config", config, given, *short])
    assert caplog.text.count("kept of the scores") == 1  # not of the few items that are looked at before training
    assert (
        re.search("; 0 there, so without a share: .*likelihood/naming", caplog.text)
        and "val/kept/likelihood/naming" not in cli.trainer.callback_metrics
    )


def test_a_reference_that_is_none_is_told_by_its_key(tmp_path: Path) -> None:
    config = str(tuning_config(tmp_path))
    (tmp_path / "layers.json").write_text('{"scores": {}}')
    for name, said in (
        ("layers", "holds no scores of `sparsight validate` or `test`"),
        ("none", "there are no scores"),
    ):
        with pytest.raises(SystemExit, match=f"^sparsight: model.evaluation.reference: .*{said}"):
            main(["fit", "--config", config, f"--model.evaluation.reference={tmp_path / name}.json"])
