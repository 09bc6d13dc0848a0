"""Where a method begins to pay: verdicts per length that noise cannot explain, and the turn that they show."""

import math
import statistics
from collections.abc import Iterable, Sequence

from headstart.evaluation.ledger import Crossover, Row, Verdict

_LEAST_ROUNDS = 3
# Student's t for 1 to 15 degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def verdict(side: Row, against: Row) -> Verdict:
    """Whether a side is better than another, beyond noise.

    Rounds are paired, since neighbours in time share what disturbs the machine: the 95% interval (Student's t) of the
    mean log ratio must exclude zero, so that of two equal sides one is called better in one case of forty. Fewer than
    three rounds say too little of noise for any verdict.
    """
    pairs = list(zip(side.values, against.values, strict=False))
    if len(pairs) < _LEAST_ROUNDS:
        return "unknown"
    positive = min(map(min, pairs)) > 0
    differences = [math.log(a / b) if positive else a - b for a, b in pairs]
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if abs(mean) <= _students_t(len(pairs) - 1) * deviation / math.sqrt(len(pairs)):
        return "same"
    return "better" if (mean > 0) == side.higher_is_better else "worse"


def _students_t(freedom: int) -> float:
    """Two-sided 95% point; beyond the table that of a lower number, which errs on the side of caution."""
    return _T[min(freedom, len(_T)) - 1]


def crossovers(rows: Iterable[Row], side: str, against: str, metrics: Sequence[str]) -> list[Crossover]:
    """The crossover in each metric that both sides were measured in, at the lengths that both have."""
    found = list(rows)
    result = []
    for metric in metrics:
        ours, theirs = (
            {row.length: row for row in found if row.metric == metric and row.side == name and row.length is not None}
            for name in (side, against)
        )
        verdicts: dict[int, Verdict] = {n: verdict(row, theirs[n]) for n, row in ours.items() if n in theirs}
        if verdicts:
            result.append(Crossover.of(metric, side, against, verdicts))
    return result


def sentence(crossover: Crossover) -> str:
    """The crossover for people."""
    c = crossover
    shortest, longest = c.lengths[0], c.lengths[-1]
    start = f"{c.name}: {c.side} against {c.against}"
    if "unknown" in c.verdicts:
        return f"{start}: not known, since noise shows only from {_LEAST_ROUNDS} rounds on"
    if c.length == shortest:
        return f"{start}: better at every measured length, {_spanned(c)}"
    if c.length is not None:
        before = c.lengths[c.lengths.index(c.length) - 1]
        text = f"{start}: pays from {c.length:,} tokens on ({c.verdicts[c.lengths.index(before)]} at {before:,})"
    elif "better" in c.verdicts:
        text = f"{start}: does not pay at {longest:,} tokens ({c.verdicts[-1]})"
    elif len(set(c.verdicts)) == 1:
        word = "no difference beyond noise" if c.verdicts[0] == "same" else c.verdicts[0]
        return f"{start}: {word} at every measured length, {_spanned(c)}"
    else:
        text = f"{start}: never better, {_spanned(c)}"
    if not c.monotone:
        pairs = ", ".join(f"{v} at {length:,}" for length, v in zip(c.lengths, c.verdicts, strict=True))
        text += f"; not monotone: {pairs}"
    return text


def _spanned(c: Crossover) -> str:
    return f"{c.lengths[0]:,}" if len(c.lengths) == 1 else f"{c.lengths[0]:,} to {c.lengths[-1]:,} tokens"
