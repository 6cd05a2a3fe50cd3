"""Data: record sources, and the datamodules that make batches of them."""

from datamodules.allowed import AllowedImages, AllowedRecords, AllowedSamples
from datamodules.conversations.batching import Batching
from datamodules.conversations.chat_options import ChatOptions, InstructionChatOptions
from datamodules.conversations.huggingface_conversations import HuggingFaceConversations
from datamodules.conversations.instruction import InstructionDataModule
from datamodules.conversations.llava import ConversationRecords
from datamodules.conversations.questions import LabelledQuestions
from datamodules.conversations.text_questions import TextQuestions
from datamodules.evaluation.benchmarks.benchmark import BenchmarkTask
from datamodules.evaluation.benchmarks.choice import MMBenchTask, ScienceQATask, SEEDTask
from datamodules.evaluation.benchmarks.free import GQATask, TextVQATask, VQAv2Task
from datamodules.evaluation.benchmarks.grounding import GroundingTask
from datamodules.evaluation.benchmarks.mmmu import MMMUTask
from datamodules.evaluation.benchmarks.pixels import PixelsTask
from datamodules.evaluation.benchmarks.tempcompass import TempCompassTask
from datamodules.evaluation.benchmarks.yes_no import MMETask, POPETask
from datamodules.evaluation.datamodule import ReformEvalDataModule
from datamodules.evaluation.protocol_options import ProtocolOptions
from datamodules.evaluation.published import PublishedTask
from datamodules.evaluation.task import EvaluationTask
from datamodules.evaluation.task_questions import TaskQuestions
from datamodules.evaluation.tasks.captioning import CaptioningTask
from datamodules.evaluation.tasks.colour import ColourTask
from datamodules.evaluation.tasks.counting import CountingTask
from datamodules.evaluation.tasks.matching import MatchingTask
from datamodules.evaluation.tasks.naming import NamingTask
from datamodules.evaluation.tasks.position import PositionTask
from datamodules.evaluation.tasks.questions import QuestionsTask
from datamodules.evaluation.tasks.reading import ReadingTask
from datamodules.evaluation.tasks.reformulated import ReformulatedTask
from datamodules.evaluation.tasks.rendered_text import RenderedTextRecords
from datamodules.images.buckets import AspectBuckets
from datamodules.images.image import ImageDataModule
from datamodules.images.latents import CachedLatentsDataModule
from datamodules.images.streaming import StreamingImageDataModule
from datamodules.images.teacher_options import TeacherSamplesLoading, TeacherSampling
from datamodules.images.teacher_samples import TeacherSamplesDataModule
from datamodules.images.transform_options import TransformOptions
from datamodules.sources.emoji import EmojiRecords
from datamodules.sources.folder import FolderRecords
from datamodules.sources.huggingface import HuggingFaceRecords
from datamodules.sources.huggingface_stream import HuggingFaceStream
from datamodules.sources.idx import IdxRecords
from datamodules.sources.mixed import MixedRecords
from datamodules.sources.parquet import ParquetRecords
from datamodules.sources.records import CorruptRecord, Record, RecordSource, RecordStream
from datamodules.sources.tar import TarRecords, TarStream
from sparsight.lvlm.chat.conversation import Conversation, Turn

__all__ = [
    "AllowedImages",
    "AllowedRecords",
    "AllowedSamples",
    "AspectBuckets",
    "Batching",
    "BenchmarkTask",
    "CachedLatentsDataModule",
    "CaptioningTask",
    "ChatOptions",
    "ColourTask",
    "Conversation",
    "ConversationRecords",
    "CorruptRecord",
    "CountingTask",
    "EmojiRecords",
    "EvaluationTask",
    "FolderRecords",
    "GQATask",
    "GroundingTask",
    "HuggingFaceConversations",
    "HuggingFaceRecords",
    "HuggingFaceStream",
    "IdxRecords",
    "ImageDataModule",
    "InstructionChatOptions",
    "InstructionDataModule",
    "LabelledQuestions",
    "MMBenchTask",
    "MMETask",
    "MMMUTask",
    "MatchingTask",
    "MixedRecords",
    "NamingTask",
    "POPETask",
    "ParquetRecords",
    "PixelsTask",
    "PositionTask",
    "ProtocolOptions",
    "PublishedTask",
    "QuestionsTask",
    "ReadingTask",
    "Record",
    "RecordSource",
    "RecordStream",
    "ReformEvalDataModule",
    "ReformulatedTask",
    "RenderedTextRecords",
    "SEEDTask",
    "ScienceQATask",
    "StreamingImageDataModule",
    "TarRecords",
    "TarStream",
    "TaskQuestions",
    "TeacherSamplesDataModule",
    "TeacherSamplesLoading",
    "TeacherSampling",
    "TempCompassTask",
    "TextQuestions",
    "TextVQATask",
    "TransformOptions",
    "Turn",
    "VQAv2Task",
]
