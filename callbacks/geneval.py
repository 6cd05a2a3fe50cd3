"""Images for GenEval, in the folders that its scorer reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from PIL import Image
from torch import Tensor

from callbacks.drawing import check_drawable
from callbacks.measured import check_numbers, drawing_protocol
from sparsight.common.disk.files import write_text, write_whole
from sparsight.common.errors import ConfigurationError
from sparsight.common.finite import check_rows
from sparsight.common.text import BadText, parse_json, read_lines
from sparsight.common.training.processes import refuse_together
from sparsight.evaluation.images.draws import Draw, OwnDraws
from sparsight.evaluation.images.images import to_uint8
from sparsight.publish.geneval import DRAWING, FOLDER, RESULTS


class GenEvalImages(Callback):
    """Draws GenEval's prompts (Ghosh et al., arXiv 2310.11513) when ``test`` ends, as its scorer wants to find them.

    ``<folder>/00000/metadata.jsonl`` tells what the first prompt asks for, ``<folder>/00000/samples/00000.png`` and on
    are its images. The scorer, ``evaluation/evaluate_images.py`` of GenEval's repository, detects objects by packages
    of its own and so runs elsewhere: with ``--outfile <folder>/results.jsonl`` the run's report shows what it found,
    and ``sparsight export --metrics <folder>/results.jsonl`` puts it on the model card.

    Samples are drawn with the module's seed, sampler steps, guidance and precision, and with the average of
    TrainableEMA if it is there; the number of processes changes nothing.

    Args:
        prompts: GenEval's ``prompts/evaluation_metadata.jsonl``, or a file like it: objects with ``prompt`` and
            ``tag``, one a line.
        samples: Images of each prompt; 4 are GenEval's.
        folder: Where to, which must be empty; ``geneval`` inside the run's log folder if not given.
        batch_size: Samples drawn together on a process.

    Raises:
        FileNotFoundError: The file of prompts is missing.
        ValueError: A line of it is no prompt, or a number is below 1.
    """

    def __init__(self, prompts: str, samples: int = 4, folder: str | None = None, batch_size: int = 16) -> None:
        check_numbers(samples=(samples, 1), batch_size=(batch_size, 1))
        self.prompts, self.samples, self.folder, self.batch_size = prompts, samples, folder, batch_size
        self._asked = read_prompts(Path(prompts))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that draws nothing from captions, and a folder that holds something.

        Raises:
            ConfigurationError: It is one.
        """
        check_drawable(self, pl_module, column="caption", conditions=None)
        folder = self._place(trainer)
        if stage == "test" and folder.is_dir() and any(folder.iterdir()):
            raise ConfigurationError(f"GenEvalImages: {folder} is not empty: name another folder, or delete it")

    @torch.no_grad()
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw all prompts."""
        folder, count = self._place(trainer), len(self._asked) * self.samples
        own = OwnDraws(count, processes=trainer.world_size, rank=trainer.global_rank)
        own.fill([asked["prompt"] for asked in self._asked])
        draws = own.all()
        tenth = -(-len(draws) // 10)
        for first in range(0, len(draws), self.batch_size):
            self._draw(trainer, pl_module, draws[first : first + self.batch_size], folder)
            done = min(first + self.batch_size, len(draws))
            if done // tenth > first // tenth:
                rank_zero_info(f"GenEval: drew {done} of {len(draws)} samples a process")
        if trainer.is_global_zero:
            write_text(folder / DRAWING, drawing_protocol(trainer, pl_module, count, size=None, against=None) + "\n")
        rank_zero_info(
            f"GenEval: wrote {count} images; score them by evaluation/evaluate_images.py {folder} --outfile "
            f"{folder / RESULTS}, where the report looks for it"
        )

    def _draw(self, trainer: Trainer, module: Any, draws: Sequence[Draw], folder: Path) -> None:
        index = torch.tensor([draw.id for draw in draws])
        with trainer.precision_plugin.forward_context():
            images = module.draw({"caption": [draw.condition for draw in draws]}, index)
        refuse_together(partial(self._write, images, index, [draw.counted for draw in draws], folder))

    def _write(self, images: Tensor, index: Tensor, counted: Sequence[bool], folder: Path) -> None:
        check_rows({"pixels": images}, index, "drawn images")
        for i, pixels_CHW, counts in zip(index.tolist(), to_uint8(images).cpu(), counted, strict=True):
            number, prompt = divmod(i, len(self._asked))
            place = folder / f"{prompt:05d}"
            if not counts:
                continue
            if number == 0:
                write_text(place / "metadata.jsonl", json.dumps(self._asked[prompt]) + "\n")
            image = Image.fromarray(pixels_CHW.expand(3, -1, -1).permute(1, 2, 0).numpy())
            write_whole(place / "samples" / f"{number:05d}.png", partial(image.save, format="PNG"))

    def _place(self, trainer: Trainer) -> Path:
        log = trainer.log_dir or trainer.default_root_dir  # all processes must ask for log_dir
        return Path(self.folder or Path(log) / FOLDER)


def read_prompts(path: Path) -> list[Mapping[str, Any]]:
    """What GenEval asks for: objects with ``prompt`` and ``tag``, one a line.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is none; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"prompts: there is no file {path}; it is prompts/evaluation_metadata.jsonl of GenEval")
    found: list[Mapping[str, Any]] = []
    for number, line in read_lines(path):
        try:
            asked = parse_json(line)
        except BadText as error:
            raise ValueError(f"prompts: {path}, line {number}: {error}") from error
        if not isinstance(asked, dict) or not all(isinstance(asked.get(name), str) for name in ("prompt", "tag")):
            raise ValueError(f"prompts: {path}, line {number}: expected an object with prompt and tag, as GenEval has")
        found.append(asked)
    if not found:
        raise ValueError(f"prompts: {path} is empty")
    return found
