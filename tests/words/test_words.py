"""The two halves of the word pools never meet."""

import subprocess
import sys

import pytest

from headstart.errors import HeadstartError
from headstart.words import KINDS, pool, split_of


@pytest.mark.parametrize("kind", KINDS)
def test_pools_are_rich_clean_and_in_their_half(kind: str) -> None:
    for split in ("train", "evaluation"):
        words = pool(kind, split)
        assert len(words) > 150
        assert list(words) == sorted(set(words))
        assert all(word.isascii() and word.isalpha() and split_of(word) == split for word in words)
        assert all(word[0].isupper() == (kind in ("name", "city")) for word in words)


def test_no_word_of_one_half_is_in_any_pool_of_the_other() -> None:
    halves = [{word.lower() for kind in KINDS for word in pool(kind, split)} for split in ("train", "evaluation")]
    assert not halves[0] & halves[1]
    assert 0.8 < len(halves[0]) / len(halves[1]) < 1.25


def test_every_process_has_the_same_pools() -> None:
    code = "from headstart.words import pool; print(' '.join(pool('noun', 'train')))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert tuple(out.split()) == pool("noun", "train")


def test_unknown_kinds_and_halves_get_one_sentence() -> None:
    with pytest.raises(HeadstartError, match="did you mean 'noun'"):
        pool("nouns", "train")
    with pytest.raises(HeadstartError, match="test"):
        pool("noun", "test")
