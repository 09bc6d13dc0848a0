"""The catalogue of methods as the page shows it: cards, and what the ledger of this checkout holds about them."""

from collections.abc import Iterable, Sequence
from typing import Any

from headstart.cli.methods import as_dict, measurements
from headstart.docs.measurements import machine_name
from headstart.errors import MethodError
from headstart.evaluation.ledger import Crossover, LedgerEntry, Row
from headstart.evaluation.method_bench_spec import bench_of
from headstart.evaluation.report import code_line, machine_line
from headstart.evaluation.report_tables import figure, findings, sides_of, tables, times
from headstart.methods import registry
from headstart.methods.registry import STAGES
from headstart.server.errors import ApiError

_DETAILS = ("measurements", "options", "commands", "needs")


def method_list() -> dict[str, Any]:
    """Every card in brief, in the order of a model's life, and what the stages are about."""
    measured = measurements()
    methods = []
    for card in registry.catalogue():
        brief = {name: value for name, value in as_dict(card, []).items() if name not in _DETAILS}
        methods.append(brief | {"newest": _newest(measured.get(card.key, []))})
    return {"stages": STAGES, "methods": methods}


def method_detail(key: str) -> dict[str, Any]:
    """One card, with its measurements ready to be drawn.

    Raises:
        ApiError: 404, there is no such method.
    """
    try:
        card = registry.card(key)
    except MethodError as error:
        raise ApiError(404, str(error)) from None
    benched = card.status == "implemented" and card.kind != "analysis"
    headline = bench_of(card).headline if benched else ()
    entries = measurements().get(card.key, [])
    return as_dict(card, []) | {"measurements": [_entry(entry, headline) for entry in entries]}


def _newest(entries: Sequence[LedgerEntry]) -> str | None:
    """The newest measurement in a few words: its first ratio, else its first row."""
    if not entries:
        return None
    entry = entries[0]
    if entry.ratios:
        text = f"{entry.ratios[0].name} {times(entry.ratios[0], plain=True)}"
    else:
        text = f"{entry.rows[0].name} {figure(entry.rows[0].median, entry.rows[0].unit)}"
    return f"{text} (stale)" if entry.stale else text


def _entry(entry: LedgerEntry, headline: Sequence[str]) -> dict[str, Any]:
    found = findings(entry, headline)
    brief = tables(entry, brief=True)
    shown = {line[0] for table in brief for line in table.rows}
    lines = _lines(entry.rows, entry.crossovers)
    drawn = {line["metric"] for line in lines}
    return {
        "model": entry.model,
        "machine": machine_name(entry),
        "machine_line": machine_line(entry),
        "date": f"{entry.created:%Y-%m-%d}",
        "code": code_line(entry),
        "stale": entry.stale,
        "command": entry.command,
        "findings": found,
        "notes": [note for note in entry.notes if note not in found],
        "tables": [vars(table) for table in brief],
        "lines": lines,
        # What was measured at one length only makes no line.
        "ranges": _ranges(row for row in entry.rows if row.metric not in drawn and row.name in shown),
    }


def _lines(rows: Sequence[Row], crossovers: Sequence[Crossover]) -> list[dict[str, Any]]:
    """Metrics that several sides have at several lengths: per side `[length, median, low, high]`, and what pays."""
    found = []
    for metric in dict.fromkeys(row.metric for row in rows if row.metric is not None):
        of_metric = [row for row in rows if row.metric == metric and row.length is not None]
        if len({row.length for row in of_metric}) < 2 or len(sides_of(of_metric)) < 2:
            continue
        sides = [
            {
                "name": side,
                "points": sorted([row.length, row.median, *row.spread] for row in of_metric if row.side == side),
            }
            for side in sides_of(of_metric)
        ]
        turns = [{"side": c.side, "length": c.length} for c in crossovers if c.name == metric and c.length is not None]
        found.append({"metric": metric, "unit": of_metric[0].unit, "sides": sides, "crossovers": turns})
    return found


def _ranges(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Quantities that several sides have: per side the median and the spread, as numbers and as text."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row.name, []).append(row)
    return [
        {
            "name": name,
            "higher_is_better": group[0].higher_is_better,
            "sides": [
                {
                    "name": row.side,
                    "median": row.median,
                    "low": row.spread[0],
                    "high": row.spread[1],
                    "text": figure(row.median, row.unit),
                }
                for row in group
            ],
        }
        for name, group in by_name.items()
        if len(group) > 1
    ]
