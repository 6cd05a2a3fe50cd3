"""Streams: every record once in a pass, for any number of processes and workers, and exact resuming."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from PIL import Image

from datamodules import (
    CorruptRecord,
    HuggingFaceStream,
    Record,
    RecordStream,
    StreamingImageDataModule,
    TarRecords,
    TarStream,
)
from datamodules.images.stream_dataset import SHARD_BITS, Position, StreamLoader
from datamodules.record_dataset import TooManyCorruptRecords
from sparsight.common.errors import ConfigurationError
from tests.tiny_files import png, write_parquet, write_shard, write_tar
from tests.tiny_processes import together
from tests.tiny_rows import few


class MemoryStream(RecordStream):
    """Shards of unequal length; an image's value is its shard's number, its caption tells the rest."""

    def __init__(self, lengths: list[int], *, corrupt: tuple[tuple[int, int], ...] = ()) -> None:
        self.lengths = lengths
        self.corrupt = corrupt

    def _open(self) -> None:
        return

    @property
    def classes(self) -> list[str] | None:
        return None

    @property
    def shards(self) -> int:
        return len(self.lengths)

    def read(self, shard: int, start: int) -> Iterator[Any]:
        for position in range(start, self.lengths[shard]):
            yield CorruptRecord("torn") if (shard, position) in self.corrupt else (shard, position)

    def decode(self, raw: tuple[int, int]) -> Record:
        shard, position = raw
        return Record(id="", image=Image.new("L", (2, 2), shard), caption=f"{shard}/{position}")


LENGTHS = [5, 3, 7, 4, 6, 2]


def make(stream: RecordStream | None = None, **options: Any) -> StreamingImageDataModule:
    defaults: dict[str, Any] = {"image_size": 2, "transform": {"channels": 1}, "batch_size": 3, "shuffle_buffer": 4}
    module = StreamingImageDataModule(MemoryStream(LENGTHS) if stream is None else stream, **defaults | options)
    module.prepare_data()
    module.setup("fit")
    return module


def loader_of(processes: int = 1, rank: int = 0, **options: Any) -> StreamLoader:
    module = make(**options)
    loader = module.train_dataloader()
    if processes > 1:
        loader.dataset.processes, loader.dataset.rank = processes, rank
    return loader


def captions(loader: StreamLoader, batches: int) -> list[list[str]]:
    """The next batches, over the ends of Lightning's epochs."""
    found: list[list[str]] = []
    while len(found) < batches:
        for batch in loader:
            found.append(batch["caption"])
            if len(found) == batches:
                break
    return found


# --------------------------------------------------------------------------------------------------------------- order
@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (2, 0), (1, 2), (3, 2)])
def test_a_pass_meets_every_record_once(processes: int, workers: int) -> None:
    everything = sorted(f"{shard}/{position}" for shard, length in enumerate(LENGTHS) for position in range(length))
    first_pass: list[str] = []
    for rank in range(processes):
        dataset = loader_of(processes, rank, batch_size=1, num_workers=workers).dataset
        for worker in range(max(1, workers)):
            dataset.turn = worker  # in this process, without a loader
            for sample in dataset:
                if sample["position"][0] > 0:
                    break
                first_pass.append(sample["caption"])
    assert sorted(first_pass) == everything


def test_order_depends_on_seed_and_pass_and_is_shuffled_within_blocks_only() -> None:
    def order(**options: Any) -> list[str]:
        return [caption for batch in captions(loader_of(batch_size=1, **options), 27) for caption in batch]

    assert order() == order() != order(seed=1)
    plain = order(shuffle_buffer=1)
    assert [plain[i] for i in range(27)] != order() and sorted(plain) == sorted(order())
    shards = [int(caption.split("/")[0]) for caption in plain]
    assert list(dict.fromkeys(shards)) != sorted(set(shards))
    blocks = order(shuffle_buffer=4)
    for start in range(0, 27, 4):
        assert set(blocks[start : start + 4]) == set(plain[start : start + 4])
    two = [caption for batch in captions(loader_of(batch_size=1), 54) for caption in batch]
    assert sorted(two[:27]) == sorted(two[27:]) and two[:27] != two[27:]


