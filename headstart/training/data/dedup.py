"""Near-duplicates: documents whose shingles of words are mostly the same, found by MinHash and LSH."""

import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any

import numpy as np

from headstart.training.data.errors import DataError
from headstart.training.data.stages import Drops
from headstart.training.documents import TextDocument

_WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_AT_ONCE = 1 << 12
REASON = "near-duplicate"


class Shingles:
    """Hashes of the runs of `words` words of a text, as uint64 `[n]`; case and punctuation do not count.

    A text of fewer words is one run.
    """

    def __init__(self, words: int) -> None:
        self.words = words
        self._hashes = _WordHashes()

    def __call__(self, text: str) -> np.ndarray:
        found = _WORD.findall(text.lower())
        if not found:
            return np.empty(0, np.uint64)
        hashes = np.fromiter(map(self._hashes.__getitem__, found), np.uint64, len(found))
        size = min(self.words, len(found))
        count = len(found) - size + 1
        runs = np.zeros(count, np.uint64)
        for i in range(size):
            runs = runs * _MULTIPLIER + hashes[i : i + count]
        # Mixed, since a polynomial alone is nearly linear in its words.
        runs ^= runs >> np.uint64(31)
        runs *= _MULTIPLIER
        runs ^= runs >> np.uint64(29)
        return np.unique(runs)


class _WordHashes(dict[str, int]):
    """Word → 64 bits, the same in every process."""

    _MOST = 1 << 21

    def __missing__(self, word: str) -> int:
        if len(self) >= self._MOST:
            self.clear()
        value = self[word] = int.from_bytes(blake2b(word.encode(errors="replace"), digest_size=8).digest(), "little")
        return value


class Deduplicator:
    """Keeps of documents that are nearly the same the first one, over all sources that go through it.

    Two documents are nearly the same if the MinHash estimate of the Jaccard similarity of their shingles reaches the
    threshold.

    Args:
        threshold: of the similarity, from 0 to 1.
        words: words of a shingle.
        permutations: of MinHash; the estimate's standard deviation is at most `0.5 / sqrt(permutations)`.

    Raises:
        DataError: a threshold out of range, or the package datasketch is missing.
    """

    def __init__(self, threshold: float = 0.8, words: int = 5, permutations: int = 128) -> None:
        if not 0 < threshold <= 1:
            raise DataError(f"the threshold of near-duplicates must be above 0 and at most 1, not {threshold}")
        try:
            import datasketch
        except ImportError:
            raise DataError(
                "finding near-duplicates needs the package datasketch; run: pip install datasketch"
            ) from None
        self.threshold = threshold
        self._shingles = Shingles(words)
        self._new: Any = lambda: datasketch.MinHash(permutations, hashfunc=int, scheme="affine64")
        # Candidates are checked, so a wrong one costs little and a missed one is a duplicate.
        self._index: Any = datasketch.MinHashLSH(threshold, permutations, weights=(0.1, 0.9))
        self._kept: list[Any] = []

    def __call__(self, documents: Iterable[TextDocument], drops: Drops) -> Iterator[TextDocument]:
        """The documents that are not nearly the same as an earlier one: a preparation stage."""
        for document in documents:
            if self.is_new(document.text):
                yield document
            else:
                drops[REASON] += 1

    def is_new(self, text: str) -> bool:
        """Whether no earlier text is nearly the same; if so, the text is remembered."""
        sketch = self._sketch(text)
        if any(self._kept[number].jaccard(sketch) >= self.threshold for number in self._index.query(sketch)):
            return False
        self._remember(sketch)
        return True

    def signatures(self, start: int = 0) -> np.ndarray:
        """What is remembered of the texts from the `start`-th on, `[n, permutations]`."""
        return np.array([sketch.hashvalues for sketch in self._kept[start:]])

    def restore(self, signatures: np.ndarray) -> None:
        """Remember texts by their signatures."""
        for values in signatures:
            sketch = self._new()
            sketch.hashvalues = values
            self._remember(sketch)

    def __len__(self) -> int:
        return len(self._kept)

    def _remember(self, sketch: Any) -> None:
        self._index.insert(len(self._kept), sketch)
        self._kept.append(sketch)

    def _sketch(self, text: str) -> Any:
        sketch, hashes = self._new(), self._shingles(text)
        # In parts that stay in the processor's cache: every part is multiplied by all permutations.
        for start in range(0, len(hashes), _AT_ONCE):
            sketch.update_batch(hashes[start : start + _AT_ONCE].tolist())
        return sketch
