"""Plans of several mixers: which entry counts, what is refused, and the form in which they are written."""

from __future__ import annotations

import itertools
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from blocks import (
    DeltaConvBlock,
    HeadSplit,
    LinearAttention,
    Merge,
    NeighborhoodAttention,
    PooledAttention,
    SoftmaxAttention,
    TileAttention,
)
from callbacks import TrainableEMA
from datamodules import ImageDataModule
from lightning_modules import AttentionDistillation
from sparsight.command.cli import main
from sparsight.command.parser import Parser
from sparsight.command.trainer import SparsightTrainer
from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.export.delta import mount
from sparsight.diffusion.measure.report import replacement_report
from sparsight.diffusion.model.load import load_pipeline
from sparsight.diffusion.surgery.plan import PlanEntry, assign, check_entry
from sparsight.diffusion.surgery.record import apply_record, plan_config, plan_in, record_of
from sparsight.diffusion.surgery.replace import replace
from sparsight.diffusion.surgery.sites import SiteSelection, find_sites
from sparsight.diffusion.train.stages import Stage
from tests import tiny
from tests.tiny_distillation import distillation_config
from tests.tiny_files import save_images
from tests.tiny_rows import few

DELTA = partial(DeltaConvBlock, kernel_size=3)
NEAR = partial(NeighborhoodAttention, kernel_size=3)
STAGES = [Stage("layerwise", 2, warmup_steps=1), Stage("end_to_end", 2, warmup_steps=1)]
BLOCKS = [f"transformer_blocks.{number}.attn1" for number in range(4)]


def plan_of(paths: list[str]) -> list[PlanEntry]:
    """Three mixers, each at one site, attention kept at another, and the first mixer at all others."""
    return [
        PlanEntry(paths[0], NEAR),
        PlanEntry([paths[1]], LinearAttention),
        PlanEntry(SiteSelection(include=[paths[2]]), None),
        PlanEntry("*", DELTA),
    ]


TILES = [partial(TileAttention, tile=2), partial(PooledAttention, tile=2, without_own=True)]


def plan_of_parts(paths: list[str]) -> list[PlanEntry]:
    """Tiles merged with pooled others, that beside plain attention by heads, and attention kept at another site."""
    merged = partial(Merge, parts=TILES, learned_balance=True)
    return [
        PlanEntry(paths[0], merged),
        PlanEntry(paths[1], partial(HeadSplit, parts=[merged, SoftmaxAttention])),
        PlanEntry(paths[2], None),
        PlanEntry("*", DELTA),
    ]


def kinds(denoiser: torch.nn.Module) -> dict[str, str]:
    return {path: entry["class_path"].rpartition(".")[2] for path, entry in record_of(denoiser)["sites"].items()}


def test_the_first_entry_that_matches_counts_and_other_sites_keep_attention() -> None:
    denoiser = tiny.dit(num_layers=5)
    plan = [PlanEntry(BLOCKS[0], NEAR), PlanEntry(BLOCKS[1:2], None), PlanEntry("*.[0123].*", DELTA)]
    shells = replace(denoiser, plan)
    assert kinds(denoiser) == {
        BLOCKS[0]: "NeighborhoodAttention",
        BLOCKS[2]: "DeltaConvBlock",
        BLOCKS[3]: "DeltaConvBlock",
    }
    assert list(shells) == [BLOCKS[0], BLOCKS[2], BLOCKS[3]], "in the order of the denoiser"
    report = replacement_report(denoiser)
    assert report.kept == 2 and [site.mixer for site in report.sites] == list(kinds(denoiser).values())


