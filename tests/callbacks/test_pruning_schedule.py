"""Progressive replacement: who answers where and when, gradients, resume, hybrids, several processes, compilation."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer

from blocks import DeltaConvBlock
from callbacks import PruningSchedule, TrainableEMA
from lightning_modules import AttentionDistillation
from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.model.sampling import Sampling
from sparsight.diffusion.surgery.record import record_of
from sparsight.diffusion.surgery.replace import without_idle
from sparsight.diffusion.train.compiled import compile_blocks
from sparsight.diffusion.train.stages import LossTerms, Stage
from sparsight.publish.export import export
from tests import tiny
from tests.tiny_processes import run_command

LAYERS = 4
SITES = [f"transformer_blocks.{i}.attn1" for i in range(LAYERS)]


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return str(tiny.save_pixel_pipeline(tmp_path / "teacher", num_layers=LAYERS))


def distillation(teacher: str, **options: Any) -> AttentionDistillation:
    torch.manual_seed(0)
    stages = [Stage("layerwise", 2, warmup_steps=1), Stage("end_to_end", 6, warmup_steps=1)]
    mixer = partial(DeltaConvBlock, preset="released_pixart", kernel_size=3)
    defaults = {"trained": {"init_samples": 0}, "sampling": Sampling(2)}
    return AttentionDistillation(teacher, mixer, stages, **defaults | options)


def fit(folder: Path, module: AttentionDistillation, *callbacks: Callback, **options: Any) -> Trainer:
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=-1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=list(callbacks),
    )
    trainer.fit(module, tiny.image_data(folder), **options)
    return trainer


class Watch(Callback):
    """Notes after every step which sites are handed over, and the weights."""

    def __init__(self) -> None:
        self.handed_over: dict[int, list[str]] = {}
        self.states: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.handed_over[trainer.global_step] = [p for p, s in pl_module.shells.items() if s.handed_over]
        self.states[trainer.global_step] = {k: v.clone() for k, v in pl_module.state_dict().items()}


def test_sites_are_handed_over_in_the_order_asked_for(teacher: str, tmp_path: Path) -> None:
    for order, expected in (("first", SITES), ("last", SITES[::-1]), ([SITES[2], SITES[0]], [SITES[2], SITES[0]])):
        watch, schedule = Watch(), PruningSchedule("linear", begin=2, end=6, order=order)  # type: ignore[arg-type]
        fit(tmp_path, distillation(teacher), schedule, watch)
        assert schedule.retired == expected
        counts = [len(watch.handed_over[step]) for step in range(1, 9)]
        assert counts == [
            sum(2 + 4 * (i + 1) / len(expected) <= step - 1 for i in range(len(expected))) for step in range(1, 9)
        ]
        assert watch.handed_over[8] == sorted(expected)


@pytest.mark.slow
def test_the_site_with_the_smallest_error_goes_first(teacher: str, tmp_path: Path) -> None:
    module = distillation(teacher)
    schedule = PruningSchedule("one_shot", begin=2, amount=1)
    fit(tmp_path, module, schedule)
    scores = module.score()
    assert set(scores) == set(SITES) and len(set(scores.values())) == LAYERS
    early = distillation(teacher)
    noted: list[dict[str, float]] = []

    class Note(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                noted.append(pl_module.score())

    fit(tmp_path, early, Note())
    assert schedule.retired == [min(noted[0], key=lambda site: noted[0][site])]


def test_a_mixer_that_waits_learns_from_its_own_site_alone_and_lets_gradients_pass(teacher: str) -> None:
    module = distillation(teacher)
    batch = {"image": torch.randn(4, 1, 8, 8), "label": torch.arange(4), "index": torch.arange(4)}
    noised = module.noised(batch, step=0, condition_dropout=0.0)
    module.retire([SITES[0], SITES[3]])
    only_output = LossTerms(to_teacher=1.0, site=0.0)
    terms = module.distiller.end_to_end(noised, only_output)
    assert set(terms) == {"to_teacher", "idle"}
    mixers = {path: list(shell.mixer.parameters()) for path, shell in module.shells.items()}

    def reached(term: str) -> list[str]:
        parameters = [p for group in mixers.values() for p in group]
        gradients = iter(torch.autograd.grad(terms[term], parameters, retain_graph=True, allow_unused=True))
        found = {path: [next(gradients) for _ in group] for path, group in mixers.items()}
        return [path for path, group in found.items() if any(g is not None and bool(g.abs().sum() > 0) for g in group)]

    assert reached("to_teacher") == [SITES[0], SITES[3]], "the gradient passes the attention of waiting sites"
    assert reached("idle") == [SITES[1], SITES[2]], "a waiting mixer's loss stays at its site"


def test_with_no_site_handed_over_the_student_is_the_teacher(teacher: str) -> None:
    module = distillation(teacher)
    module.retire([])
    index = torch.arange(2)
    assert torch.equal(module.draw({"label": index}, index), module.draw_teacher({"label": index}, index))
    module.retire(SITES[:1])
    assert not torch.equal(module.draw({"label": index}, index), module.draw_teacher({"label": index}, index))


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_resuming_in_the_middle_of_the_schedule_is_bitwise(teacher: str, tmp_path: Path, checkpointing: bool) -> None:
    def callbacks() -> list[Callback]:
        return [PruningSchedule("linear", begin=2, end=6), TrainableEMA(0.9)]

    make = partial(distillation, teacher, compute={"gradient_checkpointing": checkpointing})
    whole, saved = Watch(), tmp_path / "saved.ckpt"
    fit(tmp_path, make(), *callbacks(), whole)

    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 5:
                trainer.save_checkpoint(saved)

    fit(tmp_path, make(), *callbacks(), Save())
    resumed = Watch()
    fit(tmp_path, make(), *callbacks(), resumed, ckpt_path=saved)
    assert sorted(resumed.states) == [6, 7, 8]
    for step, state in resumed.states.items():
        assert resumed.handed_over[step] == whole.handed_over[step]
        for name, value in state.items():
            assert torch.equal(value, whole.states[step][name]), (step, name)


@pytest.mark.usefixtures("reload_here")
def test_a_hybrid_keeps_its_attention_in_checkpoints_and_exports(teacher: str, tmp_path: Path) -> None:
    module = distillation(teacher)
    trainer = fit(tmp_path, module, PruningSchedule("one_shot", begin=2, amount=0.5, order="last"))
    path = tmp_path / "hybrid.ckpt"
    trainer.save_checkpoint(path)
    again = distillation(teacher)
    again.on_load_checkpoint(torch.load(path, weights_only=True))
    assert [p for p, shell in again.shells.items() if shell.handed_over] == SITES[2:]
    older = torch.load(path, weights_only=True)
    del older["sparsight"]["handed_over"], older["sparsight"]["recent_errors"]
    again.on_load_checkpoint(older)
    assert all(shell.handed_over for shell in again.shells.values()), "before sites could wait, none did"
    folder = export(module, tmp_path / "student", fp16=False)
    loaded = DiffusionModel.from_pretrained(str(folder)).denoiser
    assert list(record_of(loaded)["sites"]) == SITES[2:]
    with without_idle(module.denoiser):
        assert list(record_of(module.denoiser)["sites"]) == SITES[2:]
    assert list(module.shells) == list(record_of(module.denoiser)["sites"]) == SITES
    module.retire([])
    with pytest.raises(ValueError, match="no site has been handed over"):
        export(module, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "score"}, "knows nothing at step 0"),
        ({"order": ["nowhere"]}, "nowhere"),
        ({"order": [SITES[0], SITES[0]]}, "twice"),
        ({"order": "first", "amount": 9}, r"only 4 sites may be retired \(.*\): give 4 or less"),
        ({"order": "first", "amount": 9, "spacing": 2}, r"\), 2 of them 2 apart: give 2 or less"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(
    teacher: str, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fit(tmp_path, distillation(teacher), PruningSchedule("one_shot", **options))


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="share up to"):
        PruningSchedule("one_shot", amount=1.5)
    with pytest.raises(ValueError, match="order is one of"):
        PruningSchedule("one_shot", order="best")


@pytest.mark.slow
def test_two_processes_hand_over_alike_and_end_with_the_weights_of_one(teacher: str, tmp_path: Path) -> None:
    config = two_process_config(teacher, tmp_path)
    states = []
    for processes, batch_size in ((1, 4), (2, 2)):
        root = tmp_path / f"processes_{processes}"
        run = ["fit", "--config", str(config), f"--data.batch_size={batch_size}", f"--trainer.default_root_dir={root}"]
        run_command([*run, f"--trainer.devices={processes}", "--trainer.strategy=ddp"], processes=processes)
        states.append(torch.load(next(root.rglob("*.ckpt")), weights_only=True))
    assert states[0]["sparsight"]["handed_over"] == states[1]["sparsight"]["handed_over"]
    assert len(states[0]["sparsight"]["handed_over"]) == 3
    for name, value in states[0]["state_dict"].items():
        torch.testing.assert_close(states[1]["state_dict"][name], value, rtol=1e-3, atol=1e-5)


def two_process_config(teacher: str, folder: Path) -> Path:
    images, labels = tiny.save_idx(folder)
    records = {"class_path": "IdxRecords", "init_args": {"images": str(images), "labels": str(labels)}}
    stages = [{"objective": o, "steps": 3, "lr": 0.05, "warmup_steps": 1} for o in ("layerwise", "end_to_end")]
    schedule = {"shape": "linear", "begin": 2, "end": 5, "amount": 3}
    config = {
        "trainer": {
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "callbacks": [
                {"class_path": "callbacks.PruningSchedule", "init_args": schedule},
                {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"every_n_train_steps": 6}},
            ],
        },
        "model": {
            "class_path": "AttentionDistillation",
            "init_args": {
                "teacher": teacher,
                "mixer": {"class_path": "DeltaConvBlock", "init_args": {"kernel_size": 3, "scales": [1, 0.5]}},
                "stages": stages,
                "optimizer": "torch.optim.SGD",
                "trained": {"init_samples": 0},
            },
        },
        "data": {
            "class_path": "ImageDataModule",
            "init_args": {"train": records, "image_size": 8, "transform": {"channels": 1}, "batch_size": 4},
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("family", ["dit", "unet"])
def test_more_than_eight_hand_overs_stay_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled(module, backend="eager", fullgraph=True))
    batch: dict[str, Any] = {"index": torch.arange(2), "label": torch.arange(2), "caption": ["a", "b"]}
    if family == "dit":
        folder = tiny.save_pixel_pipeline(tmp_path, num_layers=10)
    else:  # two kinds of blocks, each compiled for itself
        folder = tiny.save_sd_pipeline(tmp_path, layers_per_block=3)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=8):
        module = distillation(str(folder))
        compile_blocks(module.denoiser)
        sample = torch.randn(2, *module.diffusion.sample_shape())
        noised = module.noised(batch | {"sample": sample}, step=0, condition_dropout=0.0)
        paths = module.sites()
        assert len(paths) >= 8
        for count in range(len(paths) + 1):
            module.retire(paths[:count])
            terms = module.distiller.end_to_end(noised, LossTerms())
            torch.stack(list(terms.values())).sum().backward()
