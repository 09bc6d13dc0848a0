"""The figures of a load: percentiles of every latency, throughput, and goodput under service level objectives."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from headstart.evaluation.load.records import RequestRecord
from headstart.evaluation.load.settings import Slo


@dataclass(frozen=True)
class Distribution:
    """Mean and percentiles (linear between neighbours) of some durations in seconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Self | None:
        """Of those that were measured; None if none was."""
        found = np.array([value for value in values if value is not None], dtype=float)
        if not len(found):
            return None
        p50, p90, p99 = np.percentile(found, (50, 90, 99))
        return cls(len(found), float(found.mean()), float(p50), float(p90), float(p99), float(found.max()))


@dataclass(frozen=True)
class Goodput:
    """Requests that met an objective: per second of the load, and as a share of all that were asked."""

    slo: str
    per_second: float
    share: float


@dataclass(frozen=True)
class ProbeFigures:
    """The gaps between the tokens of the long decode, in seconds: before the others came, and among them."""

    alone: Distribution | None
    loaded: Distribution | None


@dataclass(frozen=True)
class Summary:
    """What a load showed. Latencies are of the requests that were answered in full, and begin at the intended arrival.

    Attributes:
        asked: requests that began.
        outcomes: how many ended how; refusals by HTTP status.
        seconds: from the load's start to the end of its last request.
        offered_rate: requests that began, per second from the first to the last arrival; None for a single one.
        request_rate: answered requests per second.
        input_rate: prompt tokens of answered requests per second.
        output_rate: generated tokens per second, of all requests that began, and of the probe.
        cached_share: part of the prompt tokens that the server found in its cache; None if it does not tell.
        ttft, tpot, itl, e2e: time to first token, mean time per token after it, gaps between tokens (all of all
            requests, pooled), time to the last token.
        queue: time that requests waited in the server, if it tells.
        goodput: one for each objective.
        probe: of the long decode, if there was one.
    """

    asked: int
    outcomes: dict[str, int]
    seconds: float
    offered_rate: float | None
    request_rate: float
    input_rate: float
    output_rate: float
    cached_share: float | None
    ttft: Distribution | None
    tpot: Distribution | None
    itl: Distribution | None
    e2e: Distribution | None
    queue: Distribution | None
    goodput: list[Goodput]
    probe: ProbeFigures | None

    @property
    def answered(self) -> int:
        """Requests that were answered in full."""
        return self.outcomes.get("ok", 0)


def summarize(records: Sequence[RequestRecord], slos: Sequence[Slo]) -> Summary:
    """The figures of a load's records, be it complete or not."""
    load = [record for record in records if record.kind == "load"]
    good = [record for record in load if record.status == "ok"]
    seconds = max((record.end for record in load), default=0.0)
    arrivals = sorted(record.at for record in load)
    span = arrivals[-1] - arrivals[0] if arrivals else 0.0
    prompt_tokens = sum(_prompt_tokens(record) for record in good)
    cached = [record.cached_tokens for record in good if record.cached_tokens is not None]
    # The probe's tokens from before the load do not count.
    generated = sum(record.output_tokens for record in load) + len(_probe_gaps(records)[1])

    def rate(number: float) -> float:
        return number / seconds if seconds > 0 else 0.0

    return Summary(
        asked=len(load),
        outcomes=dict(Counter(record.outcome for record in load)),
        seconds=seconds,
        offered_rate=(len(load) - 1) / span if span > 0 else None,
        request_rate=rate(len(good)),
        input_rate=rate(prompt_tokens),
        output_rate=rate(generated),
        cached_share=sum(cached) / prompt_tokens if cached and prompt_tokens else None,
        ttft=Distribution.of(record.ttft for record in good),
        tpot=Distribution.of(record.tpot for record in good),
        itl=Distribution.of(gap for record in good for gap in record.gaps),
        e2e=Distribution.of(record.e2e for record in good),
        queue=Distribution.of(record.queue for record in good),
        goodput=[goodput(load, slo, seconds) for slo in slos],
        probe=_probe(records),
    )


def goodput(load: Sequence[RequestRecord], slo: Slo, seconds: float) -> Goodput:
    """The requests among those of a load of so many seconds that met an objective."""
    met = sum(record.meets(slo) for record in load)
    return Goodput(str(slo), met / seconds if seconds > 0 else 0.0, met / len(load) if load else 0.0)


def _prompt_tokens(record: RequestRecord) -> int:
    return record.asked_input if record.prompt_tokens is None else record.prompt_tokens


def gaps_over_time(records: Iterable[RequestRecord]) -> list[tuple[float, float]]:
    """When each gap between tokens ended, and how long it was, in seconds."""
    found: list[tuple[float, float]] = []
    for record in records:
        if record.first is not None:
            ends = record.first + np.cumsum(record.gaps)
            found += zip(ends.tolist(), record.gaps, strict=True)
    return found


def _probe_gaps(records: Sequence[RequestRecord]) -> tuple[list[float], list[float]]:
    """The probe's gaps that ended before the load began, and those of the time in which it ran."""
    last = max((record.end for record in records if record.kind == "load"), default=0.0)
    gaps = gaps_over_time(record for record in records if record.kind == "probe")
    alone = [gap for end, gap in gaps if end <= 0]
    return alone, [gap for end, gap in gaps if end > 0 and end - gap <= last]


def _probe(records: Sequence[RequestRecord]) -> ProbeFigures | None:
    if all(record.kind != "probe" for record in records):
        return None
    alone, loaded = _probe_gaps(records)
    return ProbeFigures(Distribution.of(alone), Distribution.of(loaded))
