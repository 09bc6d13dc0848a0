"""What surrounds the needles: prose, repeated noise, or records that look like needles."""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol

from headstart.errors import HeadstartError
from headstart.texts import wild_wood

# Five short sentences that say nothing, as the noise of the passkey task (arXiv 2305.16300) does.
NOISE = "The hills are old. The river is slow. The road is long. On we walk. Home and out once more."
_HEADING = re.compile(r"^[IVX]+\. .*$", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])['\")]*\s+(?=['\"(]?[A-Z])")


class Haystack(Protocol):
    """Text in pieces, between which needles may lie; `between` joins them."""

    between: str

    def pieces(self, amount: int) -> list[str]:
        """The first pieces, `amount` units (words or records) in all."""
        ...


def sentences(text: str) -> list[str]:
    """The sentences of a text, white space made single."""
    return _SENTENCE_END.split(" ".join(text.split()))


class Cycled:
    """Pieces repeated from the start as often as needed. The unit is the word; the last piece may be cut."""

    def __init__(self, pieces: Sequence[str], between: str) -> None:
        self.between = between
        self._pieces = list(pieces)
        self._ends = list(accumulate(len(piece.split()) for piece in pieces))

    def pieces(self, amount: int) -> list[str]:
        """`amount` words."""
        rounds, rest = divmod(amount, self._ends[-1])
        whole = bisect_left(self._ends, rest + 1)
        found = self._pieces * rounds + self._pieces[:whole]
        words = rest - (self._ends[whole - 1] if whole else 0)
        if words:
            found.append(" ".join(self._pieces[whole].split()[:words]))
        return found


def prose(text: str | None = None) -> Cycled:
    """Sentences of a text; default: the story that comes with the package.

    Raises:
        HeadstartError: the text has no words.
    """
    found = sentences(_HEADING.sub("", wild_wood().text) if text is None else text)
    if not any(found):
        raise HeadstartError("the haystack text is empty: needles need some prose to be hidden in")
    return Cycled(found, " ")


def noise() -> Cycled:
    """Lines that say nothing."""
    return Cycled([NOISE], "\n")


class Records:
    """Pieces made one after another, each of them once; the unit is the piece."""

    def __init__(self, make: Callable[[int], str], between: str = "\n") -> None:
        self.between = between
        self._make = make
        self._made: list[str] = []

    def pieces(self, amount: int) -> list[str]:
        """The first `amount` records."""
        while len(self._made) < amount:
            self._made.append(self._make(len(self._made)))
        return self._made[:amount]


def insert(pieces: Sequence[str], needles: Sequence[str], positions: Sequence[int]) -> list[str]:
    """The pieces with needle i before what was piece `positions[i]`; positions ascend."""
    found: list[str] = []
    start = 0
    for needle, position in zip(needles, positions, strict=True):
        found += pieces[start:position]
        found.append(needle)
        start = position
    return found + list(pieces[start:])
