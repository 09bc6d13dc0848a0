"""What training reads: documents as text, and the same as tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

Metadata = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Span:
    """A piece of a document's text; `trained` says whether its tokens are predicted (else they are only read)."""

    text: str
    trained: bool = True


@dataclass(frozen=True)
class TextDocument:
    """A document before tokenisation. Its spans are tokenised one by one, so no token crosses their borders.

    Attributes:
        spans: its text in order.
        id: unique within its source.
        metadata: what is known of it (source, author, url, ...), kept beside the text to the very end.
    """

    spans: tuple[Span, ...]
    id: str
    metadata: Metadata = field(default_factory=dict)

    @classmethod
    def of(cls, text: str, id: str, **metadata: str | int | float) -> "TextDocument":
        """A document of one trained span."""
        return cls((Span(text),), id, metadata)

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(span.text for span in self.spans)


@dataclass(frozen=True, eq=False)
class Document:
    """A document as tokens, without the marks that packing puts around it.

    Attributes:
        token_ids: `[N]` int32.
        trained: `[N]` bool, which tokens are predicted; None is all.
        id: unique within its source.
        metadata: as in `TextDocument`.
    """

    token_ids: np.ndarray
    trained: np.ndarray | None
    id: str
    metadata: Metadata = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.token_ids)
