"""Checkpoints with options by their old names are loaded in Python, gone on from, and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_modules import AttentionDistillation, SparseLayerTuning
from sparsight.command.cli import main
from sparsight.common.checkpoint.run_record import DATA
from sparsight.common.moved import OPTIONS
from tests.tiny_distillation import distillation_config
from tests.tiny_tuning import checkpoint, tuning_config


def rename(options: dict[str, Any], kind: str) -> None:
    """Call options of a class as they were called before."""
    for old, new in OPTIONS[kind].items():
        group, _, name = new.partition(".")
        if name in options.get(group, {}):
            options[old] = options[group].pop(name)
            if not options[group]:
                del options[group]


def test_a_tuning_is_loaded_resumed_and_exported(tmp_path: Path, reload_here: None) -> None:
    options = {"loading": {"attn_implementation": "eager"}, "compute": {"gradient_checkpointing": True}}
    config = tuning_config(tmp_path, **options)
    main(["fit", "--config", str(config), "--trainer.max_steps=2"])
    path = checkpoint(tmp_path, 2)
    content = torch.load(path, weights_only=True)
    wanted = content["state_dict"]
    rename(content["hyper_parameters"], "SparseLayerTuning")
    assert {"dtype", "distill", "vision_cache_gib"} <= content["hyper_parameters"].keys()
    rename(content[DATA], "InstructionDataModule")
    assert {"max_length", "reasoning", "max_corrupt_share", "revision"} <= content[DATA].keys()
    torch.save(content, path)
    written = yaml.safe_load(config.read_text())
    rename(written["model"]["init_args"], "SparseLayerTuning")
    written["data"]["init_args"] |= {"length_grouping": False}
    config.write_text(yaml.safe_dump(written))

    with pytest.warns(FutureWarning, match="dtype of SparseLayerTuning is loading.dtype now"):
        module = SparseLayerTuning.load_from_checkpoint(path)
    assert module.gradient_checkpointing and module.model.config._attn_implementation == "eager"
    assert all(torch.equal(value, wanted[name]) for name, value in module.state_dict().items())
    resumed = ["fit", "--config", str(config), "--ckpt_path", str(path)]
    with pytest.raises(SystemExit, match=r"data\.chat\.reasoning: 'show' in the checkpoint, 'leave_out'"):
        main([*resumed, "--data.chat.reasoning=leave_out"])
    with pytest.warns(FutureWarning, match="attn_implementation of SparseLayerTuning"):
        again = main(resumed)
    assert again.trainer.global_step == 4
    export = ["--ckpt_path", str(path), "--weights=raw", "--output", str(tmp_path / "out")]
    main(["export", "--config", str(config), *export])
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_distillation_is_loaded_and_gone_on_from(tmp_path: Path) -> None:
    trained = {"rest": ["*.norm1.linear.*"], "lora": {"rank": 2}, "init_samples": 0}
    config = distillation_config(tmp_path, trained=trained, loading={"dtype": "bfloat16"})
    main(["fit", "--config", str(config), "--trainer.max_steps=2", "--trainer.precision=bf16-mixed"])
    (path,) = (tmp_path / "runs").rglob("*.ckpt")
    content = torch.load(path, weights_only=True)
    wanted = content["state_dict"]
    rename(content["hyper_parameters"], "AttentionDistillation")
    assert {"teacher_dtype", "lora", "train_rest"} <= content["hyper_parameters"].keys()
    torch.save(content, path)
    written = yaml.safe_load(config.read_text())
    rename(written["model"]["init_args"], "AttentionDistillation")
    config.write_text(yaml.safe_dump(written))

    with pytest.warns(FutureWarning, match="teacher_dtype of AttentionDistillation is loading.dtype now"):
        module = AttentionDistillation.load_from_checkpoint(path)
    assert module.denoiser.dtype == torch.bfloat16
    assert all(torch.equal(value, wanted[name]) for name, value in module.state_dict().items())
    with pytest.warns(FutureWarning, match="lora of AttentionDistillation is trained.lora now"):
        again = main(
            ["fit", "--config", str(config), "--ckpt_path", str(path), "--trainer.precision=bf16-mixed"],
        )
    assert again.trainer.global_step == 4
