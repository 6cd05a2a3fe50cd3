"""Data: record sources, and the datamodules that make batches of them."""

from datamodules.buckets import AspectBuckets
from datamodules.emoji import EmojiRecords
from datamodules.folder import FolderRecords
from datamodules.huggingface import HuggingFaceRecords
from datamodules.huggingface_stream import HuggingFaceStream
from datamodules.idx import IdxRecords
from datamodules.image import ImageDataModule
from datamodules.latents import CachedLatentsDataModule
from datamodules.parquet import ParquetRecords
from datamodules.records import CorruptRecord, Record, RecordSource, RecordStream
from datamodules.streaming import StreamingImageDataModule
from datamodules.tar import TarRecords, TarStream
from datamodules.teacher_samples import TeacherSamplesDataModule

__all__ = [
    "AspectBuckets",
    "CachedLatentsDataModule",
    "CorruptRecord",
    "EmojiRecords",
    "FolderRecords",
    "HuggingFaceRecords",
    "HuggingFaceStream",
    "IdxRecords",
    "ImageDataModule",
    "ParquetRecords",
    "Record",
    "RecordSource",
    "RecordStream",
    "StreamingImageDataModule",
    "TarRecords",
    "TarStream",
    "TeacherSamplesDataModule",
]
