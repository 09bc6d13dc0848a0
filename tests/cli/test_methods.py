"""`headstart methods`: the catalogue, one card, and both for programs."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from headstart.errors import MethodError
from headstart.evaluation import ledger
from headstart.evaluation.ledger import Crossover, LedgerEntry, Ratio, Row
from headstart.evaluation.machine import Machine
from headstart.methods import registry

Run = Callable[..., Any]


@pytest.fixture
def terminal(headstart: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a terminal of 100 columns shows, without its colours."""

    def show(*arguments: str) -> str:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setattr("rich.console.Console.width", property(lambda _: 100))
        return re.sub(r"\x1b\[[0-9;]*m", "", headstart(*arguments).out)

    return show


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A ledger with two measurements of sarathi-serve, the newer one on the slower machine and on other code."""
    monkeypatch.setattr(ledger, "default_directory", lambda: tmp_path)
    for year, cores, value in ((2030, 8, 4.0), (2031, 2, 3.0)):
        fast = Row.of("ITL p99", "sarathi-serve", "s", [1.0], higher_is_better=False)
        slow = Row.of("ITL p99", "prefill-first", "s", [value], higher_is_better=False)
        entry = LedgerEntry(
            kind="method",
            key="bench-of-sarathi-serve",
            method="sarathi-serve",
            command=f"headstart bench method sarathi-serve --threads {cores}",
            commit="0123456789abcdef",
            dirty=False,
            created=datetime(year, 1, 2, tzinfo=UTC),
            machine=Machine(cpu="Some CPU", cores=cores, memory=8 << 30, os="Linux"),
            versions={},
            seeds=[0],
            settings={},
            rows=[fast, slow],
            ratios=[Ratio.of(fast, slow)],
            crossovers=[Crossover.of("ITL", "sarathi-serve", "prefill-first", {512: "worse", 2048: "better"})],
            sources={"headstart/no/such/file.py": "0"} if year == 2031 else {},
        )
        ledger.write(entry, tmp_path)
    return tmp_path


def test_a_pipe_gets_every_method_on_one_line(headstart: Run) -> None:
    lines = headstart("methods").out.splitlines()
    rows = [re.split(r"  +", line) for line in lines[1:-2]]
    cards = registry.catalogue()
    assert [row[0] for row in rows] == [card.key for card in cards]
    for row, card in zip(rows, cards, strict=True):
        assert row[1] == card.stage
        assert row[2].startswith(card.status)
        assert row[5] == (card.claim.text if card.claim else "—")
        assert len(row) == 7


def test_a_terminal_of_100_columns_shows_whole_keys_under_their_stage(terminal: Callable[..., str]) -> None:
    shown = terminal("methods")
    assert max(map(len, shown.splitlines())) <= 100
    words = set(shown.split())
    for card in registry.catalogue():
        assert card.key in words
        assert f"\n{card.stage}: {registry.STAGES[card.stage]}" in shown


def test_the_last_line_counts(headstart: Run) -> None:
    cards = registry.catalogue()
    of_papers = [card for card in cards if card.paper]
    implemented = sum(card.status == "implemented" for card in of_papers)
    last = headstart("methods").out.splitlines()[-1]
    assert last.startswith(f"94 published methods: {implemented} implemented, {94 - implemented} planned; ")
    assert f"{len(cards) - len(of_papers)} baseline" in last


def test_the_list_can_be_narrowed(headstart: Run) -> None:
    listed = headstart("methods", "--stage", "decode", "--json").json
    assert {entry["stage"] for entry in listed} == {"decode"}
    listed = headstart("methods", "--status", "implemented", "--json").json
    assert {entry["status"] for entry in listed} == {"implemented"}
    ran = headstart("methods", "--stage", "decoding")
    assert (ran.code, ran.out) == (2, "")
    assert "there is no stage 'decoding'; did you mean 'decode'?" in ran.err
    ran = headstart("methods", "--status", "done")
    assert (ran.code, ran.out) == (2, "")
    assert "there are: implemented, planned" in ran.err
    ran = headstart("methods", "medusa", "--stage", "decode")
    assert (ran.code, ran.out) == (2, "")
    assert "leave them out beside a key" in ran.err


def test_json_lists_every_card(headstart: Run) -> None:
    cards = registry.catalogue()
    listed = headstart("methods", "--json").json
    assert [entry["key"] for entry in listed] == [card.key for card in cards]
    assert len({tuple(entry) for entry in listed}) == 1, "all entries have the same fields in the same order"
    for entry, card in zip(listed, cards, strict=True):
        assert entry["exact"] == card.exact
        assert entry["slots"] == list(card.slots)
        assert [option["name"] for option in entry["options"]] == [option.name for option in card.options]


@pytest.mark.parametrize("key", [card.key for card in registry.catalogue()])
def test_a_card_shows_all_that_is_known(headstart: Run, key: str) -> None:
    card = registry.card(key)
    ran = headstart("methods", key)
    assert ran.code == 0
    shown = " ".join(ran.out.split())
    parts = [card.summary, card.when_not, card.composes, card.conflicts, *card.needs, *card.slots]
    if card.paper:
        parts += [card.paper.title, card.paper.arxiv or "", card.paper.venue]
    if card.claim:
        parts += [card.claim.text, card.claim.setting, card.claim.source]
    own = getattr(card.implementation, "commands", ()) or (f"headstart bench method {key}",)
    for text in [*parts, *(option.name for option in card.options), *own]:
        assert text in shown
    assert ("there is no code yet" in shown) == (card.status == "planned")
    assert headstart("methods", key, "--json").json["key"] == key


def test_the_use_that_a_card_shows_can_be_built(headstart: Run) -> None:
    for card in registry.catalogue(status="implemented"):
        if card.kind == "analysis":
            continue
        out = headstart("methods", card.key).out
        registry.build(out.split("--use ")[1].split()[0])


def test_a_planned_method_is_refused_where_it_is_used(headstart: Run) -> None:
    ran = headstart("generate", "Hello", "--use", "zipvl")
    assert (ran.code, ran.out) == (2, "")
    assert "zipvl is planned and has no code yet" in ran.err


@pytest.fixture
def ruler(monkeypatch: pytest.MonkeyPatch) -> type:
    """A method that cannot be built without an option, known for one test."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    @registry.method("ruler", stage="test", paper=None, needs=("a ruler",), exact=False, min_context=4096)
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
    assert "length (int, required): in centimetres." in ran.out
    assert "wooden (bool, default True): or of steel." in ran.out
    assert re.search(r"^needs +a ruler *$", ran.out, re.MULTILINE)
    assert "from 4,096 tokens of context; below, the default runs" in ran.out
    assert re.search(r"--use ruler:length=LENGTH *$", ran.out, re.MULTILINE)
    assert "inspect" not in ran.out
    shown = headstart("methods", "ruler", "--json").json
    assert shown["needs"] == ["a ruler"]
    assert [(o["required"], o["default"]) for o in shown["options"]] == [(True, None), (False, True)]
    assert registry.build("ruler:length=30").length == 30
    with pytest.raises(MethodError, match="ruler needs option length: write ruler:length=VALUE"):
        registry.build("ruler:wooden=false")