def test_index_names_shard_and_position_and_flips_follow_the_pass() -> None:
    loader = loader_of()
    batch = next(iter(loader))
    assert set(batch) == {"image", "caption", "index"}
    for index, caption, image in zip(batch["index"].tolist(), batch["caption"], batch["image"], strict=True):
        shard, position = divmod(index, 1 << SHARD_BITS)
        assert caption == f"{shard}/{position}"
        torch.testing.assert_close(image, torch.full((1, 2, 2), shard / 127.5 - 1))


# -------------------------------------------------------------------------------------------------------------- resume
# within an epoch, at its end, passes later; workers are processes, which take long to start
@pytest.mark.parametrize(
    ("workers", "stops"), [(0, (1, 4, 5, 9, 13)), (2, (4,)), pytest.param(2, (5, 13), marks=pytest.mark.slow)]
)
def test_a_resumed_loader_delivers_what_the_first_would_have(workers: int, stops: tuple[int, ...]) -> None:
    options: dict[str, Any] = {"num_workers": workers, "batches_per_epoch": 5}
    whole = captions(loader_of(**options), 22)
    for stop in stops:
        loader = loader_of(**options)
        assert captions(loader, stop) == whole[:stop]
        state = loader.state_dict()
        assert state["delivered"] == stop % 5
        resumed = loader_of(**options)
        resumed.load_state_dict(state)
        assert len(list(resumed)) == 5 - stop % 5  # the rest of Lightning's epoch
        again = loader_of(**options)
        again.load_state_dict(state)
        assert captions(again, 22 - stop) == whole[stop:], stop


