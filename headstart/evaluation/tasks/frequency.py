"""Aggregation over a whole context: the most common words of a list, and of a coded text.

Follows RULER (arXiv 2404.06654) at commit c3f5e3b4f87f97e048793bb510a3a6b19a46bf3a of its official repository,
`scripts/data/synthetic/common_words_extraction.py` and `freq_words_extraction.py` with the settings of
`scripts/synthetic.yaml`:

- `cwe`: a numbered list in which 10 words occur 30 times each and all others 3 times (6 and 1 below 4,096 tokens),
  after one solved list of 40 words (10 and 3 times; below 4,096 tokens 20 words, 3 and 1 times); 120 tokens for the
  answer.
- `fwe`: six-letter coded words whose frequencies follow a zeta distribution with alpha 2, a vocabulary of a fiftieth of
  the length, the most frequent rank replaced by dots; the next three are asked for; 50 tokens for the answer.

Score: the share of the words named. It differs in wording and word lists; a common word is never part of another word
of its list, so that only naming it counts; longer lists than the words suffice for go on with pairs of words; the
answer gets more tokens where a tokenizer needs them. Where the solved list would take more than half of the length, it
is left out, and where ten words 30 times do not fit, the smaller counts are used.
"""

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from headstart.evaluation.tasks.base import Example, Task, TextEncoder, TooShortError, draw, fit, room_for
from headstart.evaluation.tasks.needles import random_word
from headstart.evaluation.tasks.scoring import match_all
from headstart.words import pool

_COMMON_WORDS = 10
_CWE_TOKENS = 120
_FWE_TOKENS = 50
_SHORT = 4096
_CODE_LETTERS = 6
_ASKED_CODES = 3
_DOTS = "..."


@dataclass
class CommonWords(Task):
    """Name the ten words that a numbered list repeats most often."""

    key: str = "cwe"
    about: str = "the ten most common words of a numbered list"
    metric: str = "share of the words named"

    def examples(self, tokenizer: TextEncoder, length: int, count: int, seed: int) -> Iterator[Example]:
        for index in range(count):
            yield self._example(tokenizer, length, seed, index)

    def score(self, example: Example, output: str) -> float:
        return match_all(example.answers, output)

    def _example(self, tokenizer: TextEncoder, length: int, seed: int, index: int) -> Example:
        if length >= _SHORT:
            try:
                return self._sized(tokenizer, length, seed, index, 30, 3)
            except TooShortError:
                pass  # a tokenizer that needs many tokens for a word
        return self._sized(tokenizer, length, seed, index, 6, 1)

    def _sized(self, tokenizer: TextEncoder, length: int, seed: int, index: int, often: int, seldom: int) -> Example:
        """An example whose common words occur `often` times and the others `seldom`."""
        random = draw(self.key, seed, index)
        solved_size, solved_often, solved_seldom = (20, 3, 1) if seldom == 1 else (40, 10, 3)
        shown, _ = _words(random, solved_size)
        listed = _numbered(random, shown, solved_often, solved_seldom)
        answer = " ".join(f"{place}. {word}" for place, word in enumerate(shown[:_COMMON_WORDS], 1))
        solved = f"{_ask(listed)}{_PREFIX} {answer}\n"
        words, more = _words(random, _COMMON_WORDS)
        answers = tuple(words)
        room = room_for(tokenizer, answers, _CWE_TOKENS)
        room = max(room, len(tokenizer.encode(f" {answer}", add_special_tokens=False)) + 8)
        if len(tokenizer.encode(solved)) > (length - room) / 2:
            solved = ""

        def text(amount: int) -> str:
            while len(words) < _COMMON_WORDS + amount:
                words.append(next(more))
            shuffled = draw(f"{self.key} order", seed, index)
            return solved + _ask(_numbered(shuffled, words[: _COMMON_WORDS + amount], often, seldom)) + _PREFIX

        prompt = fit(tokenizer, length - room, text, self.key).removesuffix(_PREFIX)
        metadata = {"often": often, "seldom": seldom}
        return Example(f"{self.key}-{length}-{seed}-{index}", prompt, answers, _PREFIX, room, metadata)


_PREFIX = " Answer: The 10 words that the list repeats most often are:"


def _ask(listed: str) -> str:
    return (
        "Here is a numbered list of words, in which a few words come up more often than the rest. Keep track of them.\n"
        f"{listed}\nQuestion: Which 10 words does the list repeat most often?"
    )


