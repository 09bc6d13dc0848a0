"""Ledger rows from what contenders measured, with the cost behind each figure and the ratios between contenders."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from headstart.evaluation.compare_subject import Subject
from headstart.evaluation.ledger import Ratio, Row
from headstart.evaluation.machine import MachinePeaks

Answers = Sequence[dict[str, Any]]


def length_rows(
    label: str,
    length: int,
    decode_tokens: int,
    answers: Answers,
    subject: Subject,
    peaks: MachinePeaks | None,
    attended: float | None,
) -> list[Row]:
    """TTFT, decode speed and memory of one contender at one length, a value per round.

    The bound of a figure (`floor`, in its unit) is what the machine's peaks allow for the whole computation: its FLOPs
    over the matmul peak, its bytes over the copy bandwidth. A method that leaves work out may beat it.
    """
    found = [answer["result"] for answer in answers]

    def row(metric: str, unit: str, values: Sequence[float], higher: bool, details: dict[str, float]) -> Row:
        name = f"{metric} at {length:,}"
        return Row.of(name, label, unit, values, higher_is_better=higher, details=details, metric=metric, length=length)

    background = {"background_load": max(answer["background_load"] for answer in answers)}
    first = [item["ttft"] for item in found]
    rates = [item["decode_rate"] for item in found]
    allocated = [item["device_peak"] for item in found]
    memory = allocated if None not in allocated else [answer["peak_rss"] for answer in answers]
    reading = _reading_cost(statistics.median(first), length, subject, peaks)
    writing = _writing_cost(statistics.median(rates), length, decode_tokens, subject, peaks)
    rows = [
        row("TTFT", "s", first, False, reading | background),
        row("decode", "tokens/s", rates, True, writing | background),
        row("peak memory", "bytes", memory, False, {}),
    ]
    held = [item["kv_bytes"] for item in found]
    if None not in held:
        rows.append(row("KV cache", "bytes", held, False, {}))
    if attended is not None:
        rows.append(row("attended pairs", "fraction", [attended], False, {}))
    kept = [item["kept"] for item in found]
    if None not in kept and min(kept) < 1:
        rows.append(row("kept keys", "fraction", kept, False, {}))
    return rows


def _reading_cost(seconds: float, length: int, subject: Subject, peaks: MachinePeaks | None) -> dict[str, float]:
    """Prompt tokens per second, and the FLOPs of a full prefill beside the machine's peak."""
    details = {"tokens_per_second": length / seconds}
    if subject.costs is not None and peaks is not None:
        flops = subject.costs.prefill_flops(length)
        floor = flops / peaks.best_matmul
        details |= {"flops": flops, "floor": floor, "fraction_of_matmul_peak": floor / seconds}
    return details


def _writing_cost(
    rate: float, length: int, tokens: int, subject: Subject, peaks: MachinePeaks | None
) -> dict[str, float]:
    """Bytes that a decoded token moves, beside the machine's bandwidth."""
    if subject.costs is None or peaks is None:
        return {}
    # Step i reads the prompt, the first output token and the i tokens since.
    moved = subject.costs.decode_bytes(length + (tokens + 1) / 2, subject.itemsize)
    floor = peaks.copy_bandwidth / moved
    return {"bytes_per_token": moved, "floor": floor, "fraction_of_copy_bandwidth": rate / floor}


def reached_notes(rows: Sequence[Row], lengths: Sequence[int]) -> list[str]:
    """How much of the machine's peaks each side reached at these lengths, by the cost of the whole computation."""
    found = []
    for length in lengths:
        for read in (row for row in rows if row.metric == "TTFT" and row.length == length):
            write = next(r for r in rows if (r.metric, r.length, r.side) == ("decode", length, read.side))
            if "fraction_of_matmul_peak" in read.details and "fraction_of_copy_bandwidth" in write.details:
                found.append(
                    f"{read.side} at {length:,} tokens: {read.details['flops'] / 1e9:,.3g} GFLOP read at "
                    f"{read.details['fraction_of_matmul_peak']:.0%} of the matmul peak, "
                    f"{write.details['bytes_per_token'] / 1e6:,.3g} MB per decoded token at "
                    f"{write.details['fraction_of_copy_bandwidth']:.0%} of the copy bandwidth"
                )
    return found


def together_row(label: str, together: tuple[int, int, int], answers: Answers) -> Row:
    """Output tokens per second of requests that arrived at once."""
    requests, _, tokens = together
    rates = [requests * tokens / answer["result"]["value"] for answer in answers]
    return Row.of(f"{requests} requests together", label, "tokens/s", rates, higher_is_better=True)


def first_token_rows(labels: Sequence[str], answers: Mapping[int, Sequence[Answers]]) -> list[Row]:
    """How often each contender's first token is that of the first contender, a value per length.

    Whoever is fast and finds other tokens may be fast by an error, or by what a lossy method left out.
    """
    rows = []
    for at, label in enumerate(labels[1:], start=1):
        shares = []
        for sides in answers.values():
            pairs = zip(sides[0], sides[at], strict=False)
            equal = [a["result"]["token_ids"][0] == b["result"]["token_ids"][0] for a, b in pairs]
            shares.append(sum(equal) / len(equal))
        if shares:
            name = f"first tokens equal to {labels[0]}"
            rows.append(Row.of(name, label, "fraction", shares, higher_is_better=True))
    return rows


def ratios_of(rows: Sequence[Row], labels: Sequence[str]) -> list[Ratio]:
    """Every contender against the first, in each quantity of seconds, speed or bytes that both have."""
    by_side = {(row.name, row.side): row for row in rows if row.unit != "fraction"}
    found = []
    for (name, side), row in by_side.items():
        first = by_side.get((name, labels[0]))
        if side != labels[0] and first is not None and len(first.values) == len(row.values) and min(row.values) > 0:
            found.append(Ratio.of(row, first))
    return found
