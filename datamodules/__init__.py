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
from datamodules.reform_eval.captioning import CaptioningTask
from datamodules.reform_eval.colour import ColourTask
from datamodules.reform_eval.counting import CountingTask
from datamodules.reform_eval.datamodule import ReformEvalDataModule
from datamodules.reform_eval.matching import MatchingTask
from datamodules.reform_eval.naming import NamingTask
from datamodules.reform_eval.position import PositionTask
from datamodules.reform_eval.published import PublishedTask
from datamodules.reform_eval.questions import QuestionsTask
from datamodules.reform_eval.reading import ReadingTask
from datamodules.reform_eval.reformulated import ReformulatedTask
from datamodules.reform_eval.rendered_text import RenderedTextRecords
from datamodules.reform_eval.task import EvaluationTask
from datamodules.streaming import StreamingImageDataModule
from datamodules.tar import TarRecords, TarStream
from datamodules.teacher_samples import TeacherSamplesDataModule
from datamodules.text_questions import TextQuestions
from sparsight.lvlm.chat.conversation import Conversation, Turn

__all__ = [
    "AspectBuckets",
    "CachedLatentsDataModule",
    "CaptioningTask",
    "ColourTask",
    "Conversation",
    "ConversationRecords",
    "CorruptRecord",
    "CountingTask",
    "EmojiRecords",
    "EvaluationTask",
    "FolderRecords",
    "HuggingFaceConversations",
    "HuggingFaceRecords",
    "HuggingFaceStream",
    "IdxRecords",
    "ImageDataModule",
    "InstructionDataModule",
    "LabelledQuestions",
    "MatchingTask",
    "MixedRecords",
    "NamingTask",
    "ParquetRecords",
    "PositionTask",
    "PublishedTask",
    "QuestionsTask",
    "ReadingTask",
    "Record",
    "RecordSource",
    "RecordStream",
    "ReformEvalDataModule",
    "ReformulatedTask",
    "RenderedTextRecords",
    "StreamingImageDataModule",
    "TarRecords",
    "TarStream",
    "TeacherSamplesDataModule",
    "TextQuestions",
    "Turn",
]