def test_a_predicate_and_tokens_choose_too() -> None:
    sites = find_sites(tiny.unet())
    widest = max(site.channels for site in sites)
    wide = SiteSelection(predicate=lambda site: site.channels == widest)
    chosen = assign([PlanEntry(wide, NEAR), PlanEntry(SiteSelection(min_tokens=1), DELTA)], sites)
    assert [site.path for site, _ in chosen] == [site.path for site in sites]
    assert all((factory is NEAR) == (site.channels == widest) for site, factory in chosen)
    assert {factory is NEAR for _, factory in chosen} == {True, False}


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([], "plan replaces nothing, as it has no entries"),
        ([PlanEntry("*", None)], "plan replaces nothing, as all of its 1 entries keep attention"),
        (
            [PlanEntry("*", DELTA), PlanEntry("up*", NEAR)],
            r"plan\.1\.sites: no self-attention matches 'up\*'; there are: transformer_blocks\.0\.attn1, ",
        ),
        ([PlanEntry("*", DELTA), PlanEntry([], NEAR)], r"plan\.1\.sites: .* leaves no self-attention"),
        (
            [PlanEntry("*.0.*", DELTA), PlanEntry(SiteSelection(min_tokens=17), NEAR)],
            r"plan\.1\.sites: .*min_tokens=17.* leaves no self-attention",
        ),
        (
            [PlanEntry("*.1.*", DELTA), PlanEntry("*.0.*", None), PlanEntry("*", NEAR)],
            r"plan\.2 is never reached: plan\.0, plan\.1, .* all that it matches \(transformer_blocks\.0\.attn1, ",
        ),
        ([PlanEntry("*", None), PlanEntry("*.0.*", NEAR)], r"plan\.1 is never reached: plan\.0, "),
    ],
)
def test_entries_without_effect_are_refused_by_name(plan: list[PlanEntry], message: str) -> None:
    denoiser = tiny.dit()
    before = [type(module) for module in denoiser.modules()]
    with pytest.raises(ConfigurationError, match=message):
        replace(denoiser, plan)
    assert [type(module) for module in denoiser.modules()] == before


def test_plan_and_mixer_together_or_neither_are_refused(tmp_path: Path) -> None:
    plan = [PlanEntry("*", DELTA)]
    with pytest.raises(ConfigurationError, match="plan and mixer are both given"):
        AttentionDistillation("nowhere", DELTA, STAGES, plan=plan)
    with pytest.raises(ConfigurationError, match="plan and sites are both given"):
        AttentionDistillation("nowhere", stages=STAGES, plan=plan, sites=SiteSelection())
    with pytest.raises(ConfigurationError, match="plan and sites are both given"):
        replace(tiny.dit(), plan, SiteSelection())
    with pytest.raises(ConfigurationError, match="mixer is missing"):
        AttentionDistillation("nowhere", stages=STAGES)


def test_one_mixer_with_sites_is_a_plan_of_one_entry() -> None:
    old, new = tiny.dit(num_layers=4), tiny.dit(num_layers=4)
    sites = SiteSelection(exclude=[BLOCKS[1]])
    replace(old, DELTA, sites)
    replace(new, [PlanEntry(sites, DELTA)])
    assert record_of(old) == record_of(new)
    mixer = {
        "class_path": "blocks.delta_conv.DeltaConvBlock",
        "init_args": record_of(old)["sites"][BLOCKS[0]]["options"],
    }
    assert plan_in(record_of(old)) == [{"sites": [BLOCKS[0], BLOCKS[2], BLOCKS[3]], "mixer": mixer}]


def data_of(family: str, folder: Path) -> ImageDataModule:
    if family == "dit":
        return tiny.image_data(folder)
    from datamodules import FolderRecords

    if not (folder / "images").exists():
        save_images(folder / "images")
    records = FolderRecords(str(folder / "images"), caption_column="text")
    return ImageDataModule(train=records, val=records, image_size=16, batch_size=2)


PLANS = {
    "three": (plan_of, ["DeltaConvBlock", "LinearAttention", "NeighborhoodAttention"]),
    "parts": (plan_of_parts, ["DeltaConvBlock", "HeadSplit", "Merge"]),
}


