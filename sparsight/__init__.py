"""Sparsight: cheaper vision models by token mixers in diffusion models, and sparse tuning of image-text models.

``import sparsight`` imports nothing heavy; what it offers is imported where it is first used:

    import sparsight
    from blocks import DeltaConvBlock

    module = sparsight.distill("fashion_mnist_dit", DeltaConvBlock, data, output="student")
    pipeline = sparsight.load("student")

Plug-ins are the top-level packages ``blocks``, ``datamodules``, ``lightning_modules`` and ``callbacks``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sparsight.common.moved import lead_old_names

if TYPE_CHECKING:
    from sparsight.command.functions import distill, evaluate, tune
    from sparsight.common.disk.cache_options import CacheCompute, CacheOptions
    from sparsight.common.training.lr_schedules import LearningRateSchedule
    from sparsight.diffusion.export.delta import mount
    from sparsight.diffusion.model.load import load_pipeline as load
    from sparsight.diffusion.model.loading import PipelineLoading, TeacherLoading
    from sparsight.diffusion.model.sampling import Sampling
    from sparsight.diffusion.surgery.plan import PlanEntry
    from sparsight.diffusion.surgery.replace import replace, restore, set_mode
    from sparsight.diffusion.surgery.shell import Mode
    from sparsight.diffusion.surgery.sites import SiteSelection, find_sites
    from sparsight.diffusion.train.compute import DenoiserCompute, DistillationCompute
    from sparsight.diffusion.train.noise_levels import NoiseLevels
    from sparsight.diffusion.train.stages import Stage
    from sparsight.diffusion.train.trained_parts import TrainedParts
    from sparsight.lvlm.methods.learned.folder import read_recipe, write_recipe
    from sparsight.lvlm.methods.recipe import Recipe
    from sparsight.lvlm.model.load import ModelLoading, load_lvlm
    from sparsight.lvlm.surgery.remove import remove_layers
    from sparsight.lvlm.surgery.selection import select_layers
    from sparsight.lvlm.train.compute import TuningCompute
    from sparsight.lvlm.train.healing import Healing
    from sparsight.lvlm.train.stages import TuningStage
    from sparsight.publish.export import export

__version__ = "0.1.0"
__all__ = [
    "CacheCompute",
    "CacheOptions",
    "DenoiserCompute",
    "DistillationCompute",
    "Healing",
    "LearningRateSchedule",
    "Mode",
    "ModelLoading",
    "NoiseLevels",
    "PipelineLoading",
    "PlanEntry",
    "Recipe",
    "Sampling",
    "SiteSelection",
    "Stage",
    "TeacherLoading",
    "TrainedParts",
    "TuningCompute",
    "TuningStage",
    "__version__",
    "distill",
    "evaluate",
    "export",
    "find_sites",
    "load",
    "load_lvlm",
    "mount",
    "read_recipe",
    "remove_layers",
    "replace",
    "restore",
    "select_layers",
    "set_mode",
    "tune",
    "write_recipe",
]
_AT = {  # module and name there
    "CacheCompute": "common.disk.cache_options:CacheCompute",
    "CacheOptions": "common.disk.cache_options:CacheOptions",
    "DenoiserCompute": "diffusion.train.compute:DenoiserCompute",
    "DistillationCompute": "diffusion.train.compute:DistillationCompute",
    "Healing": "lvlm.train.healing:Healing",
    "LearningRateSchedule": "common.training.lr_schedules:LearningRateSchedule",
    "Mode": "diffusion.surgery.shell:Mode",
    "ModelLoading": "lvlm.model.load:ModelLoading",
    "NoiseLevels": "diffusion.train.noise_levels:NoiseLevels",
    "PipelineLoading": "diffusion.model.loading:PipelineLoading",
    "PlanEntry": "diffusion.surgery.plan:PlanEntry",
    "Recipe": "lvlm.methods.recipe:Recipe",
    "Sampling": "diffusion.model.sampling:Sampling",
    "SiteSelection": "diffusion.surgery.sites:SiteSelection",
    "Stage": "diffusion.train.stages:Stage",
    "TeacherLoading": "diffusion.model.loading:TeacherLoading",
    "TrainedParts": "diffusion.train.trained_parts:TrainedParts",
    "TuningCompute": "lvlm.train.compute:TuningCompute",
    "TuningStage": "lvlm.train.stages:TuningStage",
    "distill": "command.functions:distill",
    "evaluate": "command.functions:evaluate",
    "export": "publish.export:export",
    "find_sites": "diffusion.surgery.sites:find_sites",
    "load": "diffusion.model.load:load_pipeline",
    "load_lvlm": "lvlm.model.load:load_lvlm",
    "mount": "diffusion.export.delta:mount",
    "read_recipe": "lvlm.methods.learned.folder:read_recipe",
    "remove_layers": "lvlm.surgery.remove:remove_layers",
    "replace": "diffusion.surgery.replace:replace",
    "restore": "diffusion.surgery.replace:restore",
    "select_layers": "lvlm.surgery.selection:select_layers",
    "set_mode": "diffusion.surgery.replace:set_mode",
    "tune": "command.functions:tune",
    "write_recipe": "lvlm.methods.learned.folder:write_recipe",
}

lead_old_names()


def __getattr__(name: str) -> Any:
    if name not in _AT:
        raise AttributeError(f"module 'sparsight' has no attribute {name!r}")
    module, _, attribute = _AT[name].partition(":")
    return vars(import_module(f"sparsight.{module}"))[attribute]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
