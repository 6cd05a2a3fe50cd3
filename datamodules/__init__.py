"""Data: record sources, and the datamodules that make batches of them."""

from datamodules.buckets import AspectBuckets
from datamodules.conversations import ConversationRecords
from datamodules.emoji import EmojiRecords
from datamodules.folder import FolderRecords
from datamodules.huggingface import HuggingFaceRecords
from datamodules.huggingface_conversations import HuggingFaceConversations
from datamodules.huggingface_stream import HuggingFaceStream
from datamodules.idx import IdxRecords
from datamodules.image import ImageDataModule
from datamodules.instruction import InstructionDataModule
from datamodules.latents import CachedLatentsDataModule
from datamodules.mixed import MixedRecords
from datamodules.parquet import ParquetRecords
from datamodules.questions import LabelledQuestions
from datamodules.records import CorruptRecord, Record, RecordSource, RecordStream
from datamodules.streaming import StreamingImageDataModule
from datamodules.tar import TarRecords, TarStream
from datamodules.teacher_samples import TeacherSamplesDataModule
from datamodules.text_questions import TextQuestions
from sparsight.lvlm.conversation import Conversation, Turn

__all__ = [
    "AspectBuckets",
    "CachedLatentsDataModule",
    "Conversation",
    "ConversationRecords",
    "CorruptRecord",
    "EmojiRecords",
    "FolderRecords",
    "HuggingFaceConversations",
    "HuggingFaceRecords",
    "HuggingFaceStream",
    "IdxRecords",
    "ImageDataModule",
    "InstructionDataModule",
    "LabelledQuestions",
    "MixedRecords",
    "ParquetRecords",
    "Record",
    "RecordSource",
    "RecordStream",
    "StreamingImageDataModule",
    "TarRecords",
    "TarStream",
    "TeacherSamplesDataModule",
    "TextQuestions",
    "Turn",
]
