"""Needles in a haystack: RULER's eight variants, and the picture of length against depth.

Follows the definitions of RULER (arXiv 2404.06654) at commit c3f5e3b4f87f97e048793bb510a3a6b19a46bf3a of its official
repository, `scripts/synthetic.yaml` and `scripts/data/synthetic/niah.py`: haystack, number of needles, keys, values
and queries, kinds of keys and values, 40 depths for needles in prose and any line in the other haystacks, 128 tokens
for the answer within the length, and the share of values found as the score.

It differs in wording, in the prose (a story, not essays; split into sentences by a rule), in the noise sentences, and
in the word lists; two needles of an example never share a key; the answer gets more than 128 tokens where a tokenizer
cuts its values into more.
"""

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from headstart.evaluation.tasks.base import Example, Task, TextEncoder, draw, fit, room_for
from headstart.evaluation.tasks.haystack import Haystack, Records, insert, noise, prose
from headstart.evaluation.tasks.scoring import match_all
from headstart.words import pool

KeyKind = Literal["words", "uuids"]
ValueKind = Literal["numbers", "uuids"]

RULER_DEPTHS = tuple(round(100 * step / 39) for step in range(40))
# In an order in which the first few already span the context.
PICTURE_DEPTHS = (50, 0, 100, 20, 80, 10, 90, 30, 70, 40, 60)
_ANSWER_TOKENS = 128
_NOUNS = {"numbers": "secret number", "uuids": "secret code"}


def random_uuid(draw: random.Random) -> str:
    """A version 4 UUID."""
    return str(uuid.UUID(int=draw.getrandbits(128), version=4))


def random_word(draw: random.Random) -> str:
    """An adjective and a noun that no training task uses, hyphenated."""
    return f"{draw.choice(pool('adjective', 'evaluation'))}-{draw.choice(pool('noun', 'evaluation'))}"


def random_number(draw: random.Random) -> str:
    """Seven digits."""
    return str(draw.randint(1_000_000, 9_999_999))


def needle(value_kind: ValueKind, key: str, value: str) -> str:
    """The sentence that hides a value."""
    return f"Note that the {_NOUNS[value_kind]} for {key} is {value}."


