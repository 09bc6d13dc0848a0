"""Word pools in two disjoint halves: one for training tasks, one for evaluation tasks."""

import hashlib
from functools import cache

from headstart.errors import HeadstartError, did_you_mean
from headstart.words.lists import CITIES, NAMES

KINDS = ("adjective", "noun", "verb", "name", "city")
SPLITS = ("train", "evaluation")

# Wonderwords' lists hold some words that nobody wants in generated text.
_UNPLEASANT = """
    bimbo breast corpse erection genocide heterosexual homosexual hooker lesbian lobotomy murder nazi pimp racial racism
    racist rape rapist sexuality slave slavery suicide terrorism terrorist
"""
_LONGEST = 12


@cache
def pool(kind: str, split: str) -> tuple[str, ...]:
    """The words of one kind in one half, sorted.

    The half of a word depends on nothing but its letters, so that a word that is both a noun and a verb, or a name
    and a noun, is in the same half everywhere, and no word of one half occurs in the other half of any kind.
    Adjectives, nouns and verbs come from the `wonderwords` package: lower-case letters only, 3 to 12 of them, no
    profanities, no plain plurals of other words. First names and cities are capitalised single words.

    Args:
        kind: one of `KINDS`.
        split: one of `SPLITS`.

    Raises:
        HeadstartError: an unknown kind or split.
    """
    if kind not in KINDS:
        raise HeadstartError(f"there is no pool of words called {kind!r}{did_you_mean(kind, KINDS)}; known: {KINDS}")
    if split not in SPLITS:
        raise HeadstartError(f"a pool of words has the halves {SPLITS}, not {split!r}")
    if kind == "name":
        words = NAMES.split()
    elif kind == "city":
        words = CITIES.split()
    else:
        words = _english(kind)
    return tuple(sorted(word for word in set(words) if split_of(word) == split))


def split_of(word: str) -> str:
    """The half that a word belongs to, "train" or "evaluation", whatever its case."""
    # A stable hash: Python's own changes from process to process.
    return SPLITS[hashlib.blake2b(word.lower().encode(), digest_size=8).digest()[0] & 1]


def _english(kind: str) -> list[str]:
    # Imported here: reading its lists takes a quarter of a second.
    from wonderwords import RandomWord, is_profanity

    words = set(RandomWord().filter(include_categories=[kind]))
    unpleasant = _UNPLEASANT.split()
    return [
        word
        for word in words
        if word.isascii()
        and word.isalpha()
        and word.islower()
        and 3 <= len(word) <= _LONGEST
        and word not in unpleasant
        and not is_profanity(word)
        and not (word.endswith("s") and (word[:-1] in words or word[:-2] in words))
    ]