@pytest.mark.parametrize(("name", "family"), few(itertools.product(PLANS, ["dit", "unet"]), ("three", "dit")))
def test_three_mixers_train_resume_export_reload_and_mount(
    name: str, family: str, tmp_path: Path, reload_here: Any
) -> None:
    plan, expected = PLANS[name]
    save = {"dit": partial(tiny.save_pixel_pipeline, num_layers=4), "unet": tiny.save_pixel_unet_pipeline}[family]
    teacher = str(save(tmp_path / "teacher"))
    paths = [site.path for site in find_sites(load_pipeline(teacher).components[part(family)])]

    def run(steps: int, checkpoint: str | None = None) -> tuple[AttentionDistillation, SparsightTrainer]:
        torch.manual_seed(0)
        module = AttentionDistillation(
            teacher, stages=STAGES, plan=plan(paths), trained={"init_samples": 4}, site_weights={paths[0]: 2.0}
        )
        saver = ModelCheckpoint(tmp_path / f"at_{steps}", save_top_k=-1, every_n_train_steps=1, filename="{step}")
        quiet = dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary"], False)
        trainer = SparsightTrainer(
            default_root_dir=tmp_path,
            accelerator="cpu",
            max_steps=steps,
            max_epochs=-1,
            limit_val_batches=1,
            callbacks=[TrainableEMA(0.5), saver],
            **quiet,
        )
        trainer.fit(module, data_of(family, tmp_path), ckpt_path=checkpoint)
        return module, trainer

    whole, trainer = run(4)
    begun, _ = run(3)
    resumed, _ = run(4, str(tmp_path / "at_3" / "step=3.ckpt"))
    assert sorted(set(kinds(whole.denoiser).values())) == expected
    assert paths[2] not in kinds(whole.denoiser) and len(kinds(whole.denoiser)) == len(paths) - 1
    mine, other = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(value, other[key]) for key, value in mine.items())
    balances = [value for key, value in mine.items() if key.endswith("balance")]
    assert len(balances) == (2 if name == "parts" else 0) and all(value.any() for value in balances)
    assert any(not torch.equal(value, begun.state_dict()[key]) for key, value in mine.items())

    trainer.export(whole, output=str(tmp_path / "student"))
    written = yaml.safe_load((tmp_path / "student" / "plan.yaml").read_text())["model"]["init_args"]
    assert written["plan"] == plan_in(record_of(whole.denoiser))
    read: Any = load_pipeline(str(tmp_path / "student")).components[part(family)]
    mounted: Any = mount(load_pipeline(teacher), tmp_path / "student" / "delta").components[part(family)]
    assert kinds(read) == kinds(mounted) == kinds(whole.denoiser)
    size = (8, 8) if family == "dit" else (16, 16)
    with torch.no_grad():
        torch.testing.assert_close(tiny.run(read, size), tiny.run(mounted, size))


