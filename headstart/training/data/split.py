"""The held-out split, and the guard that keeps what is held out away from training."""

from collections.abc import Iterable, Iterator
from hashlib import blake2b

import numpy as np

from headstart.training.data.dedup import Shingles
from headstart.training.data.errors import DataError
from headstart.training.data.stages import Drops
from headstart.training.documents import TextDocument

REASON = "holds held-out text"


class Split:
    """Which documents are held out: by a hash of the id, or of a field whose documents must stay together.

    Neither the order of documents nor other documents matter, so that more data never moves a document.

    Args:
        fraction: of ids or values of the field that are held out, from 0 to 1.
        by: metadata field, e.g. `author`; None is the id.
        seed: another one gives another split.
    """

    def __init__(self, fraction: float, by: str | None = None, seed: int = 0) -> None:
        if not 0 <= fraction <= 1:
            raise DataError(f"the held-out fraction must be from 0 to 1, not {fraction}")
        self._fraction, self._by, self._seed = fraction, by, seed

    def is_held_out(self, document: TextDocument) -> bool:
        """Whether training must not see the document.

        Raises:
            DataError: the document lacks the field.
        """
        key = document.id
        if self._by is not None:
            if self._by not in document.metadata:
                raise DataError(
                    f"document {document.id} has no metadata field {self._by!r} to split by; it has "
                    f"{', '.join(document.metadata) or 'none'}"
                )
            key = str(document.metadata[self._by])
        digest = blake2b(f"{self._seed}/{key}".encode(errors="replace"), digest_size=8).digest()
        return int.from_bytes(digest, "little") < self._fraction * 2**64


class HeldOutGuard:
    """Drops training documents that share much text with held-out ones, as a whole or inside a longer document.

    A document is dropped if, of its own runs of words or of those of any one held-out document, the share found in
    the other reaches the threshold.

    Args:
        threshold: share of common runs, from 0 to 1.
        words: words of a run.
    """

    def __init__(self, threshold: float = 0.5, words: int = 8) -> None:
        if not 0 < threshold <= 1:
            raise DataError(f"the threshold of held-out text must be above 0 and at most 1, not {threshold}")
        self._threshold, self._shingles = threshold, Shingles(words)
        self._parts: list[np.ndarray] = []
        self._hashes: np.ndarray | None = None

    def add(self, document: TextDocument) -> None:
        """Hold a document out. All must be added before the first check."""
        self._parts.append(self._shingles(document.text))
        self._hashes = None

    def __call__(self, documents: Iterable[TextDocument], drops: Drops) -> Iterator[TextDocument]:
        """The documents that share little with what is held out: a preparation stage."""
        for document in documents:
            if self.leaks(document):
                drops[REASON] += 1
            else:
                yield document

    def leaks(self, document: TextDocument) -> bool:
        """Whether training on the document would show held-out text."""
        if self._hashes is None:
            self._build()
        own = self._shingles(document.text)
        if not len(own) or self._hashes is None or not len(self._hashes):
            return False
        starts, ends = (np.searchsorted(self._hashes, own, side=side) for side in ("left", "right"))
        if np.count_nonzero(ends > starts) >= self._threshold * len(own):
            return True
        # Every owner of every common run, by the held-out document's number.
        counts = ends - starts
        firsts = np.repeat(starts - np.cumsum(counts) + counts, counts)
        found = np.bincount(self._owners[firsts + np.arange(len(firsts))], minlength=len(self._sizes))
        return bool(np.any(found[self._sizes > 0] >= self._threshold * self._sizes[self._sizes > 0]))

    def _build(self) -> None:
        self._sizes = np.array([len(part) for part in self._parts], np.int64)
        hashes = np.concatenate([np.empty(0, np.uint64), *self._parts])
        owners = np.repeat(np.arange(len(self._parts)), self._sizes)
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._owners = hashes[order], owners[order]
