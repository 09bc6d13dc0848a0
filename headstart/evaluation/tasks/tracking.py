"""Variable tracking: which variables hold a value after a chain of assignments.

Follows RULER (arXiv 2404.06654) at commit c3f5e3b4f87f97e048793bb510a3a6b19a46bf3a of its official repository,
`scripts/data/synthetic/variable_tracking.py` with the `vt` settings of `scripts/synthetic.yaml`: one chain of four hops
(five variables of five capital letters) at random places, in order, within lines of noise; one solved example (three
letters, up to 500 tokens) before it; 30 tokens for the answer within the length; the share of variables named as the
score.

It differs in wording and noise sentences; the solved example takes at most a quarter of the length; the answer gets
more than 30 tokens where a tokenizer cuts the names into more.
"""

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from headstart.evaluation.tasks.base import Example, Task, TextEncoder, TooShortError, draw, fit, room_for
from headstart.evaluation.tasks.haystack import insert, noise
from headstart.evaluation.tasks.scoring import match_all

_ANSWER_TOKENS = 30
_SOLVED_TOKENS = 500


@dataclass(frozen=True)
class _Chains:
    """Chains of assignments; the first is the one asked for."""

    value: str
    names: list[list[str]]
    lines: list[list[str]]

    @classmethod
    def make(cls, random: random.Random, chains: int, hops: int, letters: int) -> "_Chains":
        names: dict[str, None] = {}
        while len(names) < chains * (hops + 1):
            names["".join(random.choices(string.ascii_uppercase, k=letters))] = None
        flat = list(names)
        groups = [flat[start : start + hops + 1] for start in range(0, len(flat), hops + 1)]
        values = random.sample(range(10_000, 100_000), chains)
        lines = [
            [f"VAR {group[0]} = {value}", *(f"VAR {b} = VAR {a}" for a, b in pairwise(group))]
            for group, value in zip(groups, values, strict=True)
        ]
        return cls(str(values[0]), groups, lines)


@dataclass
class VariableTracking(Task):
    """Name all variables that a chain of assignments gives a value.

    Args:
        chains: chains hidden in the noise, of which one is asked for.
        hops: assignments of one variable to the next in each chain.
    """

    key: str = "vt"
    chains: int = 1
    hops: int = 4
    about: str = "the variables that a chain of assignments gives one value"
    metric: str = "share of the variables named"

    def examples(self, tokenizer: TextEncoder, length: int, count: int, seed: int) -> Iterator[Example]:
        for index in range(count):
            yield self._example(tokenizer, length, seed, index)

    def score(self, example: Example, output: str) -> float:
        return match_all(example.answers, output)

    def _example(self, tokenizer: TextEncoder, length: int, seed: int, index: int) -> Example:
        random = draw(self.key, seed, index)
        solved = self._solved(tokenizer, min(_SOLVED_TOKENS, length // 4), random)
        chains = _Chains.make(random, self.chains, self.hops, letters=5)
        places = [sorted(random.random() for _ in lines) for lines in chains.lines]
        answers = tuple(chains.names[0])
        room = room_for(tokenizer, answers, _ANSWER_TOKENS)
        prefix = self._prefix(chains)
        text = fit(
            tokenizer,
            length - room,
            lambda amount: f"{solved}\n\n{self._text(chains, places, amount)}{prefix}",
            self.key,
        )
        metadata = {"hops": self.hops, "chains": self.chains, "value": chains.value}
        prompt = text.removesuffix(prefix)
        return Example(f"{self.key}-{length}-{seed}-{index}", prompt, answers, prefix, room, metadata)

    def _solved(self, tokenizer: TextEncoder, tokens: int, random: random.Random) -> str:
        """A question with its answer, to show what is wanted."""
        chains = _Chains.make(random, self.chains, self.hops, letters=3)
        places = [sorted(random.random() for _ in lines) for lines in chains.lines]
        answer = f"{self._prefix(chains)} {' '.join(chains.names[0])}"
        try:
            return fit(tokenizer, tokens, lambda amount: self._text(chains, places, amount) + answer, self.key)
        except TooShortError:
            return self._text(chains, places, 1) + answer

    def _text(self, chains: _Chains, places: list[list[float]], amount: int) -> str:
        """Context and question, with `amount` words of noise."""
        haystack = noise()
        lines = haystack.pieces(amount)
        size = len(lines)
        merged = sorted(
            (int(place * (size + 1)), chain, hop) for chain, row in enumerate(places) for hop, place in enumerate(row)
        )
        context = insert(lines, [chains.lines[chain][hop] for _, chain, hop in merged], [at for at, _, _ in merged])
        return (
            "The text below assigns values to variables here and there. Follow the assignments.\n\n"
            + haystack.between.join(context)
            + f"\nQuestion: Which variables hold the value {chains.value} after all assignments in the text?"
        )

    def _prefix(self, chains: _Chains) -> str:
        return f" Answer: The {self.hops + 1} variables that hold the value {chains.value} are:"
