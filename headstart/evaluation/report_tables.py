"""A ledger entry as tables and sentences, the same for terminal and page."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from headstart.evaluation.crossover import sentence, verdict
from headstart.evaluation.ledger import LedgerEntry, Ratio, Row

_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")
# More sides than this leave no room for spreads on a terminal.
_ROOMY_SIDES = 2
# Ratios up to this are no news, whatever noise says.
_ALIKE = 1.01
# What a terminal shows of a load's many figures.
_BRIEF = ("TTFT p50", "TTFT p99", "TPOT p50", "ITL p50", "ITL p99", "probe gap p50", "probe gap p99", "probe gap max")


@dataclass(frozen=True)
class Table:
    """Cells to be shown; the first column names things, the others hold figures."""

    title: str
    headers: list[str]
    rows: list[list[str]]


def figure(value: float, unit: str = "") -> str:
    """Three digits that count, never in powers of ten, with the unit as people read it."""
    if unit == "s" and abs(value) < 1:
        return f"{figure(value * 1000)} ms"
    if unit == "bytes":
        power = min(int(math.log2(value) // 10), len(_BYTES) - 1) if value >= 1 else 0
        return f"{figure(value / 1024**power)} {_BYTES[power]}"
    if unit == "fraction":
        return f"{value:.1%}"
    if unit == "nats" and 0 < abs(value) < 1e-4:
        return f"{value:.1e} nats"
    if value == 0 or abs(value) >= 100:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
    return f"{text} {unit}".strip()


def spread_of(row: Row, *, plain: bool = False) -> str:
    """The median, with the lowest and the highest value if there are several and it is not to be plain."""
    median, low, high = (figure(value, row.unit) for value in (row.median, *row.spread))
    if plain or low == high:
        return median
    # The unit once, where all three share it.
    unit = f" {median.rpartition(' ')[2]}"
    if " " in median and low.endswith(unit) and high.endswith(unit):
        low, high = low.removesuffix(unit), high.removesuffix(unit)
    return f"{median} ({low} to {high})"


def times(ratio: Ratio, *, plain: bool = False) -> str:
    """How many times better, with the spread over rounds unless it is to be plain."""
    if plain or ratio.spread[0] == ratio.spread[1]:
        return f"{figure(ratio.value)}x"
    return f"{figure(ratio.value)}x ({figure(ratio.spread[0])} to {figure(ratio.spread[1])})"


def sides_of(rows: Iterable[Row]) -> list[str]:
    """The sides in order of appearance."""
    return list(dict.fromkeys(row.side for row in rows))


def tables(entry: LedgerEntry, *, brief: bool = False) -> list[Table]:
    """The rows, side by side: a table for each metric over lengths, and one for the rest.

    Args:
        entry: with sides that are compared with its first.
        brief: leave out what a terminal has no room for.
    """
    sides = sides_of(entry.rows)
    metrics = list(dict.fromkeys(row.metric for row in entry.rows if row.metric is not None))
    found = []
    for metric in metrics:
        rows = [row for row in entry.rows if row.metric == metric]
        if len({row.length for row in rows}) > 1 and len(sides_of(rows)) > 1:
            names = {row.name: f"{row.length:,}" for row in rows}
            found.append(_pivot(metric, "tokens", names, rows, entry, sides, brief))
    covered = {table.title for table in found}
    rest = [row for row in entry.rows if row.metric not in covered]
    if brief:
        rest = [row for row in rest if not _is_load_detail(row.name)]
    for title, group in (
        ("", [row for row in rest if row.metric is None]),
        ("answers", [row for row in rest if row.metric is not None]),
    ):
        if group:
            found.append(_pivot(title, "", {row.name: row.name for row in group}, group, entry, sides, brief))
    return found


def _is_load_detail(name: str) -> bool:
    """A percentile of a load that is not among the brief ones."""
    stem = name.removesuffix(" (queue)")
    percentile = stem.rsplit(" ", 1)[-1] in ("mean", "p50", "p90", "p99", "max")
    return percentile and stem not in _BRIEF


def _pivot(
    title: str,
    corner: str,
    names: dict[str, str],
    rows: Sequence[Row],
    entry: LedgerEntry,
    sides: Sequence[str],
    brief: bool,
) -> Table:
    """A line per row name, a column per side, and the ratio of every side but the first."""
    present = [side for side in sides if any(row.side == side for row in rows)]
    by_place = {(row.name, row.side): row for row in rows}
    ratios = {(ratio.name, ratio.side): ratio for ratio in entry.ratios}
    compared = [side for side in present if any((name, side) in ratios for name in names)]
    headers = [corner, *present, *(f"{s}, times better" if len(compared) > 1 else "times better" for s in compared)]
    lines = []
    plain = brief and len(present) > _ROOMY_SIDES
    for name, shown in names.items():
        cells = [spread_of(by_place[name, s], plain=plain) if (name, s) in by_place else "" for s in present]
        cells += [times(ratios[name, s], plain=plain) if (name, s) in ratios else "" for s in compared]
        lines.append([shown, *cells])
    return Table(title, headers, lines)


def headlines(entry: LedgerEntry, metrics: Sequence[str]) -> list[str]:
    """The figures that stand beside a claim, in sentences: of a metric over lengths, that of the longest."""
    found = []
    for metric in metrics:
        of_metric = [row for row in entry.rows if metric in (row.name, row.metric)]
        longest = max((row.length or 0 for row in of_metric), default=0)
        rows = {row.side: row for row in of_metric if (row.length or 0) == longest}
        for ratio in entry.ratios:
            side, against = rows.get(ratio.side), rows.get(ratio.against)
            if side is not None and against is not None and ratio.name == side.name:
                found.append(_compared(ratio, side, against))
    return found


def _compared(ratio: Ratio, side: Row, against: Row) -> str:
    """One ratio as a sentence that says whether noise may explain it."""
    start = (
        f"{side.name}: {figure(side.median, side.unit)} with {side.side}, "
        f"{figure(against.median, against.unit)} with {against.side}"
    )
    judged = verdict(side, against)
    if judged == "same":
        return f"{start}: no difference beyond noise"
    doubt = " (too few rounds to know the noise)" if judged == "unknown" else ""
    word, value = ("better", ratio.value) if ratio.value >= 1 else ("worse", 1 / ratio.value)
    return f"{start}: {figure(value)} times {word}{doubt}" if value > _ALIKE else f"{start}: alike{doubt}"


def findings(entry: LedgerEntry, metrics: Sequence[str]) -> list[str]:
    """What the entry shows: the headline figures, then from which length on it pays."""
    return [*headlines(entry, metrics), *map(sentence, entry.crossovers)]
