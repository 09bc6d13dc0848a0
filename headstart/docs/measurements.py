"""Ledger entries as Markdown: the page of all measurements, and the part of a method's page."""

import base64
import io
from collections.abc import Iterable, Sequence
from importlib.util import find_spec

from headstart.docs.markdown import escape, fenced, table
from headstart.evaluation.ledger import LedgerEntry
from headstart.evaluation.plots import steps_figure
from headstart.evaluation.report import code_line, machine_line
from headstart.evaluation.report_tables import figure, findings, spread_of, tables, times


def measurements_page(entries: Sequence[LedgerEntry]) -> str:
    """What the ledger holds: every entry in a line, and those that are not about one method in full."""
    parts = [
        "# Measurements\n",
        "Everything here was written by a bench command of `headstart` and is rendered from `benchmarks/ledger/`. "
        "Nobody types a result. [How to read it, and how to measure on your own machine](measure.md).\n",
        overview(entries) if entries else "The ledger is empty.\n",
    ]
    parts += [entry_section(entry) for entry in entries if entry.method is None]
    return "\n".join(parts)


def overview(entries: Iterable[LedgerEntry]) -> str:
    """One line for each entry."""
    rows = [
        [
            _linked(entry),
            entry.kind,
            escape(entry.model or "—"),
            escape(machine_name(entry)),
            f"{entry.created:%Y-%m-%d}",
            state(entry),
        ]
        for entry in entries
    ]
    return table(["entry", "kind", "model", "machine", "date", "code"], rows)


def _linked(entry: LedgerEntry) -> str:
    """Its name, which leads to where it is shown in full."""
    if entry.method is not None:
        return f"[`{entry.method}`](catalogue/{entry.method}.md)"
    return f"[`{entry.key}`](#{_anchor(entry)})"


def machine_name(entry: LedgerEntry) -> str:
    """What the entry was measured on, in a few words."""
    return ", ".join(entry.machine.accelerators) or f"{entry.machine.cpu}, {entry.machine.cores} cores"


def state(entry: LedgerEntry) -> str:
    """Whether the entry shows the present code of its methods, as far as that is known."""
    if not entry.sources:
        return "no method"
    return "**stale**" if entry.stale else "fresh"


def shortest(entry: LedgerEntry) -> str:
    """The entry in a few words: its first ratio, else its first row."""
    if entry.ratios:
        text = f"{escape(entry.ratios[0].name)} {times(entry.ratios[0], plain=True)}"
    else:
        row = entry.rows[0]
        text = f"{escape(row.name)} {escape(figure(row.median, row.unit))}"
    return f"{text} (stale)" if entry.stale else text


def entry_section(entry: LedgerEntry, headline: Sequence[str] = ()) -> str:
    """One entry: what was found, the tables, where, and the command that measures it again.

    Args:
        entry: what was measured.
        headline: the metrics that stand first.
    """
    title = " · ".join(filter(None, (entry.key, entry.model, machine_name(entry), f"{entry.created:%Y-%m-%d}")))
    parts = [f"### {escape(title)} {{#{_anchor(entry)}}}\n"]
    if entry.stale:
        changed = ", ".join(f"`{path}`" for path in entry.stale)
        parts.append(f'!!! warning "Stale"\n\n    Measured before changes to {changed}.\n')
    found = findings(entry, headline)
    parts.append(_bullets(found))
    parts += _side_by_side(entry) if entry.kind == "engine" else _pivoted(entry)
    parts.append(_steps(entry))
    parts.append(f"{escape(machine_line(entry))}; {escape(code_line(entry))}.\n")
    parts.append(_bullets(note for note in entry.notes if note not in found))
    parts.append(f"Measure it again:\n\n{fenced(entry.command, 'sh')}")
    return "\n".join(filter(None, parts))


def _steps(entry: LedgerEntry) -> str:
    """What the steps were made of, as a picture within the page; nothing where there is no library to draw it."""
    if not entry.timelines or find_spec("matplotlib") is None:
        return ""
    data = io.BytesIO()
    steps_figure(entry.timelines).savefig(data, format="svg", metadata={"Date": None})
    picture = base64.b64encode(data.getvalue()).decode()
    return f"![Tokens of every step over time](data:image/svg+xml;base64,{picture})\n"


def _anchor(entry: LedgerEntry) -> str:
    return entry.file_name.removesuffix(".json").replace(".", "-")


def _bullets(lines: Iterable[str]) -> str:
    return "".join(f"- {escape(line)}\n" for line in lines)


def _pivoted(entry: LedgerEntry) -> list[str]:
    """Sides as columns."""
    found = []
    for each in tables(entry, brief=True):
        headers, rows = list(map(escape, each.headers)), [list(map(escape, row)) for row in each.rows]
        title = f"**{escape(each.title)}**\n\n" if each.title else ""
        found.append(title + table(headers, rows, figures_from=1))
    return found


def _side_by_side(entry: LedgerEntry) -> list[str]:
    """A table for each quantity, and how many times better the measured side is than each peer."""
    found = []
    for name in dict.fromkeys(row.name for row in entry.rows):
        ratios = {ratio.against: ratio for ratio in entry.ratios if ratio.name == name}
        rows = [
            [escape(row.side), escape(spread_of(row)), times(ratios[row.side]) if row.side in ratios else ""]
            for row in entry.rows
            if row.name == name
        ]
        better = next((f"{ratio.side}, times better" for ratio in ratios.values()), "")
        found.append(f"**{escape(name)}**\n\n" + table(["side", "median", escape(better)], rows, figures_from=1))
    return found
