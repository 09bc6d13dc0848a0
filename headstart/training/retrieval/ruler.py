"""How many tokens a text takes: by a tokenizer, or by a rule of thumb."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator

# Pieces that a byte-level BPE does not join: words with the space before, digits, marks, line ends.
_PIECE = re.compile(r" ?[^\W\d_]+|\d| (?=\d)| ?(?:[^\w\s]|_)+|\n+")


class TokenEstimate(dict[str, float]):
    """Tokens of a text under a byte-level BPE of about 8 thousand tokens with single digits, within about 10%.

    Common words take one token, rare ones 1.24 and 0.18 for each letter, random letters almost one each, as measured
    on such a BPE.

    Args:
        common: words that are frequent in the tokenizer's training text.
    """

    def __init__(self, common: Collection[str]) -> None:
        super().__init__()
        self._common = common
        pairs = Counter(pair for word in common for pair in _pairs(word.lower()))
        self._usual = {pair for pair, _ in pairs.most_common(250)}

    def __call__(self, text: str) -> float:
        return sum(map(self.__getitem__, _PIECE.findall(text)))

    def __missing__(self, piece: str) -> float:
        word = piece.lstrip(" ")
        if not word.isalpha():
            cost = 1.0
        elif word in self._common:
            # Without a space before them few words are tokens of their own.
            cost = 1.0 if piece[0] == " " or len(word) < 3 else 1.5
        elif word.isupper() or 2 * sum(pair not in self._usual for pair in _pairs(word)) > len(word) - 1:
            cost = 0.9 * len(word)
        else:
            cost = 1.24 + 0.18 * len(word)
        if len(self) < _REMEMBERED:
            self[piece] = cost
        return cost


class Ruler:
    """Measures texts in tokens.

    Args:
        count: text → tokens.
    """

    def __init__(self, count: Callable[[str], float]) -> None:
        self._count = count

    def tokens(self, text: str) -> float:
        """Tokens of `text`; of a long one from samples, since only its size is wanted."""
        if len(text) <= 3 * _SAMPLES * _SAMPLE // 2:
            return self._count(text)
        step = (len(text) - _SAMPLE) // (_SAMPLES - 1)
        sample = "".join(text[start : start + _SAMPLE] for start in range(0, step * _SAMPLES, step))
        return self._count(sample) / len(sample) * len(text)

    def chars(self, tokens: float, like: str) -> int:
        """Characters that take so many tokens in a text like the beginning of `like`."""
        if tokens <= 0 or not like:
            return 0
        guess = like[: int(tokens * _CHARS_PER_TOKEN) + 1]
        return int(tokens * len(guess) / max(1.0, self.tokens(guess)))


_CHARS_PER_TOKEN = 4
_SAMPLES, _SAMPLE = 12, 300
_REMEMBERED = 100_000


def _pairs(word: str) -> Iterator[str]:
    """Neighbouring letters."""
    return (word[at : at + 2] for at in range(len(word) - 1))
