"""Tables, sentences, pictures and pages made from entries."""

import html
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from headstart.evaluation.crossover import crossovers
from headstart.evaluation.ledger import LedgerEntry, Ratio, Row
from headstart.evaluation.machine import Machine
from headstart.evaluation.plots import Picture, draw_lengths, draw_quality
from headstart.evaluation.report import write_report
from headstart.evaluation.report_tables import figure, findings, headlines, spread_of, tables
from headstart.methods.registry import Claim

LENGTHS = (256, 1024, 4096)


def _entry(**changes: Any) -> LedgerEntry:
    rows, ratios = [], []
    for length in LENGTHS:
        exact, fast = (
            Row.of(f"TTFT at {length:,}", side, "s", values, higher_is_better=False, metric="TTFT", length=length)
            for side, values in (
                ("exact", [length / 1e3 * w for w in (1.0, 1.02, 0.98)]),
                ("<fast>", [(0.6 + length / 4e3) * w for w in (1.0, 1.01, 0.99)]),
            )
        )
        rows += [exact, fast]
        ratios.append(Ratio.of(fast, exact))
        kl = [length / 1e6] * 2
        name = f"KL from exact at {length:,}"
        rows.append(Row.of(name, "<fast>", "nats", kl, higher_is_better=False, metric="KL from exact", length=length))
    for side, value in (("exact", 0.120), ("<fast>", 0.02)):
        rows.append(Row.of("ITL p99", side, "s", [value, value * 1.01, value], higher_is_better=False))
    ratios.append(Ratio.of(rows[-1], rows[-2]))
    fields: dict[str, Any] = {
        "kind": "method",
        "key": "fast",
        "method": "fast",
        "model": "a <b>model</b>",
        "command": "headstart bench method fast",
        "commit": None,
        "dirty": False,
        "created": datetime(2030, 1, 2, tzinfo=UTC),
        "machine": Machine(cpu="Some CPU", cores=2, memory=8 << 30, os="Linux"),
        "versions": {"torch": "2"},
        "seeds": [0],
        "settings": {},
        "rows": rows,
        "ratios": ratios,
        "crossovers": crossovers(rows, "<fast>", "exact", ("TTFT",)),
        "notes": ["a note <script>alert(1)</script>"],
    }
    return LedgerEntry(**{**fields, **changes})


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.01234, "s", "12.3 ms"),
        (1.5, "s", "1.50 s"),
        (0.0, "s", "0 ms"),
        (1536, "bytes", "1.50 KiB"),
        (3 << 30, "bytes", "3.00 GiB"),
        (0, "bytes", "0 B"),
        (0.934, "fraction", "93.4%"),
        (12345.6, "tokens/s", "12,346 tokens/s"),
        (1.5e-7, "nats", "1.5e-07 nats"),
        (0.0, "nats", "0 nats"),
        (0.5, "", "0.500"),
        (-1234.0, "", "-1,234"),
    ],
)
def test_figures(value: float, unit: str, text: str) -> None:
    assert figure(value, unit) == text


def test_spreads_name_a_shared_unit_once() -> None:
    row = Row.of("n", "s", "s", [0.010, 0.012, 0.02], higher_is_better=False)
    assert spread_of(row) == "12.0 ms (10.0 to 20.0)"
    assert spread_of(row, plain=True) == "12.0 ms"
    assert spread_of(Row.of("n", "s", "s", [0.5, 0.9, 2.0], higher_is_better=False)) == "900 ms (500 ms to 2.00 s)"


def test_tables_hold_every_row_once() -> None:
    entry = _entry()
    found = tables(entry)
    assert [table.title for table in found] == ["TTFT", "", "answers"]
    ttft, rest, answers = found
    assert ttft.headers == ["tokens", "exact", "<fast>", "times better"]
    assert [line[0] for line in ttft.rows] == ["256", "1,024", "4,096"]
    assert rest.rows[0][0] == "ITL p99" and rest.rows[0][3].startswith("6.00x")
    assert [line[0] for line in answers.rows] == [f"KL from exact at {n:,}" for n in LENGTHS]
    assert all(len(line) == len(table.headers) for table in found for line in table.rows)