OTHERS: dict[str, tuple[list[PlanEntry], str]] = {
    "option": (
        [PlanEntry(BLOCKS[0], NEAR), PlanEntry("*", partial(DeltaConvBlock, kernel_size=5))],
        rf"{BLOCKS[1]} has DeltaConvBlock\(.*kernel_size=3.*\) in the checkpoint, DeltaConvBlock\(.*kernel_size=5",
    ),
    "mixer": ([PlanEntry("*", DELTA)], rf"{BLOCKS[0]} has NeighborhoodAttention\(.* in the checkpoint, DeltaConvBlock"),
    "kept": ([PlanEntry(BLOCKS[0], NEAR)], rf"{BLOCKS[1]} has DeltaConvBlock\(.* in the checkpoint, its attention now"),
    "order": ([PlanEntry("*", DELTA), PlanEntry(BLOCKS[0], NEAR)], "plan.1 is never reached"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_resuming_with_another_plan_is_refused_with_the_difference(kind: str, tmp_path: Path) -> None:
    teacher = str(tiny.save_pixel_pipeline(tmp_path / "teacher"))
    saved: dict[str, Any] = {}
    AttentionDistillation(
        teacher, stages=STAGES, plan=[PlanEntry(BLOCKS[0], NEAR), PlanEntry("*", DELTA)]
    ).on_save_checkpoint(saved)
    plan, told = OTHERS[kind]
    with pytest.raises(ValueError, match=told):
        AttentionDistillation(teacher, stages=STAGES, plan=plan).on_load_checkpoint(saved)


def test_weights_on_sites_without_parameters_alone_are_refused(tmp_path: Path) -> None:
    teacher = str(tiny.save_pixel_pipeline(tmp_path / "teacher"))
    plan = [PlanEntry(BLOCKS[0], NEAR), PlanEntry("*", DELTA)]
    with pytest.raises(ConfigurationError, match=rf"site_weights is 0 for all .* to train \({re.escape(BLOCKS[1])}\)"):
        AttentionDistillation(teacher, stages=STAGES, plan=plan, site_weights={BLOCKS[1]: 0.0})
    AttentionDistillation(teacher, stages=STAGES[1:], plan=plan, site_weights={BLOCKS[1]: 0.0})
    module = AttentionDistillation(teacher, stages=STAGES, plan=plan, site_weights={BLOCKS[0]: 0.0})
    assert module.site_weights == {BLOCKS[0]: 0.0, BLOCKS[1]: 1.0}


@pytest.mark.parametrize("form", ["config", "list"])
def test_a_written_plan_is_taken_by_fit(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    denoiser = tiny.dit()
    replace(denoiser, [PlanEntry(BLOCKS[0], NEAR), PlanEntry("*", DELTA)])
    config, plan = distillation_config(tmp_path), tmp_path / "plan.yaml"
    record = record_of(denoiser)
    if form == "config":
        plan.write_text(plan_config(record))
        arguments = ["--config", str(plan)]
    else:
        plan.write_text(yaml.safe_dump(plan_in(record)))
        arguments = ["--model.plan", str(plan), "--model.mixer", "null"]
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(config), *arguments, "--print_config"])
    parsed = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["plan"]
    assert [entry["sites"] for entry in parsed] == [[BLOCKS[0]], [BLOCKS[1]]]
    for entry, wanted in zip(parsed, plan_in(record), strict=True):
        assert entry["mixer"]["init_args"].items() >= wanted["mixer"]["init_args"].items()
        assert entry["mixer"]["class_path"].rpartition(".")[2] == wanted["mixer"]["class_path"].rpartition(".")[2]


def test_a_plan_that_is_a_config_is_told_to_be_given_as_one(tmp_path: Path) -> None:
    denoiser = tiny.dit()
    replace(denoiser, [PlanEntry("*", DELTA)])
    plan = tmp_path / "plan.yaml"
    plan.write_text(plan_config(record_of(denoiser)))
    with pytest.raises(SystemExit, match=rf"--model\.plan: {plan} is a config .*: give it as --config {plan}"):
        main(["fit", "--config", str(distillation_config(tmp_path)), "--model.plan", str(plan)])
    figures = tmp_path / "plan.json"
    figures.write_text("{}")
    for option in ("--model.plan", "--config"):
        with pytest.raises(SystemExit, match=rf"{option}: {figures} holds the figures .* beside it, --config {plan}$"):
            main(["fit", "--config", str(distillation_config(tmp_path)), option, str(figures)])


MIXER = {"class_path": "DeltaConvBlock", "init_args": {"kernel_size": 3}}
WRONG: dict[str, tuple[Any, str]] = {
    "class": (
        {"sites": "*", "mixer": {"class_path": "DeltaConvBlok"}},
        r"1\.mixer: there is no class .*DeltaConvBlock\?",
    ),
    "option": (
        {"sites": "*", "mixer": MIXER | {"init_args": {"kernl_size": 3}}},
        r"1\.mixer\.kernl_size: DeltaConvBlock has no such option; did you mean kernel_size\?",
    ),
    "value": (
        {"sites": "*", "mixer": MIXER | {"init_args": {"kernel_size": "x"}}},
        r"1\.mixer\.kernel_size: expected .*, got 'x'",
    ),
    "selection": (
        {"sites": {"includ": ["*"]}, "mixer": MIXER},
        r"1\.sites\.includ: SiteSelection has no such option; did you mean include",
    ),
}


@pytest.mark.parametrize("form", ["config", "option"])
@pytest.mark.parametrize("kind", WRONG)
def test_mistakes_in_an_entry_are_told_with_its_position(
    kind: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry, message = WRONG[kind]
    plan = [{"sites": BLOCKS[0], "mixer": MIXER}, entry]
    config = distillation_config(tmp_path, mixer=None, **({"plan": plan} if form == "config" else {}))
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(config), *([] if form == "config" else ["--model.plan", json.dumps(plan)])])
    assert re.match(rf"sparsight fit: model\.plan\.{message}", capsys.readouterr().err)


