"""The recipe of headstart-base: its files are read, and its documents train what an assistant says and nothing else."""

import sys
from pathlib import Path

import pytest

from headstart.training.data.settings import read_settings
from headstart.training.documents import TextDocument
from headstart.training.recipe import read_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "headstart-base"


@pytest.fixture
def corpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(RECIPE))
    monkeypatch.delitem(sys.modules, "base_corpus", raising=False)
    import base_corpus  # pyright: ignore[reportMissingImports]

    return base_corpus


def test_the_books_and_tales_that_measure_are_held_out() -> None:
    data = read_settings(RECIPE / "data.yaml")
    held_out = [name for name, source in data.sources.items() if source.held_out]
    assert "books-val" in held_out and "fairytale-val" in held_out
    assert [phase.sequence_length for phase in read_recipe(RECIPE / "train.yaml").phases] == [2048, 8192, 32768, 32768]


def trained(document: TextDocument) -> str:
    return "".join(span.text for span in document.spans if span.trained)


def test_a_story_is_told_whole_however_it_is_asked_for(corpus) -> None:
    record = {"split": "train", "story": "the-fox", "sections": [f"Part {i} of the fox." for i in range(9)]}
    text, *talks = corpus.story(record, "fox")
    assert text.text.startswith("The fox\n\nPart 0")
    assert len(talks) == 2
    told = trained(talks[0])
    assert [part in told for part in record["sections"]] == [True] * 9
    continued = trained(talks[1])
    first = next(i for i, part in enumerate(record["sections"]) if part in continued)
    assert first > 0
    assert all((part in continued) == (i >= first) for i, part in enumerate(record["sections"]))
    assert list(corpus.story(record | {"split": "test"}, "fox")) == []
    assert corpus.story_text(record, "fox") is None
    assert corpus.story_text(record | {"split": "test"}, "fox").text.startswith("Part 0")


def test_talk_is_the_same_for_the_same_number(corpus) -> None:
    talks = [corpus.talk(i, 1) for i in range(30)]
    assert [t.text for t in talks] == [corpus.talk(i, 1).text for i in range(30)]
    assert len({t.text for t in talks}) > 20
    for talk in talks:
        assert trained(talk) and "<|user|>" not in trained(talk)


def test_facts_keep_every_value(corpus) -> None:
    record = {"name": "Nowhere", "facts": {"People": {"Languages": ["a", "b"], "Age": {"median": "30"}}}}
    document = corpus.facts(record, "x")
    assert document.text == "Nowhere\n\nPeople\nLanguages: a\nLanguages: b\nAge, median: 30"
