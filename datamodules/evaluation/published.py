"""Tasks in ReForm-Eval's published format: JSON files with images in base64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from datamodules.evaluation.entries import JsonEntries
from datamodules.evaluation.layout import (
    apply_boxes,
    find_field,
    find_rounds,
    read_boxes,
    read_dialogue,
    read_id,
    read_images,
    read_round,
    read_sample,
)
from datamodules.evaluation.task import EvaluationTask
from datamodules.sources.decoding import MAX_PIXELS, check_max_pixels, decode_image
from datamodules.sources.records import CorruptRecord, digest
from sparsight.common.disk.inputs import need_file, need_local
from sparsight.common.text import read_json
from sparsight.evaluation.questions.question import Formulation
from sparsight.evaluation.reform_eval.sample import Sample
from sparsight.evaluation.reform_eval.taxonomy import find_data_set, find_layout

HUB = "Aweminus/ReForm-Eval-Data"


class PublishedTask(EvaluationTask):
    """One of the 61 published data sets, or any file in one of their layouts, such as those of ``write_published``.

    Args:
        dataset: Its name in ``sparsight/evaluation/reform_eval/taxonomy.json``, such as ``CIFAR10``.
        file: A JSON file instead; then ``dimension`` and ``formulation`` are needed, too.
        dimension: Of the taxonomy.
        formulation: What is asked for.
        layout: How the file is laid out, by a name in the taxonomy; ``core`` is what ``write_published`` writes.
        fields: Fields of the layout that differ: ``{id: null}`` numbers entries that repeat their ids.
        root: Folder, or hub id of a data set, with the files; published data sets are on the hub, a ``file`` is local.
        revision: Branch, tag or commit on the hub; give a commit for a run that can be repeated.
        limit: As many entries at most, drawn with ``seed``; all questions of a dialogue are one entry.
        seed: Of that draw, and of wrong options where the data set stores none (TDIUC, MSCOCO-OC).
        max_pixels: Images with more pixels are refused.
        name: Of the task; the data set's or the file's by default.
        instructions: Sentences that open a prompt, in place of those in the file or the formulation's own.

    Raises:
        ValueError: A name is unknown, or the options contradict each other.
    """

    seed: int

    def __init__(
        self,
        dataset: str | None = None,
        *,
        file: str | Path | None = None,
        dimension: str | None = None,
        formulation: Formulation | None = None,
        layout: str | None = None,
        fields: dict[str, Any] | None = None,
        root: str | None = None,
        revision: str | None = None,
        limit: int | None = None,
        seed: int = 0,
        max_pixels: int = MAX_PIXELS,
        name: str | None = None,
        instructions: list[str] | None = None,
    ) -> None:
        explicit = {"file": file, "dimension": dimension, "formulation": formulation}
        if dataset is not None:
            given = [option for option, value in {**explicit, "layout": layout}.items() if value is not None]
            if given:
                raise ValueError(f"dataset is {dataset!r}, which says what `{given[0]}` is; leave that out")
            known = find_data_set(dataset)
            dimension, formulation, file, found = known.dimension, known.formulation, known.file, known.layout
            root = root or HUB
        else:
            found = find_layout(layout or "core")
        if file is None or dimension is None or formulation is None:
            missing = next(option for option, value in explicit.items() if value is None)
            raise ValueError(f"`{missing}` is missing; give `dataset`, or all of {', '.join(explicit)}")
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}; give 1 or more, or leave it out for all entries")
        super().__init__(
            name=name or dataset or Path(file).stem,
            dimension=dimension,
            formulation=formulation,
            instructions=instructions,
        )
        self.layout = found.changed(fields or {})
        self._is_published = dataset is not None
        self.file = str(file)
        self.root = root
        self.revision = revision
        self.limit = limit
        self.seed = seed
        self.max_pixels = check_max_pixels(max_pixels)
        self._entries: JsonEntries
        self._hashes: list[str] = []
        self._joined: dict[str, dict[str, Any]] = {}
        self._repeated: set[str] = set()  # ids that come twice in the second file
        self.remedy = "; to number entries that repeat their ids, set the task's fields to {id: null}"
        self._pool: list[str] = []
        self._samples: list[tuple[int, int | None]] = []  # entry and, in a dialogue that is one, round
        self._dialogues: list[list[int]] = []

    def check_paths(self) -> None:
        """See that local files are there."""
        if self.root is not None:
            need_local(self.root, what="root")
        for file in self._files() if self.root is None or Path(self.root).is_dir() else ():
            need_file(self._locate(file, download=False), what="file", holds="entries")

    def prepare(self) -> None:
        """Download the file, and the two that TDIUC and MSCOCO-OC need beside it."""
        for file in self._files():
            self._locate(file, download=True)

    def __len__(self) -> int:
        """Number of samples, usable ones or not."""
        return len(self._samples)

    def dialogues(self) -> list[list[int]]:
        """Positions of the questions of each dialogue; of other entries the only one."""
        return self._dialogues

    def __getitem__(self, index: int) -> Sample:
        """Parse an entry and decode its images."""
        number, turn = self._samples[index]
        try:
            entry = self._joined_entry(number)
            name = read_id(entry, self.layout, number)
            if turn is not None:
                entry = read_round(entry, self._entries.header, self.layout, turn) | {"dialogue": name}
                name = f"{name}_{turn}"
            sample = read_sample(
                entry, self.layout, id=name, formulation=self.formulation, pool=self._pool, seed=self.seed
            )
            images = tuple(self._decoded(data, entry) for data in read_images(entry, self.layout))
            if self._is_published and not images:  # other files may hold questions about nothing but text
                raise ValueError(f"`{self.layout.image}` holds no picture")
            sample = replace(sample, images=images)
            sample.check(self.formulation)
        except ValueError as error:  # a corrupt image, too, is one
            raise CorruptRecord(f"{self.where(index)}: {error}") from error
        return sample

    def where(self, index: int) -> str:
        """File and number of the entry."""
        number, turn = self._samples[index]
        return f"{self._entries.file} entry {number}" + ("" if turn is None else f" round {turn}")

    def fingerprint(self) -> str:
        """Covers the contents of all files, and the options."""
        self.open()
        return digest([*self._hashes, self.layout, self.formulation, self.limit, self.seed, self.instructions])

    # ------------------------------------------------------------------------------------------------ opening the file
    def _open(self) -> None:
        self._entries = JsonEntries(self._locate(self.file, download=False), self.layout.records)
        self._hashes = [self._entries.sha256]
        self._read_header(self._entries.header)
        if self.layout.join is not None:
            self._read_joined(self._locate(self.layout.join, download=False))
        if self.layout.pool is not None:
            self._read_pool(self._locate(self.layout.pool, download=False))
        chosen = self._chosen()
        if self.limit is not None and self.limit < len(chosen):
            drawn = sorted(Random(self.seed).sample(range(len(chosen)), self.limit))
            chosen = [chosen[number] for number in drawn]
        self._samples = sorted(sample for samples in chosen for sample in samples)
        places = {sample: place for place, sample in enumerate(self._samples)}
        self._dialogues = [[places[sample] for sample in samples] for samples in chosen]
        if not self._samples:
            raise ValueError(f"{self._entries.file} holds no entries" + (" of this kind" if self.layout.where else ""))

    def _read_header(self, header: Mapping[str, Any]) -> None:
        for option, own in {"dimension": self.dimension, "formulation": self.formulation}.items():
            if header.get(option, own) != own:
                raise ValueError(f"{self._entries.file} says {option} {header[option]!r}, but {option} is {own!r}")
        found = header.get("instructs")
        if found and self.instructions is None:
            if not isinstance(found, list) or not all(isinstance(text, str) and text.strip() for text in found):
                raise ValueError(f"{self._entries.file}: `instructs` is {found!r}, not a list of sentences")
            self.instructions = found

    def _read_joined(self, file: Path) -> None:
        entries = JsonEntries(file, self.layout.join_records)
        self._hashes.append(entries.sha256)
        for number in range(len(entries)):
            try:
                entry = entries[number]
                name = read_id(entry, self.layout, number)
            except ValueError:  # the entry that it belongs to says what is missing
                continue
            self._repeated |= {name} & self._joined.keys()
            self._joined[name] = entry

    def _read_pool(self, file: Path) -> None:
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}")
        found = read_json(file)
        found = found.get("choice") if isinstance(found, dict) else found
        if not isinstance(found, list):
            raise ValueError(f"{file} holds no list `choice` of answers")
        self._pool = [str(value) for value in found]
        self._hashes.append(digest(self._pool))

    def _chosen(self) -> list[list[tuple[int, int | None]]]:
        """Samples of each dialogue or other entry that is wanted; what is wrong with one is said when it is read."""
        chosen: dict[Any, list[tuple[int, int | None]]] = {}
        for number in range(len(self._entries)):
            rounds: list[int | None] = [None]
            dialogue: str | None = None
            try:
                entry = self._joined_entry(number)
                if any(find_field(entry, field) != value for field, value in self.layout.where.items()):
                    continue
                if self.layout.rounds is not None:
                    rounds = list(range(len(find_rounds(entry, self.layout))))
                dialogue = read_dialogue(entry, self.layout)
            except ValueError:
                pass
            chosen.setdefault(number if dialogue is None else dialogue, []).extend((number, turn) for turn in rounds)
        return list(chosen.values())

    def _files(self) -> list[str]:
        return [file for file in (self.file, self.layout.join, self.layout.pool) if file is not None]

    def _locate(self, file: str, *, download: bool) -> Path:
        if self.root is None:
            return Path(file)
        if Path(self.root).is_dir():
            return Path(self.root, file)
        from huggingface_hub import hf_hub_download  # slow to import: only when it is used

        try:
            return Path(
                hf_hub_download(
                    self.root, file, repo_type="dataset", revision=self.revision, local_files_only=not download
                )
            )
        except (OSError, ValueError) as error:  # the hub's own errors are among them
            raise FileNotFoundError(
                f"task {self.name!r}: {file} was found neither in a folder {self.root!r} nor in a data set of that "
                f"name on the hub; set `root` to a folder that holds it, or see to the connection: {error}"
            ) from error

    # ---------------------------------------------------------------------------------------------- reading one entry
    def _joined_entry(self, number: int) -> dict[str, Any]:
        entry = self._entries[number]
        if self.layout.join is None:
            return entry
        name = read_id(entry, self.layout, number)
        if name in self._repeated:
            raise ValueError(f"{self.layout.join} has several entries with `{self.layout.id}` {name}")
        if name not in self._joined:
            raise ValueError(f"{self.layout.join} has no entry with `{self.layout.id}` {name}")
        return {**self._joined[name], **entry}

    def _decoded(self, data: bytes, entry: Mapping[str, Any]) -> Image.Image:
        image = decode_image(data, max_pixels=self.max_pixels)
        return apply_boxes(image, read_boxes(entry, self.layout, (image.height, image.width)), self.layout)