class Watcher(LightningModule):
    """Notes the records that it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.seen: list[list[str]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.seen.append(batch["caption"])
        return self.layer(batch["image"].flatten(1)).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, steps: int, checkpoint: Path | None = None, **options: Any) -> tuple[list[list[str]], Trainer]:
    watcher = Watcher()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=steps,
        max_epochs=-1,
        default_root_dir=folder,
    )
    trainer.fit(watcher, make(batches_per_epoch=4, **options), ckpt_path=checkpoint)
    return watcher.seen, trainer


@pytest.mark.filterwarnings("ignore:.*(many workers|logging interval|LeafSpec).*")
@pytest.mark.parametrize(("workers", "stops"), few([(0, (3, 4, 6)), (2, (3,)), (2, (4, 6))], (0, (3, 4, 6))))
def test_training_resumes_with_the_next_batch(tmp_path: Path, workers: int, stops: tuple[int, ...]) -> None:
    whole, _ = fit(tmp_path, 11, num_workers=workers)
    for stop in stops:
        first, trainer = fit(tmp_path, stop, num_workers=workers)
        trainer.save_checkpoint(tmp_path / "stop.ckpt")
        rest, _ = fit(tmp_path, 11, tmp_path / "stop.ckpt", num_workers=workers)
        assert first + rest == whole


def _state_of_a_process(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    loader = loader_of(2, rank)
    before = captions(loader, 3)
    state = loader.state_dict()  # what process 0 writes must serve both
    torch.save((before, captions(loader, 3), state), folder / f"{rank}.pt")


def test_a_checkpoint_of_process_0_resumes_all_processes_and_others_start_the_next_pass(tmp_path: Path) -> None:
    together(_state_of_a_process, tmp_path)
    saved = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    state = saved[0][2]
    for rank in range(2):
        resumed = loader_of(2, rank)
        resumed.load_state_dict(state)
        assert captions(resumed, 3) == saved[rank][1]
    assert not {c for batch in saved[0][0] for c in batch} & {c for batch in saved[1][0] for c in batch}
    other = loader_of(1)
    with pytest.warns(UserWarning, match="2 processes and 1 workers each, this run has 1 and 1: .* starts pass 1"):
        other.load_state_dict(state)
    assert other.dataset.positions == [Position(1)]


# ------------------------------------------------------------------------------------------------------ what goes wrong
@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_records_are_left_out_and_counted(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    module = make(MemoryStream([20], corrupt=((0, 3), (0, 19))), num_workers=workers)
    seen = [caption for batch in captions(module.train_dataloader(), 12) for caption in batch]
    assert set(seen) == {f"0/{position}" for position in range(20) if position not in (3, 19)}
    where = "record {} of shard 0 of MemoryStream: torn"
    assert module.corrupt == {3: where.format(3), 19: where.format(19)}
    assert caplog.text.count(f"skipped in train: {where.format(3)}") == 1
    many = make(MemoryStream([40], corrupt=tuple((0, p) for p in range(12))), num_workers=workers)
    with pytest.raises(TooManyCorruptRecords, match="12 of 15 records are unreadable, 10 are allowed"):
        captions(many.train_dataloader(), 14)
    none = make(MemoryStream([200], corrupt=tuple((0, p) for p in range(200))), num_workers=workers)
    with pytest.raises(TooManyCorruptRecords, match="101 unreadable records in a row"):
        captions(none.train_dataloader(), 1)


def test_what_cannot_work_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="6 shards cannot be shared out among 1 processes with 7 workers"):
        make(num_workers=7).train_dataloader()
    with pytest.raises(ValueError, match="hold no records"):
        next(iter(make(MemoryStream([0, 0])).train_dataloader()))
    for option in ("shuffle_buffer", "batches_per_epoch"):
        with pytest.raises(ValueError, match=f"{option} is 0"):
            make(**{option: 0})
    with pytest.raises(ValueError, match="batch_size is 0"):
        make(batch_size=0)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        make(TarStream(str(tmp_path / "*.tar")))
    with pytest.raises(ValueError, match="caption_column is 'caption'"):
        write_parquet(tmp_path / "0.parquet", 0, 2)
        make(HuggingFaceStream("parquet", str(tmp_path / "*.parquet"), caption_column="caption"))


# --------------------------------------------------------------------------------------------------------------- files
def test_tar_shards_stream_what_they_hold_and_a_damaged_one_costs_its_end(tmp_path: Path) -> None:
    for shard in range(3):
        write_shard(tmp_path / f"{shard}.tar", 10 * shard, 4)
    stream = TarStream(str(tmp_path / "*.tar"), caption="txt", label="cls")
    module = make(stream, val=TarRecords(str(tmp_path / "0.tar"), caption="txt", label="cls"), image_size=4)
    batches = [batch for _, batch in zip(range(4), module.train_dataloader(), strict=False)]
    numbers = {10 * shard + i for shard in range(3) for i in range(4)}
    assert {c for batch in batches for c in batch["caption"]} == {f"picture {n}" for n in numbers}
    for batch in batches:
        for caption, label in zip(batch["caption"], batch["label"].tolist(), strict=True):
            assert label == int(caption.split()[1]) % 3
    assert [c for batch in module.val_dataloader() for c in batch["caption"]] == [f"picture {n}" for n in range(4)]
    path = tmp_path / "1.tar"
    path.write_bytes(path.read_bytes()[: 512 * 9])
    damaged = make(stream, image_size=4)
    seen = {c for batch in captions(damaged.train_dataloader(), 8) for c in batch}
    assert {f"picture {n}" for n in numbers if n < 10 or n >= 20} <= seen and "picture 13" not in seen
    assert any("1.tar is damaged or cut off" in reason for reason in damaged.corrupt.values())


def tars(folder: Path, members: dict[str, bytes], shards: int = 2, **options: Any) -> StreamingImageDataModule:
    for shard in range(shards):
        write_tar(folder / f"{shard}.tar", {name.format(shard): content for name, content in members.items()})
    return make(TarStream(str(folder / "*.tar"), **options), image_size=4)


@pytest.mark.parametrize("workers", [0, 1])
def test_members_that_are_not_used_are_counted_and_named(
    tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = {name: png() for name in ("0.png", "1.png", "2.png", "2.gif", "3.png")}
    members = pictures | {"noname": b"x", "README.md": b"x", "b.c/d": b"x"}
    module = tars(tmp_path, members)
    module.num_workers = workers
    captions_of = [batch for _, batch in zip(range(6), module.train_dataloader(), strict=False)]
    assert all("unused" not in batch for batch in captions_of)
    assert set(module.unused) == {f"{shard}.tar/{name}" for shard in range(2) for name in ("noname", "b.c/d")} | {
        f"{shard}.tar/2.gif" for shard in range(2)
    }
    assert "TarStream, so far: " in caplog.text and "files are not used" in caplog.text
    assert caplog.text.count("so far") <= 3


def test_too_many_members_that_are_not_used_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.images.streaming._FIRST_RECORDS", 4)
    module = tars(tmp_path, {"0.png": png(0)} | {f"other{n}": b"x" for n in range(9)})
    with pytest.raises(ConfigurationError, match=r"TarStream has \d+ records and (9|18) files are not used: \d"):
        captions_of(module)


def captions_of(module: StreamingImageDataModule) -> list[Any]:
    return [batch for _, batch in zip(range(6), module.train_dataloader(), strict=False)]


def test_a_shard_without_any_record_is_a_bad_record_and_its_members_are_counted(tmp_path: Path) -> None:
    module = tars(tmp_path, {"0.png": png(0), "1.png": png(0), "2.png": png(0)}, label=None)
    write_tar(tmp_path / "9.tar", {"noname": b"x", "other": b"y"})
    module = make(TarStream(str(tmp_path / "*.tar")), image_size=4)
    captions_of(module)
    assert set(module.unused) == {"9.tar/noname", "9.tar/other"}
    assert any(re.search(r"record 0 of .*9\.tar: the shard holds no record", told) for told in module.corrupt.values())
    source = TarRecords(str(tmp_path / "*.tar"))
    assert len(source) == 7 and source.unused == ["9.tar/noname", "9.tar/other"]


def test_damage_is_told_by_file_and_member(tmp_path: Path) -> None:
    module = tars(
        tmp_path, {"0.png": png(0), "1.png": png(1), "d/2.png": b"no picture", "3.png": png(3, size=(99, 99))[:60]}
    )
    captions_of(module)
    told = set(module.corrupt.values())
    assert all("BytesIO" not in reason for reason in told)
    for shard in range(2):
        start = rf"record 2 of {tmp_path}/{shard}\.tar: member {shard}\.tar/d/2\.png: no picture of a known format"
        assert any(re.match(start, reason) for reason in told)
        assert any(re.match(rf"record 3 of .*{shard}\.tar: member {shard}\.tar/3\.png: ", reason) for reason in told)
    source = TarRecords(str(tmp_path / "0.tar"))
    with pytest.raises(CorruptRecord, match=r"^member 0\.tar/d/2\.png: no picture"):
        source[2]


def test_damage_of_a_streamed_table_is_told_by_file_and_row(tmp_path: Path) -> None:
    pictures = [{"bytes": picture, "path": None} for picture in (png(0), b"no picture", png(2))]
    pq.write_table(pa.table({"image": pictures}), tmp_path / "0.parquet")
    module = make(HuggingFaceStream("parquet", str(tmp_path / "*.parquet")), image_size=4, batch_size=1)
    captions_of(module)
    reason = module.corrupt[1]
    assert re.match(rf"row 1 of {tmp_path}/0\.parquet: no picture of a known format", reason)


def test_parquet_streams_from_a_position(tmp_path: Path) -> None:
    for shard in range(2):
        write_parquet(tmp_path / f"{shard}.parquet", 4 * shard, 4)
    stream = HuggingFaceStream("parquet", str(tmp_path / "*.parquet"), caption_column="text")
    module = make(stream, batch_size=2, image_size=(4, 6))
    assert stream.shards == 2
    whole = captions(module.train_dataloader(), 8)
    assert sorted(c for batch in whole[:4] for c in batch) == [f"picture {n}" for n in range(8)]
    loader = module.train_dataloader()
    captions(loader, 3)
    resumed = make(stream, batch_size=2, image_size=(4, 6)).train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    assert captions(resumed, 5) == whole[3:]


def test_yaml_builds_it(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", 0, 4)
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    text = f"""
data:
  class_path: datamodules.StreamingImageDataModule
  init_args:
    train: {{class_path: datamodules.TarStream, init_args: {{files: {tmp_path}/*.tar, caption: txt}}}}
    val: {{class_path: datamodules.TarRecords, init_args: {{files: {tmp_path}/*.tar, caption: txt}}}}
    image_size: 4
    transform: {{channels: 1}}
    batch_size: 2
"""
    module = parser.instantiate(parser.parse_string(text)).data
    module.prepare_data()
    module.setup("fit")
    assert next(iter(module.train_dataloader()))["image"].shape == (2, 1, 4, 4)
    assert len(list(module.val_dataloader())) == 2 and module.test_dataloader() == []


def test_the_yaml_of_the_guide_builds() -> None:
    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    snippets = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    assert len(snippets) == 7
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    for snippet in snippets:
        parser.instantiate(parser.parse_string(snippet))