def test_a_terminal_is_spared_the_rarer_percentiles() -> None:
    names = ("E2E p90", "TTFT mean", "ITL p99", "ITL p99 (queue)", "output throughput", "probe gap max")
    rows = [Row.of(name, "a", "s", [1.0], higher_is_better=False) for name in names]
    entry = _entry(rows=rows, ratios=[], crossovers=[])
    assert [line[0] for line in tables(entry, brief=True)[0].rows] == list(names[2:])
    assert len(tables(entry)[0].rows) == len(names)


def test_findings_say_what_noise_may_explain() -> None:
    entry = _entry()
    first, second = findings(entry, ("ITL p99",))
    assert first == "ITL p99: 20.0 ms with <fast>, 120 ms with exact: 6.00 times better"
    assert second == "TTFT: <fast> against exact: pays from 1,024 tokens on (worse at 256)"
    # Of a metric over lengths, the longest.
    assert headlines(entry, ("TTFT", "absent"))[0].startswith("TTFT at 4,096: 1.62 s with <fast>, 4.10 s with exact")
    a, b = (
        Row.of("x", side, "s", values, higher_is_better=False) for side, values in (("a", [1, 3, 2]), ("b", [2, 1, 3]))
    )
    same = _entry(rows=[a, b], ratios=[Ratio.of(a, b)], crossovers=[])
    assert headlines(same, ("x",)) == ["x: 2.00 s with a, 2.00 s with b: no difference beyond noise"]
    a, b = (Row.of("x", side, "s", [value], higher_is_better=False) for side, value in (("a", 1.0), ("b", 3.0)))
    one = _entry(rows=[a, b], ratios=[Ratio.of(a, b)], crossovers=[])
    assert "too few rounds" in headlines(one, ("x",))[0]


class _References(HTMLParser):
    """Everything that a page would fetch or follow, and its balance of tags."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _check_page(text: str) -> _References:
    """No script, nothing from elsewhere, every tag closed."""
    page = _References()
    page.feed(text)
    assert not page.open
    assert all(reference.startswith("data:image/") for reference in page.found)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    style = re.search(r"<style>(.*?)</style>", text, re.S)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    assert "prefers-color-scheme: dark" in style[1]
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", text)
    return page


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    svg = tmp_path / "p.svg"
    svg.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    claim = Claim("fast & good", "an <A100>", "abstract")
    picture = Picture("A picture", "with a caption", {".png": tmp_path / "absent.png", ".svg": svg})
    path = tmp_path / "made" / "report.html"
    write_report(path, _entry(), [picture], title="fast on x", headline=("ITL p99",), claim=claim)
    text = path.read_text()
    page = _check_page(text)
    assert page.found[0].startswith("data:image/svg+xml;base64,")
    assert "<script" not in text and "a &lt;b&gt;model" in text and "fast &amp; good" in text
    assert "pays from 1,024 tokens on" in text
    raw = re.search(r"<summary>.*?<pre>(.*?)</pre>", text, re.S)
    assert raw and LedgerEntry.model_validate(json.loads(html.unescape(raw[1]))) == _entry()
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_a_partial_run_says_so_on_its_page(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", _entry(partial="interrupted by Ctrl-C"), title="t")
    assert "Partial result: interrupted by Ctrl-C" in (tmp_path / "r.html").read_text()


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib")
def test_pictures_are_drawn_where_the_rows_allow(tmp_path: Path) -> None:
    entry = _entry()
    cost = draw_lengths(entry.rows, "TTFT", entry.crossovers, tmp_path / "new" / "ttft")
    quality = draw_quality(entry.rows, "<fast>", "exact", tmp_path / "quality")
    assert cost is not None and quality is not None
    for picture in (cost, quality):
        assert picture.files[".png"].read_bytes()[:4] == b"\x89PNG"
        assert "<svg" in picture.files[".svg"].read_text()
    assert draw_lengths(entry.rows, "decode", (), tmp_path / "x") is None
    assert draw_quality(entry.rows, "exact", "<fast>", tmp_path / "x") is None
    write_report(tmp_path / "r.html", entry, [cost, quality], title="t")
    assert len(_check_page((tmp_path / "r.html").read_text()).found) == 2
