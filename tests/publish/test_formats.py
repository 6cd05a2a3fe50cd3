"""What versions with format 1 wrote is read by this one; what a later version wrote is refused with what to do."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsight.common.formats import check_format
from sparsight.diffusion.export.delta import mount
from sparsight.diffusion.model.load import load_pipeline
from sparsight.diffusion.surgery.record import apply_record
from sparsight.lvlm.model.provenance import first_depth, layers_of_first, read_provenance
from tests import tiny

FIXTURES = Path(__file__).parents[1] / "fixtures" / "format_1"  # a run of 2 DeltaConvBlocks, written by version 0.1.0


def test_a_student_and_a_delta_of_format_1_are_still_read() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it carries the code of its time
        student: Any = load_pipeline(str(FIXTURES / "student"))
    mounted: Any = mount(load_pipeline(str(FIXTURES / "teacher")), FIXTURES / "delta")
    mine, theirs = student.transformer.state_dict(), mounted.transformer.state_dict()
    assert mine.keys() == theirs.keys() and any(".mixer." in name for name in mine)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    inputs = {
        "hidden_states": torch.ones(1, 1, 8, 8),
        "timestep": torch.tensor([5]),
        "class_labels": torch.tensor([1]),
    }
    with torch.no_grad():
        answer = student.transformer(**inputs, return_dict=False)[0]
        torch.testing.assert_close(answer, mounted.transformer(**inputs, return_dict=False)[0])
        assert answer.isfinite().all()


@pytest.mark.parametrize("place", ["plan", "record", "student"])
def test_a_later_format_is_refused_with_the_remedy(tmp_path: Path, place: str) -> None:
    folder = shutil.copytree(FIXTURES, tmp_path / "copy")
    path = folder / ("student/transformer/config.json" if place == "student" else "delta/plan.json")
    content = json.loads(path.read_text())
    {"plan": content, "record": content.get("record"), "student": content.get("student")}[place]["format"] = 2
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"format 2, and this version of Sparsight reads up to 1.*later version"):
        if place == "student":
            load_pipeline(str(folder / "student"))
        else:
            mount(load_pipeline(str(folder / "teacher")), folder / "delta")


def test_the_record_of_an_image_text_model_of_format_1_is_still_read(tmp_path: Path) -> None:
    record: Any = read_provenance(FIXTURES / "image_text")
    assert layers_of_first(record, 5) == [0, 1, 3, 4, 5] and first_depth(record, 5) == 6
    assert record["tuned_layers_now"] == [0, 1, 3]
    later = {"format": 2} | {key: value for key, value in record.items() if key != "version"}
    (tmp_path / "sparsight.json").write_text(json.dumps(later))
    with pytest.raises(ValueError, match="has format 2"):
        read_provenance(tmp_path)
    (tmp_path / "sparsight.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(ValueError, match=r"sparsight\.json is damaged: it has no base_hash"):
        read_provenance(tmp_path)


@pytest.mark.parametrize("content", [{}, {"format": None}, {"format": "1"}, {"format": 0}, {"format": True}, [], None])
def test_what_has_no_format_is_called_damaged(content: Any) -> None:
    with pytest.raises(ValueError, match=r"plan\.json is damaged"):
        check_format(content, 1, "plan.json")


@pytest.mark.parametrize(
    "record",
    [
        {"format": 1},
        {"format": 1, "sites": []},
        {"format": 1, "sites": {}},
        {"format": 1, "sites": {"transformer_blocks.0.attn1": {}}},
        {"format": 1, "sites": {"transformer_blocks.0.attn1": None}},
        {"format": 1, "sites": {"transformer_blocks.0.attn1": {"class_path": 3, "options": {}, "site": {"grid": 4}}}},
    ],
)
def test_a_damaged_record_is_named_and_nothing_is_changed(record: dict[str, Any]) -> None:
    denoiser = tiny.dit()
    keys = list(denoiser.state_dict())
    with pytest.raises(ValueError, match="damaged"):
        apply_record(denoiser, record)
    assert list(denoiser.state_dict()) == keys


def test_recorded_options_that_do_not_fit_the_mixer_are_named(tmp_path: Path) -> None:
    record = json.loads((FIXTURES / "delta" / "plan.json").read_text())["record"]
    record["sites"]["transformer_blocks.0.attn1"]["options"]["colour"] = "blue"
    with pytest.raises(ValueError, match=r"DeltaConvBlock cannot be made .*colour"):
        apply_record(tiny.dit(), record)
