"""`headstart methods`: the catalogue as it is registered."""

from collections.abc import Callable
from typing import Any

import pytest

from headstart.errors import MethodError
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


@pytest.fixture
def ruler(monkeypatch: pytest.MonkeyPatch) -> type:
    """A method that cannot be built without an option, known for one test."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    @registry.method("ruler", stage="test", paper=None, needs=("a ruler",))
    class Ruler:
        """Measures.

        Args:
            length: in centimetres.
            wooden: or of steel.
        """

        def __init__(self, length: int, wooden: bool = True) -> None:
            self.length, self.wooden = length, wooden

    return Ruler


def test_a_required_option_and_a_need_are_shown(headstart: Run, ruler: type) -> None:
    ran = headstart("methods", "ruler")
    assert "in centimetres. [int, required]" in ran.out
    assert "or of steel. [bool, default True]" in ran.out
    assert "needs     a ruler" in ran.out
    assert "--use ruler:length=LENGTH\n" in ran.out
    assert "inspect" not in ran.out
    shown = headstart("methods", "ruler", "--json").json
    assert shown["needs"] == ["a ruler"]
    assert [(o["required"], o["default"]) for o in shown["options"]] == [(True, None), (False, True)]
    assert registry.build("ruler:length=30").length == 30
    with pytest.raises(MethodError, match="ruler needs option length: write ruler:length=VALUE"):
        registry.build("ruler:wooden=false")


def test_an_unknown_key_suggests_the_nearest(headstart: Run) -> None:
    ran = headstart("methods", "sarathi-srv")
    assert (ran.code, ran.out) == (2, "")
    assert "did you mean 'sarathi-serve'?" in ran.err