HALF: dict[str, tuple[Any, str]] = {
    "no mixer": ({"sites": "*"}, r"\.mixer is missing.* `mixer: null` to keep attention"),
    "no sites": ({"mixer": None}, r"\.sites is missing.* a pattern"),
    "nothing": ({}, r"\.sites is missing"),
    "other key": ({"sites": "*", "mixer": MIXER, "weight": 2}, r"\.weight.*: an entry has sites and mixer"),
    "misspelt mixer": ({"sites": "*", "mixr": MIXER}, r"\.mixr.*; did you mean mixer\?"),
    "misspelt sites": ({"site": "*", "mixer": MIXER}, r"\.site.*; did you mean sites\?"),
    "a text": ("DeltaConvBlock", r" is 'DeltaConvBlock'.*: an entry is a mapping"),
    "a list": (["*", MIXER], r" is \['\*', .*: an entry is a mapping"),
    "null": (None, r" is None.*: an entry is a mapping"),
    "empty mixer": ({"sites": "*", "mixer": {}}, r"\.mixer is \{\}.*: give a class by class_path"),
    "empty name": ({"sites": "*", "mixer": ""}, r"\.mixer is ''.*: give a class by class_path"),
    "no class": ({"sites": "*", "mixer": {"init_args": {}}}, r"\.mixer is \{'init_args'.*: give a class"),
    "several": ({"sites": "*", "mixer": [MIXER]}, r"\.mixer is \[.*: give a class by class_path"),
    "misspelt options": ({"sites": "*", "mixer": {"class_path": "NoMixing", "init_arg": {}}}, r"\.mixer\.init_arg.*"),
    "no such sites": ({"sites": 3, "mixer": MIXER}, r"\.sites is 3.*: give a pattern"),
    "null sites": ({"sites": None, "mixer": MIXER}, r"\.sites is None.*: give a pattern"),
    "empty sites": ({"sites": {}, "mixer": MIXER}, r"\.sites is \{\}.*: give a pattern"),
    "sites in sites": ({"sites": [["*"]], "mixer": MIXER}, r"\.sites is \[\['\*'\]\].*: give a pattern"),
}


@pytest.mark.parametrize("kind", HALF)
def test_an_entry_says_both_sites_and_mixer(kind: str) -> None:
    entry, message = HALF[kind]
    with pytest.raises(ConfigurationError, match=rf"^plan\.1{message}"):
        check_entry(entry, "plan.1")


@pytest.mark.parametrize("form", ["config", "later config", "option", "appended", "file", "model"])
def test_a_mixer_left_out_is_refused_wherever_a_plan_is_written(form: str, tmp_path: Path) -> None:
    whole, half = {"sites": BLOCKS[0], "mixer": MIXER}, {"sites": "*"}
    plan = [whole, half]
    model = {"class_path": "AttentionDistillation", "init_args": {"plan": plan}}
    file = tmp_path / "plan.yaml"
    config = distillation_config(tmp_path, mixer=None, plan=plan if form == "config" else [whole, whole])
    more: list[str] = {
        "config": [],
        "later config": ["--config", str(file)],
        "option": [f"--model.plan={json.dumps(plan)}"],
        "appended": ["--model.plan+", json.dumps(half)],
        "file": ["--model.plan", str(file)],
        "model": ["--model", json.dumps(model)],
    }[form]
    file.write_text(yaml.safe_dump({"model": model} if form == "later config" else plan))
    name = r"plan\+" if form == "appended" else r"plan\.1"
    with pytest.raises(SystemExit, match=rf"^sparsight: model\.{name}\.mixer is missing in .*`mixer: null`"):
        main(["fit", "--config", str(config), *more, "--print_config"])


def test_attention_is_kept_where_an_entry_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = [{"sites": BLOCKS[0], "mixer": None}, {"sites": "*", "mixer": "NoMixing"}]
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(distillation_config(tmp_path, mixer=None, plan=plan)), "--print_config"])
    parsed = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["plan"]
    assert parsed[0]["mixer"] is None and parsed[1]["mixer"]["class_path"].endswith("NoMixing")