def _numbered(random: random.Random, words: list[str], often: int, seldom: int) -> str:
    """The first ten words `often`, the others `seldom` times, shuffled and numbered."""
    repeated = words[:_COMMON_WORDS] * often + words[_COMMON_WORDS:] * seldom
    random.shuffle(repeated)
    return " ".join(f"{place}. {word}" for place, word in enumerate(repeated, 1))


def _words(random: random.Random, count: int) -> tuple[list[str], Iterator[str]]:
    """`count` distinct words of which the first ten are part of no other, and an endless supply of further ones."""
    common: list[str] = []
    alone = _words_alone()
    while len(common) < _COMMON_WORDS:
        word = random.choice(alone)
        if word not in common:
            common.append(word)
    others = [word for word in _all_words() if word not in common]
    random.shuffle(others)

    def more() -> Iterator[str]:
        yield from others
        used: set[str] = set()
        while True:
            pair = random_word(random)
            if pair not in used and not any(word in pair for word in common):
                used.add(pair)
                yield pair

    supply = more()
    return common + [next(supply) for _ in range(count - _COMMON_WORDS)], supply


@cache
def _all_words() -> tuple[str, ...]:
    return tuple(sorted({word for kind in ("noun", "adjective", "verb") for word in pool(kind, "evaluation")}))


@cache
def _words_alone() -> tuple[str, ...]:
    """Words that are part of no other word."""
    together = "\n".join(_all_words())
    return tuple(word for word in _all_words() if together.count(word) == 1)


@dataclass
class FrequentWords(Task):
    """Name the three most frequent words of a coded text.

    Args:
        alpha: of the zeta distribution that word frequencies follow.
    """

    key: str = "fwe"
    alpha: float = 2.0
    about: str = "the three most frequent words of a coded text"
    metric: str = "share of the words named"

    def examples(self, tokenizer: TextEncoder, length: int, count: int, seed: int) -> Iterator[Example]:
        for index in range(count):
            yield self._example(tokenizer, length, seed, index)

    def score(self, example: Example, output: str) -> float:
        return match_all(example.answers, output)

    def _example(self, tokenizer: TextEncoder, length: int, seed: int, index: int) -> Example:
        random = draw(self.key, seed, index)
        size = max(1 + _ASKED_CODES + 1, (length - _FWE_TOKENS) // 50)
        codes: dict[str, None] = {}
        while len(codes) < size:
            codes["".join(random.choices(string.ascii_lowercase, k=_CODE_LETTERS))] = None
        vocabulary = [_DOTS, *list(codes)[1:]]
        answers = tuple(vocabulary[1 : 1 + _ASKED_CODES])
        room = room_for(tokenizer, answers, _FWE_TOKENS)
        prefix = " Answer: The three words that the coded text uses most often are:"

        def text(amount: int) -> str:
            counted = zip(vocabulary, self._counts(size, amount), strict=True)
            coded = [word for word, often in counted for _ in range(often)]
            draw(f"{self.key} order", seed, index).shuffle(coded)
            return (
                "The text below is written in code. Count how often each coded word comes up; three of them come up "
                f"most often. {' '.join(coded)}\nQuestion: Leave out the dots '{_DOTS}' and explain nothing. Which "
                f"three words does the coded text use most often?{prefix}"
            )

        # Fewer words than this, and the ranks asked for could not be told apart.
        least = _distinct_ranks(self.alpha)
        prompt = fit(tokenizer, length - room, text, self.key, least=least).removesuffix(prefix)
        metadata = {"alpha": self.alpha, "vocabulary": size}
        return Example(f"{self.key}-{length}-{seed}-{index}", prompt, answers, prefix, room, metadata)

    def _counts(self, size: int, words: int) -> list[int]:
        """How often each rank occurs in a text drawn from `words` words."""
        total = _zeta(self.alpha)
        return [int(words * rank**-self.alpha / total) for rank in range(1, size + 1)]


@cache
def _zeta(alpha: float) -> float:
    """The sum of k^-alpha over all k: ten thousand terms and the Euler-Maclaurin remainder."""
    last = 10_000
    head = sum(k**-alpha for k in range(1, last))
    return head + last ** (1 - alpha) / (alpha - 1) + last**-alpha / 2 + alpha * last ** (-alpha - 1) / 12


@cache
def _distinct_ranks(alpha: float) -> int:
    """The fewest words at which the frequencies of ranks 2 to 5 differ."""
    words = 1
    while len({int(words * rank**-alpha / _zeta(alpha)) for rank in range(2, 2 + _ASKED_CODES + 1)}) <= _ASKED_CODES:
        words += 1
    return words
