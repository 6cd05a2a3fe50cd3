"""Options of how conversations are written as a model's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from datamodules.conversations.question_template import QuestionTemplate
from sparsight.common.errors import require
from sparsight.lvlm.chat.chat_text import Reasoning


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """How a model's processor writes conversations.

    Args:
        template: Jinja template, or a file of one, in place of the processor's own.
        template_kwargs: Variables of the template, such as ``{enable_thinking: false}`` (Qwen3).
        processor_options: Options of processor and image processor in place of the saved ones, such as ``max_pixels``
            (Qwen-VL) or ``max_patches`` (InternVL). Exports hold the processor with them.
    """

    template: str | None = None
    template_kwargs: dict[str, Any] | None = None
    processor_options: dict[str, Any] | None = None

    @property
    def processor_changes(self) -> dict[str, Any]:
        """What differs from the saved processor, as ``load_processor`` takes it."""
        return {"chat_template": self.template, "options": self.processor_options}


@dataclass(frozen=True, kw_only=True)
class InstructionChatOptions(ChatOptions):
    """How records become conversations, and a model's processor writes these.

    Args:
        question: What is asked about images that have labels or captions but no conversation.
        answer: The answer to it: ``{label}`` (name of the class, all classes being candidates) or ``{caption}``.
        reasoning: What happens to thoughts (``reasoning`` of a turn, or what stands between ``<think>`` marks): they
            are left out (``leave_out``), written without loss (``show``), or with it (``train``), wherever the template
            writes them; many leave out those of earlier turns. Thoughts that a template adds have no loss.
        template: Jinja template, or a file of one, in place of the processor's own.
        template_kwargs: Variables of the template, such as ``{enable_thinking: false}`` (Qwen3).
        processor_options: Options of processor and image processor in place of the saved ones, such as ``max_pixels``
            (Qwen-VL) or ``max_patches`` (InternVL). Exports hold the processor with them.

    Raises:
        ValueError: Only one of question and answer is given, they hold other fields, or ``reasoning`` is none of these.
    """

    question: str | None = None
    answer: str | None = None
    reasoning: Reasoning = "show"

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        QuestionTemplate(self.question, self.answer)
        require(self.reasoning in get_args(Reasoning), "reasoning", self.reasoning, ", ".join(get_args(Reasoning)))
