"""Prompts of exactly the wanted number of tokens, the same for the same seed, sharing what a trace says they share."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from headstart.evaluation.load.plan import Ask
from headstart.evaluation.load.settings import LoadError

# Of the streams of random numbers that a seed gives; `plan` has the others.
LOAD, WARM_UP, PROBE, BLOCKS = 11, 12, 13, 14

_ATTEMPTS = 50

_COMMON = (
    "the of and to in a was that he his it had with for as you on at her is not be but him they she all one so have "
    "from there said were this by my then when what up out into little no them would who we if are me or which could "
    "very old man time went like some about come down how good over day way more came see now again know off made "
    "before through other house look great where long think back must king only water head two get away upon boy "
    "your after their than will us too never did much first night people hand just thought took eyes"
)
WORDS = tuple(_COMMON.split())

Count = Callable[[str], Awaitable[int]]


class Prompts:
    """Makes prompts from units that are drawn at random: token ids, or words that are checked to be a token each.

    Args:
        units: what to draw from.
        seed: of the draw.
        count: how many tokens the server makes of a text; without it, units are token ids and prompts lists of them.
    """

    def __init__(self, units: Sequence[Any] | np.ndarray, seed: int, count: Count | None = None) -> None:
        self._units, self._seed, self._count = np.asarray(units), seed, count

    async def prompt(self, ask: Ask, stream: int = LOAD) -> list[int] | str:
        """The prompt of a request; those of other streams (warm-up, probe) begin differently.

        Raises:
            LoadError: no text of that length is found.
        """
        if ask.blocks is None:
            units = self._draw(ask.input_tokens, stream, ask.index)
        else:
            blocks = [self._draw(ask.block_tokens, BLOCKS, name) for name in ask.blocks]
            units = np.concatenate(blocks)[: ask.input_tokens]
        return units.tolist() if self._count is None else await self._text(units.tolist(), ask.input_tokens)

    def _draw(self, number: int, stream: int, index: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, stream, index])
        return self._units[rng.integers(0, len(self._units), number)]

    async def _text(self, words: list[str], tokens: int) -> str:
        """The words as a text of so many tokens, special ones of the tokenizer included; its end is made to fit."""
        assert self._count is not None
        for _ in range(_ATTEMPTS):
            if not words:
                break
            text = " ".join(words)
            surplus = await self._count(text) - tokens
            if surplus == 0:
                return text
            if surplus > 0:
                del words[-surplus:]
            else:
                words += words[:-surplus]
        raise LoadError(
            f"no text of exactly {tokens} tokens was found for this server's tokenizer; send token ids instead of text"
        )


async def one_token_words(count: Count) -> list[str]:
    """The words that are one token each after another word.

    Raises:
        LoadError: too few are.
    """
    alone = await count("the")
    counts = [await count(f"the {word}") for word in WORDS]
    found = [word for word, tokens in zip(WORDS, counts, strict=True) if tokens == alone + 1]
    if len(found) < 2:
        raise LoadError("this server's tokenizer has no common English words; send token ids instead of text")
    return found
