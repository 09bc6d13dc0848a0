"""What a retrieval task is made of: a context to read, and questions whose answers the context holds."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from headstart.training.retrieval.haystack import Haystack
from headstart.training.retrieval.ruler import Ruler

_MOST_CHARS_PER_TOKEN = 6


class PoolExhausted(Exception):
    """There are not so many different words of a kind."""


@dataclass(frozen=True)
class Turn:
    """One question with its answer.

    Attributes:
        question: a full sentence or command.
        answer: the bare answer.
        lead: how an answer in a full sentence begins, perhaps with an opening quote; empty when there is no such way
            to say it.
    """

    question: str
    answer: str
    lead: str = ""


@dataclass
class Room:
    """What a kind of task has at its disposal.

    Attributes:
        rng: the document's own stream.
        tokens: the size of the whole document.
        questions: how many questions a kind that can ask several should ask.
        haystack: prose to hide things in.
        ruler: what measures tokens.
        files: where the kinds that read a data set find it, by kind.
    """

    rng: random.Random
    tokens: int
    questions: int
    haystack: Haystack
    ruler: Ruler
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _prose: str | None = None
    _used: set[str] = field(default_factory=set)

    @property
    def prose(self) -> str:
        """The document's stretch of prose, drawn at the first use; at least as long as the document."""
        if self._prose is None:
            self._prose = self.haystack.excerpt(self.rng, self.tokens * _MOST_CHARS_PER_TOKEN)
        return self._prose

    def unused(self, draw: Callable[[random.Random], str]) -> str:
        """A word from `draw` that no other part of the document uses, the prose included.

        Raises:
            PoolExhausted: none was found in a thousand draws.
        """
        for _ in range(1000):
            word = draw(self.rng)
            if word not in self._used and (self._prose is None or word not in self._prose):
                self._used.add(word)
                return word
        raise PoolExhausted("a pool of words is exhausted")


@dataclass
class Exercise:
    """A task before it is laid out as a document.

    Attributes:
        units: what must stand in the context, in this order: sentences, lines, records, blocks.
        turns: the questions.
        opening: what the reader is told to do.
        filler: what stands between the units: "prose", "noise" (a few sentences over and over), or "units" (more of
            the same, from `more`).
        more: given a number of tokens, roughly so many tokens of units that change no answer; none when there are no
            more.
        render: units → the context's text, for `filler="units"`.
        continues: the questions go on in the form of the context itself, without a frame around them.
    """

    units: list[str]
    turns: list[Turn]
    opening: str
    filler: str = "prose"
    more: Callable[[float], Sequence[str]] | None = None
    render: Callable[[Sequence[str]], str] = "\n".join
    continues: bool = False
