"""`headstart demo rag`: four ways side by side, on what is in the package and on one's own folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from headstart.cli.demo_rag import WAYS, nearest

Run = Callable[..., Any]
SMALL = ("--documents", "2", "--tokens", "32")


def test_all_ways_answer_and_only_the_exact_ones_say_so(headstart: Run) -> None:
    ran = headstart("demo", "rag", "--json", *SMALL)
    assert (ran.code, ran.err) == (0, "")
    ways = {way["way"]: way for way in ran.json["ways"]}
    assert list(ways) == list(WAYS)
    assert [way["exact"] for way in ways.values()] == [True, True, False, False]
    texts = [[each["answer"] for each in ways[name]["answers"]] for name in ("full prefill", "prefix cache")]
    assert texts[0] == texts[1]
    assert len(texts[0]) == len(ran.json["questions"]) == len(ran.json["prompt_tokens"])


def test_a_folder_of_ones_own(headstart: Run, tmp_path: Path) -> None:
    (tmp_path / "fox.txt").write_text("Foxes are red.\n\nThey eat mice.")
    (tmp_path / "owl.md").write_text("Owls are wise and sleep by day.")
    ran = headstart("demo", "rag", str(tmp_path), "-q", "Who is red?", *SMALL)
    assert ran.code == 0
    for words in ("Who is red?", *WAYS, "times sooner", "not known"):
        assert words in ran.out
    assert "--question" in headstart("demo", "rag", str(tmp_path)).err
    assert "cannot be read" in headstart("demo", "rag", str(tmp_path / "none"), "-q", "x").err


def test_rare_words_find_their_text() -> None:
    texts = ["the fox is red", "the owl is wise", "the day is long"]
    assert nearest("Who is the wise one?", texts, 1) == [1]
    assert nearest("fox and day", texts, 2) == [0, 2]
