"""Two CPU processes, FSDP2 and DDP: the weights of one, checkpoints that resume, mixers that know their teacher."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from PIL import Image
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from sparsight.command.cli import main
from sparsight.common.errors import ConfigurationError
from sparsight.diffusion.train.sharding import shard
from tests import tiny
from tests.tiny_distillation import distillation, distillation_config
from tests.tiny_extras import needs_torchao
from tests.tiny_processes import run_command


def strategy(**options: Any) -> dict[str, Any]:
    sizes = {"data_parallel_size": 2, "tensor_parallel_size": 1}
    return {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy", "init_args": sizes | options}


WHOLE_FILES = strategy(save_distributed_checkpoint=False)


def config_of(folder: Path, mixer: dict[str, Any] | None, **model: Any) -> Path:
    stages = [{"objective": o, "steps": 2, "lr": 0.1, "warmup_steps": 1} for o in ("layerwise", "end_to_end")]
    # no Adam, which turns the rounding of a tiny gradient into a whole step; Lightning cannot load an empty state
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.5}}
    trained = {"init_samples": 24, **model.pop("trained", {})}
    path = distillation_config(folder, mixer=mixer, stages=stages, optimizer=optimizer, trained=trained, **model)
    config = yaml.safe_load(path.read_text())
    saver = {"every_n_train_steps": 1, "save_top_k": -1, "filename": "{step}"}
    grid = {"labels": [0, 1], "every_n_steps": 2}
    config["trainer"] |= {
        "logger": False,
        "callbacks": [
            {"class_path": "callbacks.TrainableEMA"},
            {"class_path": "callbacks.SampleGrid", "init_args": grid},
            {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saver},
        ],
    }
    path.write_text(yaml.safe_dump(config))
    return path


def fit(config: Path, root: Path, *others: str, processes: int, strategy: object, resume: Path | None = None) -> None:
    overlay = root.with_suffix(".yaml")
    overlay.write_text(yaml.safe_dump({"trainer": {"devices": processes, "strategy": strategy}}))
    run_command(
        [
            *("fit", "--config", str(config), "--config", str(overlay), f"--trainer.default_root_dir={root}"),
            f"--data.batch_size={4 // processes}",
            *([] if resume is None else [f"--ckpt_path={resume}"]),
            *others,
        ],
        processes=processes,
    )


def checkpoint(root: Path, step: int) -> Path:
    return next(root.rglob(f"step={step}.ckpt"))


CONV = {"class_path": "DeltaConvBlock", "init_args": {"kernel_size": 3, "scales": [1, 0.5]}}
WINDOW = {"class_path": "NeighborhoodAttention", "init_args": {"kernel_size": 3}}


TILES = {"class_path": "TileAttention", "init_args": {"tile": 2}}
FAR = {"class_path": "PooledAttention", "init_args": {"tile": 2, "without_own": True}}
MERGED = {"class_path": "Merge", "init_args": {"parts": [TILES, FAR], "balance_penalty": 0.1}}
PLAN = [
    {"sites": "*.0.attn1", "mixer": MERGED},
    {"sites": "*.1.attn1", "mixer": {"class_path": "HeadSplit", "init_args": {"parts": [MERGED, WINDOW]}}},
    {"sites": "*", "mixer": CONV},
]
REST = {"rest": ["*.norm1.linear.*"], "lora": {"rank": 2}}
REPLICATED = {"replicate_trained": True}
MODELS: dict[str, dict[str, Any]] = {
    "plan": {"mixer": None, "plan": PLAN, "trained": {"projections": True}},
    "delta_conv": {"mixer": CONV},
    "own_projections": {"mixer": WINDOW, "trained": {"projections": True}},
    "quantised": {"mixer": CONV, "loading": {"quantization": "int8"}},
    "replicated": {"mixer": None, "plan": PLAN, "trained": {"projections": True}, "compute": REPLICATED},
    "rest_replicated": {"mixer": CONV, "trained": REST, "compute": REPLICATED},
    "rest": {"mixer": CONV, "trained": REST},
}


@pytest.mark.parametrize(
    ("model", "split_by"),
    [
        pytest.param("plan", WHOLE_FILES, marks=pytest.mark.slow),
        pytest.param("plan", "ddp", marks=pytest.mark.slow),
        pytest.param("delta_conv", WHOLE_FILES, marks=pytest.mark.slow),
        pytest.param("own_projections", WHOLE_FILES, marks=pytest.mark.slow),
        pytest.param("rest", "ddp", marks=pytest.mark.slow),
        pytest.param("replicated", WHOLE_FILES, marks=pytest.mark.slow),
        pytest.param("rest_replicated", WHOLE_FILES, marks=pytest.mark.slow),
        pytest.param("quantised", "ddp", marks=[pytest.mark.slow, needs_torchao]),
    ],
    ids=[
        "plan",
        "plan_ddp",
        "delta_conv",
        "own_projections",
        "rest_ddp",
        "replicated",
        "rest_replicated",
        "quantised_ddp",
    ],
)
@pytest.mark.usefixtures("reload_here")
def test_split_training_is_that_of_one_process_and_resumes(tmp_path: Path, model: str, split_by: object) -> None:
    tiny.save_pixel_pipeline(tmp_path / "teacher", num_layers=3 if "plan" in MODELS[model] else 2)
    config = config_of(tmp_path, **MODELS[model])
    alone, split, resumed = tmp_path / "alone", tmp_path / "split", tmp_path / "resumed"
    fit(config, alone, processes=1, strategy="auto")
    fit(config, split, processes=2, strategy=split_by)
    others = ["--model.compute.replicate_trained=false"] if model == "replicated" else []  # what it goes on as is free
    fit(config, resumed, *others, processes=2, strategy=split_by, resume=checkpoint(split, 1))
    wanted = torch.load(checkpoint(alone, 4), weights_only=True)
    for root in (split, resumed):
        got = torch.load(checkpoint(root, 4), weights_only=True)
        assert got["state_dict"].keys() == wanted["state_dict"].keys()
        for name, value in wanted["state_dict"].items():
            torch.testing.assert_close(got["state_dict"][name], value, rtol=1e-3, atol=1e-5)
        averages = [next(v for k, v in c["callbacks"].items() if "TrainableEMA" in k)["average"] for c in (got, wanted)]
        for name, value in averages[1].items():
            torch.testing.assert_close(averages[0][name], value, rtol=1e-3, atol=1e-5)
    drawn, split_drawn = (np.asarray(Image.open(next(root.rglob("step_0000004.png")))) for root in (alone, split))
    assert drawn.std() > 0 and np.abs(drawn.astype(int) - split_drawn).max() <= 1
    main(["export", "--config", str(config), f"--ckpt_path={checkpoint(split, 4)}", f"--output={tmp_path / 'student'}"])


@pytest.mark.slow
def test_checkpoints_in_parts_resume_too(tmp_path: Path) -> None:
    config = config_of(tmp_path, CONV)
    root = tmp_path / "split"
    fit(config, root, processes=2, strategy=strategy())
    assert checkpoint(root, 2).is_dir()
    fit(config, tmp_path / "resumed", processes=2, strategy=strategy(), resume=checkpoint(root, 2))
    wanted, got = (whole_state(checkpoint(folder, 4)) for folder in (root, tmp_path / "resumed"))
    before = whole_state(checkpoint(root, 2))
    assert wanted.keys() == got.keys() == before.keys()
    assert any(not torch.equal(before[name], value) for name, value in wanted.items())
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-3, atol=1e-5)


def whole_state(folder: Path) -> dict[str, torch.Tensor]:
    """All trained tensors of a checkpoint in parts."""
    dcp_to_torch_save(folder, folder.with_suffix(".whole"))
    return torch.load(folder.with_suffix(".whole"), weights_only=True)["state_dict"]


@pytest.fixture
def one_process() -> Iterator[DeviceMesh]:
    """A mesh of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    dist.destroy_process_group()


def test_what_trains_may_stay_whole_beside_a_base_that_is_split(tmp_path: Path, one_process: DeviceMesh) -> None:
    teacher = str(tiny.save_pixel_pipeline(tmp_path / "teacher"))
    module = distillation(teacher, trained=REST, compute=REPLICATED)
    shard(module.denoiser, one_process, but=module.kept_whole())
    split = {f"denoiser.{n}" for n, p in module.denoiser.named_parameters() if isinstance(p, DTensor)}
    kept = {name for name, _ in module.named_parameters()} - split
    assert len(split) > 10 and kept == module.trained_names() | {name for name in kept if "frozen_rest" in name}


def test_lightnings_default_sizes_are_refused() -> None:
    class Processes:
        """Two of them: all that is asked of a mesh before it is refused."""

        def size(self) -> int:
            return 2

    with pytest.raises(ConfigurationError, match="data_parallel_size: the number of processes"):
        shard(torch.nn.Linear(2, 2), {"tensor_parallel": Processes()})  # type: ignore[arg-type]
