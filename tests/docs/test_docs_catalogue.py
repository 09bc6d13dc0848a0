"""Pages of methods and measurements hold what cards and ledger say, and say what is not known."""

from datetime import UTC, datetime
from typing import Any

import pytest

from headstart.docs.catalogue import index_page, method_page, methods_table
from headstart.docs.measurements import entry_section, measurements_page
from headstart.evaluation.crossover import crossovers
from headstart.evaluation.ledger import LedgerEntry, Ratio, Row
from headstart.evaluation.ledger_sources import source_digests
from headstart.evaluation.machine import Machine
from headstart.evaluation.method_bench_spec import bench_of
from headstart.evaluation.report_tables import findings, tables
from headstart.methods import registry

CARDS = registry.catalogue()
KEYS = [card.key for card in CARDS]


def entry(**changes: Any) -> LedgerEntry:
    """A measurement of `sarathi-serve` at two lengths."""
    rows = [
        Row.of(f"TTFT at {n:,}", side, "s", [v, v * 1.01, v], higher_is_better=False, metric="TTFT", length=n)
        for n in (256, 1024)
        for side, v in (("exact", n / 1e3), ("sarathi-serve", 0.4))
    ]
    fields: dict[str, Any] = {
        "kind": "method",
        "key": "sarathi-serve",
        "method": "sarathi-serve",
        "model": "a_model | with *marks*",
        "command": "headstart bench method sarathi-serve",
        "commit": "0" * 40,
        "dirty": True,
        "created": datetime(2030, 1, 2, tzinfo=UTC),
        "machine": Machine(cpu="Some CPU", cores=2, memory=8 << 30, os="Linux"),
        "versions": {"torch": "2"},
        "seeds": [0],
        "settings": {},
        "sources": source_digests([type(registry.build("sarathi-serve"))]),
        "rows": rows,
        "ratios": [Ratio.of(rows[3], rows[2]), Ratio.of(rows[1], rows[0])],
        "crossovers": crossovers(rows, "sarathi-serve", "exact", ("TTFT",)),
        "notes": ["a note"],
    }
    return LedgerEntry(**{**fields, **changes})


@pytest.mark.parametrize("card", CARDS, ids=KEYS)
def test_a_page_says_what_its_card_says(card: registry.MethodCard) -> None:
    page = method_page(card, [], KEYS)
    for title in ("What it does", "When not to use it", "The paper's claim", "Measured here", "Commands"):
        assert f"## {title}\n" in page
    assert "Not measured yet" in page
    assert f"headstart methods {card.key}\n" in page
    assert ("There is no code yet" in page) == (card.status == "planned")
    assert ("When it has code" in page) == (card.status == "planned")
    if card.paper and card.paper.arxiv:
        assert f"https://arxiv.org/abs/{card.paper.arxiv}" in page
    assert all(f"`{option.name}`" in page for option in card.options)


def test_the_index_has_every_method_and_counts_them() -> None:
    page = index_page(CARDS, {})
    assert all(f"[`{key}`]({key}.md)" in page for key in KEYS)
    papers = [card for card in CARDS if card.paper]
    coded = sum(card.status == "implemented" for card in papers)
    assert f"{len(papers)} published methods: {coded} implemented, {len(papers) - coded} planned" in page


def test_a_measurement_shows_its_findings_tables_and_command() -> None:
    measured = entry()
    card = registry.card("sarathi-serve")
    page = method_page(card, [measured], KEYS)
    assert "Not measured yet" not in page
    assert "pays from 1,024 tokens on (worse at 256)" in page
    assert all(line in page for line in findings(measured, bench_of(card).headline))
    assert all(f"| {' | '.join(row)} |" in page for each in tables(measured) for row in each.rows)
    assert "commit 000000000000 with changes" in page
    assert "```sh\nheadstart bench method sarathi-serve\n```" in page
    assert "stale" not in page.lower()
    assert "2.56x" in methods_table([card], {card.key: [measured]}, "catalogue/")


def test_a_measurement_of_other_code_says_so_everywhere() -> None:
    old = entry(sources={"headstart/methods/schedule/sarathi_serve.py": "0" * 16})
    card = registry.card("sarathi-serve")
    assert "Measured before changes to `headstart/methods/schedule/sarathi_serve.py`" in entry_section(old)
    assert "(stale)" in methods_table([card], {card.key: [old]})
    assert "**stale**" in measurements_page([old])


def test_the_measurements_have_every_entry_and_those_of_no_method_in_full() -> None:
    rows = [Row.of("prefill 8", side, "s", [value], higher_is_better=False) for side, value in (("a", 1.0), ("b", 3.0))]
    ratios = [Ratio.of(rows[0], rows[1])]
    fields = {"kind": "engine", "key": "engine", "method": None, "sources": {}, "rows": rows, "ratios": ratios}
    page = measurements_page([entry(**fields, crossovers=[]), entry()])
    assert "[`sarathi-serve`](catalogue/sarathi-serve.md)" in page
    assert "[`engine`](#engine-some-cpu-2c-8g)" in page
    assert "{#engine-some-cpu-2c-8g}" in page
    assert "| b | 3.00 s | 3.00x |" in page
    assert "The ledger is empty." in measurements_page([])