def test_methods_of_an_unknown_stage_are_listed_last(headstart: Run, ruler: type) -> None:
    assert headstart("methods", "--json").json[-1]["key"] == "ruler"
    assert headstart("methods", "--stage", "test", "--json").json[0]["key"] == "ruler"


def test_an_unknown_key_suggests_the_nearest(headstart: Run) -> None:
    for asked, sentence in [
        ("sarathi-srv", "did you mean 'sarathi-serve'?"),
        ("sparse attention", "did you mean 'hip' or 'lserve' or 'minference'?"),
        ("qqqqqq", "`headstart methods` lists all"),
    ]:
        ran = headstart("methods", asked)
        assert (ran.code, ran.out) == (2, "")
        assert sentence in ran.err


def test_measurements_stand_beside_the_claims(headstart: Run, measured: Path) -> None:
    (line,) = [line for line in headstart("methods").out.splitlines() if line.startswith("sarathi-serve ")]
    assert line.endswith("ITL p99 3x (stale)"), "the newest comes first"
    card = headstart("methods", "sarathi-serve").out
    assert card.index("2031-01-02 on Some CPU, 2 cores, commit 012345678") < card.index("2030-01-02")
    assert "ITL p99: sarathi-serve is 3 times better than prefill-first" in card
    assert "ITL: sarathi-serve is better than prefill-first from 2,048 tokens" in card
    assert card.count("stale: measured before changes to headstart/no/such/file.py") == 1
    assert "again: headstart bench method sarathi-serve --threads 8" in card
    entries = headstart("methods", "sarathi-serve", "--json").json["measurements"]
    assert [LedgerEntry.model_validate(entry).machine.cores for entry in entries] == [2, 8]
    assert "nothing yet" in headstart("methods", "sarathi").out


def test_a_broken_ledger_file_costs_its_own_measurements_only(headstart: Run, measured: Path) -> None:
    (measured / "broken.json").write_text("{")
    ran = headstart("methods", "sarathi-serve")
    assert ran.code == 0
    assert "ITL p99" in ran.out
    assert "left out" in ran.err and "broken.json" in ran.err


def test_no_ledger_is_no_error(headstart: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ledger, "default_directory", lambda: tmp_path / "none")
    ran = headstart("methods", "sarathi-serve")
    assert (ran.code, ran.err) == (0, "")
    assert "nothing yet" in ran.out