def test_entries_made_in_python_are_checked_too() -> None:
    with pytest.raises(ConfigurationError, match=r"^plan\.1 is \{.*\}, not a PlanEntry"):
        replace(tiny.dit(), [PlanEntry("*", DELTA), {"sites": "*", "mixer": DELTA}])  # type: ignore[list-item]
    for sites, mixer in ((None, DELTA), ("*", "DeltaConvBlock"), ("*", {})):
        with pytest.raises(ConfigurationError, match="of a plan's entry"):
            PlanEntry(sites, mixer)  # type: ignore[arg-type]


@pytest.mark.parametrize("broken", [{"mixr": 1}, {"options": ...}, {"class_path": ...}, "NoMixing", None])
def test_a_damaged_entry_of_a_record_is_told_with_its_site(broken: Any) -> None:
    denoiser = tiny.dit()
    replace(denoiser, DELTA)
    record = record_of(denoiser)
    whole = record["sites"][BLOCKS[1]]
    entry = {k: v for k, v in (whole | broken).items() if v is not ...} if isinstance(broken, dict) else broken
    record["sites"][BLOCKS[1]] = entry
    with pytest.raises(ValueError, match=rf"damaged: its entry for {re.escape(BLOCKS[1])} has "):
        apply_record(tiny.dit(), record)


def test_what_mixers_refuse_is_told_with_the_position_of_their_entry(tmp_path: Path) -> None:
    even = MIXER | {"init_args": {"kernel_size": -3}}
    plan = [{"sites": BLOCKS[0], "mixer": MIXER}, {"sites": "*", "mixer": even}]
    with pytest.raises(SystemExit, match=r"^sparsight: model\.plan\.1\.mixer\.kernel_size .* got -3$"):
        main(["fit", "--config", str(distillation_config(tmp_path, mixer=None, plan=plan))])


def test_parts_nest_in_yaml_and_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tile = {"class_path": "TileAttention", "init_args": {"tile": 2}}
    merged = {"class_path": "Merge", "init_args": {"parts": [tile, "LinearAttention"]}}
    config = distillation_config(tmp_path, mixer=None, plan=[{"sites": "*", "mixer": merged}])
    with pytest.raises(SystemExit, match=r"^sparsight: model\.plan\.0\.mixer\.parts\.1 of Merge is LinearAttention, "):
        main(["fit", "--config", str(config)])
    merged["init_args"]["parts"] = [tile, {"class_path": "PooledAttention", "init_args": {"tille": 2}}]  # type: ignore[index]
    config = distillation_config(tmp_path, mixer=None, plan=[{"sites": "*", "mixer": merged}])
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(config)])
    assert "model.plan.0.mixer.parts.1.tille: PooledAttention has no such option" in capsys.readouterr().err


def test_a_written_plan_of_parts_makes_the_same_mixers() -> None:
    denoiser = tiny.dit()
    replace(denoiser, [PlanEntry("*", plan_of_parts(BLOCKS)[1].mixer)])
    parser = Parser()
    parser.add_argument("--plan", type=list[PlanEntry])
    again = tiny.dit()
    parsed = parser.parse_object({"plan": yaml.safe_load(yaml.safe_dump(plan_in(record_of(denoiser))))})
    replace(again, parser.instantiate(parsed).plan)
    assert record_of(again) == record_of(denoiser)


def test_a_part_is_imported_no_sooner_than_a_mixer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unseen_parts.py").write_text("raise RuntimeError('was run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    denoiser = tiny.dit()
    replace(denoiser, partial(Merge, parts=TILES))
    record = record_of(denoiser)
    record["sites"][BLOCKS[0]]["options"]["parts"][0]["class_path"] = "unseen_parts.Tiles"
    with pytest.raises(ValueError, match=r"unseen_parts\.Tiles is not part of Sparsight, .* its code was not run"):
        apply_record(tiny.dit(), record)


def part(family: str) -> str:
    return "unet" if family == "unet" else "transformer"
