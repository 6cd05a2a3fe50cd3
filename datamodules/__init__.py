"""Data: record sources, and the datamodules that make batches of them."""

from datamodules.folder import FolderRecords
from datamodules.huggingface import HuggingFaceRecords
from datamodules.idx import IdxRecords
from datamodules.image import ImageDataModule
from datamodules.records import CorruptRecord, Record, RecordSource
from datamodules.teacher_samples import TeacherSamplesDataModule

__all__ = [
    "CorruptRecord",
    "FolderRecords",
    "HuggingFaceRecords",
    "IdxRecords",
    "ImageDataModule",
    "Record",
    "RecordSource",
    "TeacherSamplesDataModule",
]
