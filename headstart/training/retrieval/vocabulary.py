"""Keys and values of training tasks, all words from the training half of the pools."""

import random
import string
from collections.abc import Callable
from functools import cache

from headstart.words import pool

Draw = Callable[[random.Random], str]


def adjective(rng: random.Random) -> str:
    return rng.choice(pool("adjective", "train"))


def noun(rng: random.Random) -> str:
    return rng.choice(pool("noun", "train"))


def verb(rng: random.Random) -> str:
    return rng.choice(pool("verb", "train"))


def name(rng: random.Random) -> str:
    return rng.choice(pool("name", "train"))


def city(rng: random.Random) -> str:
    return rng.choice(pool("city", "train"))


def word(rng: random.Random) -> str:
    """Any adjective, noun or verb."""
    return rng.choice((adjective, noun, noun, verb))(rng)


@cache
def words() -> tuple[str, ...]:
    """All the words that `word` draws from, each once."""
    return tuple(sorted({w for kind in ("adjective", "noun", "verb") for w in pool(kind, "train")}))


def compound(rng: random.Random) -> str:
    """Like "grumpy-casino"."""
    return f"{adjective(rng)}-{noun(rng)}"


def phrase(rng: random.Random) -> str:
    """Like "the grumpy casino"."""
    return f"the {adjective(rng)} {noun(rng)}"


def owner_and_thing(rng: random.Random) -> str:
    """Like "the casino of Martha"."""
    return f"the {noun(rng)} of {name(rng)}"


def person_in_city(rng: random.Random) -> str:
    """Like "Martha from Lisbon"."""
    return f"{name(rng)} from {city(rng)}"


def uuid(rng: random.Random) -> str:
    """128 random bits in the form of a UUID."""
    digits = f"{rng.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def numbers(digits: int) -> Draw:
    """Draws decimal numbers of so many digits, none with a leading zero."""
    low, high = 10 ** (digits - 1), 10**digits
    return lambda rng: str(rng.randrange(low, high))


def letters(length: int, alphabet: str = string.ascii_uppercase) -> Draw:
    """Draws strings of random letters."""
    return lambda rng: "".join(rng.choices(alphabet, k=length))


KEYS: dict[str, Draw] = {
    "compound": compound,
    "phrase": phrase,
    "owner": owner_and_thing,
    "person": person_in_city,
    "uuid": uuid,
}
"""What things are called, by style. Each is rich enough for thousands of keys in one document."""


def value_drawer(rng: random.Random, kind: str, tokens: int) -> Draw:
    """A way to draw values of a kind ("number", "uuid", "word"), one form for a whole document of so many tokens."""
    if kind == "uuid":
        return uuid
    if kind == "word":
        return rng.choice((compound, compound, lambda r: f"{adjective(r)} {noun(r)}"))
    # Seven digits as in published needle tasks are the most frequent; the others keep the length from being learnt.
    # Four and five digits do not give enough different numbers for a very long list of them.
    return numbers(rng.choice((4, 5, 5, 6, 7, 7, 7, 7, 8, 10) if tokens < 20_000 else (6, 7, 7, 8, 10)))
