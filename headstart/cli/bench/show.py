"""Ledger entries on a terminal."""

from typing import TYPE_CHECKING

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headstart.evaluation.ledger import LedgerEntry, Ratio, Row


def print_entry(
    entry: "LedgerEntry", console: Console, headline: "Sequence[str]" = (), *, as_json: bool = False
) -> None:
    """The machine, what was found, the tables, and the notes.

    Args:
        entry: what was measured.
        console: where to.
        headline: the metrics that stand first.
        as_json: the entry itself instead, for programs.
    """
    if as_json:
        typer.echo(entry.model_dump_json(indent=2))
        return
    from headstart.evaluation.report import machine_line
    from headstart.evaluation.report_tables import findings, tables

    console.print(machine_line(entry), markup=False, highlight=False)
    if entry.kind == "engine":
        for name in dict.fromkeys(row.name for row in entry.rows):
            rows = [row for row in entry.rows if row.name == name]
            console.print(_side_table(rows, [ratio for ratio in entry.ratios if ratio.name == name]))
    elif entry.kind == "ops":
        console.print(_ops_table(entry))
    else:
        for table in tables(entry, brief=True):
            console.print(_rich(table.title, table.headers, table.rows))
    shown = findings(entry, headline)
    for note in entry.notes:
        if note not in shown:
            console.print(f"- {note}", markup=False, highlight=False)
    for line in shown:
        console.print(f"[bold]{escape(line)}[/]", highlight=False)
    if entry.partial:
        console.print(f"partial result: {entry.partial}", style="red", markup=False)


def _ops_table(entry: "LedgerEntry") -> Table:
    """A line per side of an op: how long it takes, what part of its floor and of the peaks that is, and its error."""
    from headstart.evaluation.report_tables import figure

    table = Table(box=SIMPLE)
    table.add_column("op")
    table.add_column("by")
    for header in ("time", "of floor", "of matmul", "of bandwidth", "error", "headstart is"):
        table.add_column(header, justify="right", no_wrap=True)
    times = {(ratio.name, ratio.against): f"{ratio.value:.2f}x" for ratio in entry.ratios}
    before = ""
    for row in entry.rows:
        details = row.details
        table.add_row(
            escape(row.name) if row.name != before else "",
            escape(row.side),
            figure(row.median * 1e6) + " µs",
            f"{details['floor'] / row.median:.0%}",
            f"{details['fraction_of_matmul']:.0%}",
            f"{details['fraction_of_bandwidth']:.0%}",
            f"{details['error']:.1e}" if details["error"] else "0",
            times.get((row.name, row.side), ""),
        )
        before = row.name
    return table


def _rich(title: str, headers: "Sequence[str]", rows: "Sequence[Sequence[str]]") -> Table:
    table = Table(title=title or None, title_justify="left", box=SIMPLE, min_width=60)
    for at, header in enumerate(headers):
        table.add_column(escape(header), justify="right" if at else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _side_table(rows: "list[Row]", ratios: "list[Ratio]") -> Table:
    """All sides of one quantity: how many times better headstart is, and what the machine's peaks would allow."""
    from headstart.evaluation.report_tables import figure

    title = f"{rows[0].name} ({'share' if rows[0].unit == 'fraction' else rows[0].unit})"
    for ratio in ratios:
        if ratio.target is not None:
            title += f", target {ratio.target:g}x of {ratio.against}: {'met' if ratio.met else 'missed'}"
    table = Table(title=title, title_justify="left", box=SIMPLE, min_width=60)
    table.add_column("side")
    for column in ("median", "min..max", *(("headstart is",) if ratios else ())):
        table.add_column(column, justify="right", no_wrap=True)
    bounded = any("floor" in row.details for row in rows)
    weighed = any("peak_rss_bytes" in row.details for row in rows)
    for column in (("at peak", "reached") if bounded else ()) + (("memory",) if weighed else ()):
        table.add_column(column, justify="right", no_wrap=True)
    by_side = {ratio.against: ratio for ratio in ratios}
    for row in rows:
        cells = [row.side, figure(row.median), f"{figure(row.spread[0])}..{figure(row.spread[1])}"]
        if ratios:
            ratio = by_side.get(row.side)
            cells.append(f"{ratio.value:.2f}x ({ratio.spread[0]:.2f}..{ratio.spread[1]:.2f})" if ratio else "")
        if bounded:
            reached = next((value for key, value in row.details.items() if key.startswith("fraction_of_")), 0.0)
            cells += [figure(row.details["floor"]), f"{reached:.0%}"]
        if weighed:
            cells.append(figure(row.details["peak_rss_bytes"], "bytes"))
        table.add_row(*cells)
    return table
