"""What the ``analyze`` verb does with a diffusion model: batches through its denoiser, and tables into a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn

from sparsight.common.disk.files import write_text, write_whole
from sparsight.common.errors import ConfigurationError, require
from sparsight.common.measure.environment import environment
from sparsight.common.tables import json_text
from sparsight.common.training.calibration import Split, calibration_batches, refuse_processes
from sparsight.common.training.sharding import own_class
from sparsight.diffusion.analyze.analysis import Analysis, finite
from sparsight.diffusion.analyze.candidates import Candidates, Factory, label, named
from sparsight.diffusion.analyze.costs import CALLED, BudgetOf, flops_costs, latency_costs
from sparsight.diffusion.analyze.plan import PlanReport, check_share, measure_plans, report_on
from sparsight.diffusion.analyze.plan_plot import plot_plan
from sparsight.diffusion.analyze.plot import plot_decay, plot_errors, plot_maps
from sparsight.diffusion.analyze.run import Recording, Settings, record
from sparsight.diffusion.analyze.watched import WatchedSite, watched
from sparsight.diffusion.model.diffusion_model import DiffusionModel
from sparsight.diffusion.surgery.replace import shells_of
from sparsight.diffusion.surgery.shell import Shell
from sparsight.diffusion.surgery.sites import find_sites
from sparsight.publish.checkpoint import load_weights

PLOTS = {"attention.png": plot_maps, "decay.png": plot_decay, "mixers.png": plot_errors}
STREAM_OFFSET = 2_000_003  # draws of an analysis repeat neither those of training nor those of evaluations


@runtime_checkable
class Analysed(Protocol):
    """A module with a diffusion model in it, whose denoiser can be analysed."""

    diffusion: DiffusionModel

    def noised(self, batch: Mapping[str, Any], *, step: int, condition_dropout: float) -> dict[str, Any]:
        """A batch with ``xt``, ``timestep``, ``level`` and ``cond``."""
        ...


def check_numbers(settings: Settings, *, batches: int, budget: float | None) -> None:
    """Refuse numbers of an analysis that are out of range.

    Raises:
        ConfigurationError: One is.
    """
    require(batches >= 1, "batches", batches, "1 or more")
    require(budget is None or 0 < budget < 1, "budget", budget, "above 0 and below 1, the untouched denoiser's cost")
    require(budget is None or settings.prediction_batches > 0, "prediction_batches", 0, "1 or more, for a budget")


def analyze_denoiser(
    trainer: Trainer,
    module: Any,
    datamodule: LightningDataModule | None,
    *,
    mixers: Sequence[Factory] | None,
    batches: int,
    split: Split,
    checkpoint: str | None,
    settings: Settings,
    budget: float | None,
    budget_of: BudgetOf,
    folder: Path,
) -> Analysis:
    """Analyse the self-attentions of a module's denoiser, print the tables, and write them as JSON, CSV and pictures.

    Args:
        trainer: Says on which device and in which precision.
        module: Is ``Analysed``.
        datamodule: Where batches come from.
        mixers: Candidates; those that the module has, at their sites, if not given.
        batches: How many; the first one lets candidates start from the teacher.
        split: Which of the datamodule's splits they are from.
        checkpoint: Take trained mixers from here, and measure them as they are.
        settings: What is looked at.
        budget: Most that a plan's denoiser may cost, over that of the untouched one; no plan is made if not given.
        budget_of: What is counted.
        folder: For the files.

    Raises:
        ConfigurationError: There are no batches, or several processes, or a site or candidate cannot be analysed.
        FileNotFoundError: There is no such checkpoint.
    """
    refuse_processes(trainer)
    check_numbers(settings, batches=batches, budget=budget)
    if checkpoint is not None:
        load_weights(module, checkpoint, weights="raw")
    denoiser, device = module.diffusion.denoiser, trainer.strategy.root_device
    candidates = candidates_of(denoiser, mixers, trained=checkpoint is not None)
    steps = module.diffusion.process.num_train_timesteps

    def bucket_of(noised: Mapping[str, Any]) -> Tensor:
        level: Tensor = noised["level"].cpu()
        return level * settings.buckets // steps

    wanted = batches if budget is None else batches + 1
    opened = calibration_batches(trainer, module, datamodule, split, wanted)

    def noised_batches() -> Iterator[dict[str, Any]]:
        for number, batch in enumerate(opened):
            if number == 0:
                module.to(device)
                module.setup("validate")
                module.eval()
            assert datamodule is not None, "batches come from it"
            moved = datamodule.transfer_batch_to_device(batch, device, 0)
            yield module.noised(moved, step=STREAM_OFFSET + number, condition_dropout=0.0)

    def after_batch(found: Recording) -> None:
        print(f"analysed batch {found.batches} of {batches}", flush=True)
        if found.batches == 1 and budget is not None and budget_of == "flops":  # before hours of work
            check_share(flops_costs(denoiser, found), budget, of=budget_of)

    drawn = noised_batches()
    with watched(denoiser) as sites, trainer.precision_plugin.forward_context():
        found = record(
            denoiser,
            sites,
            islice(drawn, batches),
            candidates=candidates,
            bucket_of=bucket_of,
            settings=settings,
            on_batch=after_batch,
        )
        facts: dict[str, Any] = {"model": _name(module), "split": split, "checkpoint": checkpoint}
        facts |= {"environment": environment(device), "least_flops": flops_costs(denoiser, found).least}
        analysis = Analysis(found, facts)
        analysis.write(folder)
        report = None
        if budget is not None:
            further = next(drawn, None)
            report = _planned(denoiser, sites, found, further, budget=budget, of=budget_of, device=device)
    for name, plot in PLOTS.items():
        write_whole(folder / name, partial(plot, analysis))
    print(f"\n{analysis.text()}")
    written = ["analysis.json", "heads.csv", "mixers.csv", *PLOTS]
    if report is not None:
        write_text(folder / "plan.json", json_text(finite(report.as_dict(found))))
        write_text(folder / "plan.yaml", report.config(found))
        print(f"\n{report.text(found)}")
        title = f"{facts['model']}: plan under {report.budget:.1%} of the {CALLED[report.of]}"
        write_whole(folder / "plan.png", lambda path: plot_plan(report, found, path, title=title))
        written += ["plan.json", "plan.yaml", "plan.png"]
    print(f"\n{', '.join(written[:-1])} and {written[-1]} are in {folder}")
    return analysis


def _planned(
    denoiser: nn.Module,
    sites: Mapping[str, WatchedSite],
    found: Recording,
    further: Mapping[str, Any] | None,
    *,
    budget: float,
    of: BudgetOf,
    device: torch.device,
) -> PlanReport:
    """The plan, measured on a further batch if there is one."""
    if of != "flops":
        if further is None:
            raise ConfigurationError(f"budget_of: {of} needs a batch more than `batches`: ask for fewer")
        print("measuring the time of every mixer", flush=True)
        costs = latency_costs(denoiser, sites, found, further, device, processor=of == "processor")
    else:
        costs = flops_costs(denoiser, found)
    report = report_on(found, costs, budget, of=of)
    if further is not None:
        print(f"measuring {len(report.plans)} plans on a further batch", flush=True)
        measure_plans(denoiser, sites, found, further, report.plans)
    return report


def candidates_of(denoiser: nn.Module, mixers: Sequence[Factory] | None, *, trained: bool) -> Candidates:
    """Candidates by name: those that are asked for, and the denoiser's own mixers if they are trained or no others are.

    Args:
        denoiser: With mixers in it or without.
        mixers: What is asked for.
        trained: Whether the denoiser's own have been trained: then they are measured as they are.

    Raises:
        ConfigurationError: Two candidates are equal, or one can stand nowhere.
    """
    shells = shells_of(denoiser)
    found: dict[str, Any] = {} if mixers is None else dict(named(mixers, find_sites(denoiser)))
    if mixers is None or trained:
        for path, shell in shells.items():
            name = label(shell.mixer) + (" (trained)" if trained else "")
            found.setdefault(name, {})[path] = shell if trained else _again(shell)
    return found


def _again(shell: Shell) -> Factory:
    """Makes a mixer as that of a shell, with fresh weights."""
    mixer = shell.mixer
    return lambda site: own_class(mixer)(site, **mixer.options)


def _name(module: Any) -> str:
    """What the configuration calls the model, without the place where it lies."""
    given = [module.hparams.get(option) for option in ("teacher", "pretrained")]
    return next((Path(str(name)).name for name in given if name), type(module.diffusion.denoiser).__name__)
