"""Conversations as documents: special tokens between the turns, and only what the assistant says is trained."""

from collections.abc import Iterable, Mapping, Sequence

from headstart.training.data.bpe import SpecialSpan
from headstart.training.documents import Span, TextDocument

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
"""The special tokens that open a turn of each side, and the one that ends every turn."""

Message = tuple[str, str | Sequence[Span]]
"""A role, "user" or "assistant", and what is said."""


def chat_spans(messages: Iterable[Message]) -> list[Span]:
    """The spans of a conversation; the assistant's words and the mark that ends them are trained.

    Content that is given as spans keeps their `trained`.
    """
    spans: list[Span] = []
    for role, content in messages:
        answer = role == "assistant"
        spans.append(SpecialSpan(ASSISTANT if answer else USER, trained=False))
        spans.extend([Span(content, answer)] if isinstance(content, str) else content)
        spans.append(SpecialSpan(END, trained=answer))
    return spans


def chat_document(
    messages: Iterable[Message], id: str, metadata: Mapping[str, str | int | float] | None = None
) -> TextDocument:
    """A conversation as a document."""
    return TextDocument(tuple(chat_spans(messages)), id, metadata or {})
