"""`headstart demo`: runs on what is in the package, and shows the cache at work."""

from collections.abc import Callable
from typing import Any

import pytest

from headstart.cli.demo import DEPTHS, SHARES, Hidden
from headstart.texts import wild_wood

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def hidden() -> Hidden:
    return Hidden.put(wild_wood().text)


def test_the_second_question_is_answered_from_the_cache(headstart: Run) -> None:
    ran = headstart("demo", "--json", "--words", "600")
    assert (ran.code, ran.err) == (0, "")
    cold, warm = ran.json["cold"], ran.json["warm"]
    assert cold["cached_tokens"] == 0
    assert warm["cached_tokens"] > 0.9 * warm["prompt_tokens"]
    assert ran.json["wanted"] in ran.json["answers"]["cold"]
    found = [hit for row in ran.json["picture"]["found"] for hit in row]
    assert len(found) == len(DEPTHS) * len(SHARES)
    # So short a text is more numbers than story.
    assert sum(found) >= 14


def test_it_shows_what_it_does(headstart: Run) -> None:
    ran = headstart("demo", "--words", "500")
    assert ran.code == 0
    for words in ("read for the first time", "cached", "sooner", "questions at once", "●", "headstart serve"):
        assert words in ran.out


def test_too_few_words_are_refused(headstart: Run) -> None:
    ran = headstart("demo", "--words", "5")
    assert ran.code == 2
    assert "500" in ran.err


def test_every_number_lies_where_the_picture_says(hidden: Hidden) -> None:
    numbers = [needle.number for row in hidden.needles for needle in row]
    assert len(set(numbers)) == len({needle.key for row in hidden.needles for needle in row}) == len(numbers)
    for depth, row in zip(DEPTHS, hidden.needles, strict=True):
        for end, needle in zip(hidden.ends, row, strict=True):
            part = hidden.text[:end]
            assert part.count(needle.number) == 1
            assert abs(100 * part.index(needle.number) / end - depth) < 12


def test_the_story_is_whole_but_for_the_numbers(hidden: Hidden) -> None:
    needles = {needle.number for row in hidden.needles for needle in row}
    kept = [p for p in hidden.text.split("\n\n") if not any(number in p for number in needles)]
    assert "\n\n".join(kept) == wild_wood().text
    assert hidden.ends[-1] == len(hidden.text)
    assert all(hidden.text[end : end + 2] == "\n\n" for end in hidden.ends[:-1])