@dataclass
class NeedleTask(Task):
    """Needles in a haystack.

    Args:
        key: the task's name.
        haystack: what surrounds the needles; `needles` are further needles with other keys.
        key_kind: what needles are asked for by.
        value_kind: what is asked for.
        keys: keys with needles, of which `queries` are asked for.
        values: needles for each key.
        queries: keys asked for.
        text: prose for the haystack (default: the story that comes with the package).
    """

    key: str
    haystack: Literal["noise", "prose", "needles"]
    key_kind: KeyKind = "words"
    value_kind: ValueKind = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1
    text: str | None = None
    metric: str = "share of the values found"

    def __post_init__(self) -> None:
        self.about = (
            f"{self.queries * self.values} of {self.keys * self.values} {_NOUNS[self.value_kind]}(s) in {self.haystack}"
        )

    def examples(self, tokenizer: TextEncoder, length: int, count: int, seed: int) -> Iterator[Example]:
        lines = noise() if self.haystack == "noise" else prose(self.text) if self.haystack == "prose" else None
        for index in range(count):
            yield self._example(tokenizer, length, seed, index, lines)

    def score(self, example: Example, output: str) -> float:
        return match_all(example.answers, output)

    def depths(self, index: int, random: random.Random) -> list[int]:
        """Where the needles of an example lie in prose, in percent, ascending."""
        return sorted(random.sample(RULER_DEPTHS, self.keys * self.values))

    def _example(self, tokenizer: TextEncoder, length: int, seed: int, index: int, lines: Haystack | None) -> Example:
        random = draw(self.key, seed, index)
        keys = self._distinct(random, self.keys)
        hidden = {key: [self._value(random) for _ in range(self.values)] for key in keys}
        needles = [needle(self.value_kind, key, value) for key in keys for value in hidden[key]]
        random.shuffle(needles)
        asked = random.sample(keys, self.queries)
        answers = tuple(value for key in asked for value in hidden[key])
        depths = self.depths(index, random)
        haystack = lines or self._distractors(seed, index, set(keys))
        at = [random.random() for _ in needles]

        def positions(pieces: int) -> list[int]:
            if self.haystack == "prose":
                return [int(pieces * depth / 100) for depth in depths]
            return sorted(int(pieces * fraction) for fraction in at)

        before, question, prefix = self._frame(asked)

        def prompt(amount: int) -> str:
            pieces = haystack.pieces(amount)
            context = haystack.between.join(insert(pieces, needles, positions(len(pieces))))
            return f"{before}\n{context}\n{question}"

        room = room_for(tokenizer, answers, _ANSWER_TOKENS)
        text = fit(tokenizer, length - room, lambda amount: prompt(amount) + prefix, self.key)
        metadata: dict[str, object] = {"needles": len(needles)}
        if self.haystack == "prose":
            metadata |= {"depth": depths[0]} if isinstance(self, DepthTask) else {"depths": depths}
        prompt_text = text.removesuffix(prefix)
        return Example(f"{self.key}-{length}-{seed}-{index}", prompt_text, answers, prefix, room, metadata)

    def _frame(self, asked: list[str]) -> tuple[str, str, str]:
        """What stands before the context, the question behind it, and the answer's opening."""
        noun = _NOUNS[self.value_kind]
        names = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])} and {asked[-1]}"
        if self.queries * self.values == 1:
            return (
                f"Somewhere in the text below a {noun} is given. Remember it, since you will be asked for it.",
                f"Which {noun} for {names} does the text give?",
                f" The {noun} for {names} is",
            )
        return (
            f"Somewhere in the text below several {noun}s are given. Remember them, since you will be asked for them.",
            f"Which are all the {noun}s for {names} that the text gives?",
            f" The {noun}s for {names} are",
        )

    def _distinct(self, random: random.Random, count: int) -> list[str]:
        found: dict[str, None] = {}
        while len(found) < count:
            found[self._key(random)] = None
        return list(found)

    def _distractors(self, seed: int, index: int, taken: set[str]) -> Records:
        """Needles with keys of their own."""
        random = draw(f"{self.key} distractors", seed, index)
        used = set(taken)

        def make(_: int) -> str:
            key = self._key(random)
            while key in used:
                key = self._key(random)
            used.add(key)
            return needle(self.value_kind, key, self._value(random))

        return Records(make)

    def _key(self, random: random.Random) -> str:
        return random_uuid(random) if self.key_kind == "uuids" else random_word(random)

    def _value(self, random: random.Random) -> str:
        return random_uuid(random) if self.value_kind == "uuids" else random_number(random)


@dataclass
class DepthTask(NeedleTask):
    """One needle at each of eleven depths in prose: the picture that shows where in a context a model looks.

    Example i lies at `PICTURE_DEPTHS[i % 11]` percent of the sentences. The needle, its question and score are those
    of `niah_single_2`.
    """

    key: str = "niah_depth"
    haystack: Literal["noise", "prose", "needles"] = "prose"

    def depths(self, index: int, random: random.Random) -> list[int]:
        return [PICTURE_DEPTHS[index % len(PICTURE_DEPTHS)]]


def ruler_needles(text: str | None = None) -> list[NeedleTask]:
    """RULER's eight needle tasks."""
    return [
        NeedleTask("niah_single_1", "noise", text=text),
        NeedleTask("niah_single_2", "prose", text=text),
        NeedleTask("niah_single_3", "prose", value_kind="uuids", text=text),
        NeedleTask("niah_multikey_1", "prose", keys=4, text=text),
        NeedleTask("niah_multikey_2", "needles", text=text),
        NeedleTask("niah_multikey_3", "needles", key_kind="uuids", value_kind="uuids", text=text),
        NeedleTask("niah_multivalue", "prose", values=4, text=text),
        NeedleTask("niah_multiquery", "prose", keys=4, queries=4, text=text),
    ]
