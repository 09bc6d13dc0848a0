"""`headstart methods`: the catalogue as it is registered."""

from collections.abc import Callable
from typing import Any

from headstart.methods import registry

Run = Callable[..., Any]


def test_the_table_names_every_method(headstart: Run) -> None:
    ran = headstart("methods")
    assert ran.code == 0
    for card in registry.catalogue():
        assert card.key in ran.out


def test_json_lists_every_card(headstart: Run) -> None:
    cards = registry.catalogue()
    listed = headstart("methods", "--json").json
    assert [entry["key"] for entry in listed] == [card.key for card in cards]
    for entry, card in zip(listed, cards, strict=True):
        assert entry["exact"] == card.exact
        assert entry["slots"] == list(card.slots)
        assert [option["name"] for option in entry["options"]] == [option.name for option in card.options]


def test_every_card_shows_paper_options_and_how_to_use_it(headstart: Run) -> None:
    for card in registry.catalogue():
        ran = headstart("methods", card.key)
        assert ran.code == 0
        assert f"--use {card.key}" in ran.out
        if card.paper:
            assert card.paper.title in " ".join(ran.out.split())
        for option in card.options:
            assert option.name in ran.out
        assert headstart("methods", card.key, "--json").json["key"] == card.key


def test_the_use_that_a_card_shows_can_be_built(headstart: Run) -> None:
    for card in registry.catalogue():
        out = headstart("methods", card.key).out
        registry.build(out.split("--use ")[1].split()[0])


def test_an_unknown_key_suggests_the_nearest(headstart: Run) -> None:
    ran = headstart("methods", "sarathi-srv")
    assert (ran.code, ran.out) == (2, "")
    assert "did you mean 'sarathi-serve'?" in ran.err
