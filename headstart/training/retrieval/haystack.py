"""Text to hide things in: excerpts of books, and a few sentences repeated over and over."""

import bisect
import itertools
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

from headstart.errors import HeadstartError
from headstart.training.data.readers import read_documents

_SENTENCE_END = re.compile(r"[.!?][\"')]*(?=\s)")
_WORD = re.compile(r"[^\W\d_]+")
_SHORTEST_TEXT = 400

_NOISE = (
    "The grass is tall.",
    "The road is long.",
    "It rained in the morning.",
    "Then the clouds went away.",
    "A dog barks somewhere.",
    "The clock goes on ticking.",
    "Nothing new has happened.",
    "We go up the hill.",
    "We come down again.",
    "The river runs to the sea.",
    "Birds sit on the wire.",
    "The kettle is on the stove.",
    "Somebody closes a door.",
    "The wind blows from the west.",
    "Leaves fall to the ground.",
    "There is snow on the roof.",
    "The bread is still warm.",
    "One page follows another.",
    "The train is late today.",
    "Here it begins once more.",
    "The lamp is lit at night.",
    "The moon is round and white.",
    "Children play in the yard.",
    "The day is almost over.",
)


class Haystack:
    """Texts from which excerpts are drawn, each text as often as it is long.

    Args:
        texts: whole texts; those under 400 characters are left out.

    Raises:
        HeadstartError: no text is long enough.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = [text for text in texts if len(text) >= _SHORTEST_TEXT]
        if not self._texts:
            raise HeadstartError(f"the haystack has no text of at least {_SHORTEST_TEXT} characters; name other files")
        self._ends = list(itertools.accumulate(map(len, self._texts)))

    @cached_property
    def common_words(self) -> frozenset[str]:
        """The 5,000 most frequent words of the first pages of the texts."""
        counts: Counter[str] = Counter()
        pages = max(2000, 3_000_000 // len(self._texts))
        for text in self._texts:
            counts.update(_WORD.findall(text, 0, pages))
        return frozenset(word for word, _ in counts.most_common(5000))

    @classmethod
    def open(cls, source: "Haystack | str | Path | Sequence[str | Path]") -> "Haystack":
        """A haystack from files as `read_documents` takes them, read once per process.

        Raises:
            DataError: a file that is missing or unreadable, or a record without a field "text".
            HeadstartError: no text is long enough.
        """
        if isinstance(source, Haystack):
            return source
        paths = [source] if isinstance(source, str | Path) else source
        return _open_files(tuple(str(path) for path in paths))

    def excerpt(self, rng: random.Random, length: int) -> str:
        """At least `length` characters from one place, or from several when texts end before."""
        parts: list[str] = []
        missing = length
        while missing > 0:
            place = rng.randrange(self._ends[-1])
            number = bisect.bisect_right(self._ends, place)
            text = self._texts[number]
            # Where a whole text fits, its end is not run into sooner than needed.
            start = min(place - (self._ends[number] - len(text)), max(0, len(text) - missing - 2000))
            start = _next_start(text, start)
            part = text[start : start + missing].strip()
            parts.append(part)
            missing -= len(part) + 2
        return "\n\n".join(parts)


def noise(rng: random.Random, length: int) -> str:
    """At least `length` characters of three to six sentences, repeated in one order."""
    sentences = " ".join(rng.sample(_NOISE, rng.randint(3, 6)))
    separator = rng.choice((" ", " ", "\n"))
    return separator.join(itertools.repeat(sentences, length // len(sentences) + 1))


def cut(text: str, length: int) -> str:
    """The first `length` characters of `text`, or a little less, to end with a sentence or at least a word."""
    if length >= len(text):
        return text
    slack = max(40, length // 66)
    ends = [found.end() for found in _SENTENCE_END.finditer(text, max(0, length - slack), length + 1)]
    if ends:
        return text[: ends[-1]]
    space = text.rfind(" ", 0, length + 1)
    return text[: space if space > 0 else length].rstrip(" ,;:-") + "."


def insert(text: str, units: Sequence[str], rng: random.Random) -> list[tuple[str, bool]]:
    """`text` with `units` put between its sentences, in their order, at places drawn uniformly.

    Sentences stand in the running text, other units on lines of their own.

    Returns:
        Pieces in order with whether each comes from `text`.
    """
    places = sorted(rng.randrange(len(text) + 1) for _ in units)
    pieces: list[tuple[str, bool]] = []
    done = 0
    for place, unit in zip(places, units, strict=True):
        if place > done:
            found = _SENTENCE_END.search(text, place)
            end = found.end() if found else len(text)
            pieces.append((_after(pieces, text[done:end]), True))
            done = end
        in_line = unit.endswith((".", "!", "?")) and "\n" not in unit
        separator = "" if not pieces or pieces[-1][0].endswith("\n") else " " if in_line else "\n"
        pieces.append((separator + unit if in_line else f"{separator}{unit}\n", False))
    if done < len(text):
        pieces.append((_after(pieces, text[done:]), True))
    return pieces


def _after(pieces: Sequence[tuple[str, bool]], text: str) -> str:
    """`text` as it goes on after `pieces`: a new line begins without space."""
    return text.lstrip() if pieces and pieces[-1][0].endswith("\n") else text


def _next_start(text: str, start: int) -> int:
    if start <= 0:
        return 0
    paragraph = text.find("\n\n", start, start + 1000)
    if paragraph >= 0:
        return paragraph + 2
    sentence = _SENTENCE_END.search(text, start, start + 1000)
    return sentence.end() + 1 if sentence else start


@lru_cache(maxsize=4)
def _open_files(paths: tuple[str, ...]) -> Haystack:
    return Haystack(document.text for path in paths for document in read_documents(path))
