"""Capacity: the highest rate at which a server still meets an objective, found by bisection."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headstart.evaluation.load.figures import goodput
from headstart.evaluation.load.records import RequestRecord
from headstart.evaluation.load.result import LoadResult
from headstart.evaluation.load.run import Observer, Silent, duration, run_load
from headstart.evaluation.load.settings import LoadError, LoadSettings

# DistServe (arXiv 2401.09670, section 2) asks that nine in ten requests meet the objective.
ATTAINMENT = 0.9
# The search ends when the bounds are so near, or after so many loads.
_PRECISION = 1.1
_MOST_LOADS = 9
_GROWTH = 2.0
# One load lasts so many seconds of arrivals, and has at least so many requests.
LOAD_SECONDS = 20.0
_LEAST_REQUESTS = 20


@dataclass
class Capacity:
    """What a search found.

    Attributes:
        rate: the highest rate in requests per second that met the objective; 0 if none did.
        bound: the lowest that did not; None if all did.
        loads: every load that was tried, in that order.
        met: whether each of them met the objective.
        partial: why the search ended before its time; None if it did not.
        ended_by: the signal that ended it, if one did.
    """

    rate: float = 0.0
    bound: float | None = None
    loads: list[LoadResult] = field(default_factory=list)
    met: list[bool] = field(default_factory=list)
    partial: str | None = None
    ended_by: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything but the single requests."""
        loads = [result.to_json() | {"met": met} for result, met in zip(self.loads, self.met, strict=True)]
        return {"rate": self.rate, "bound": self.bound, "partial": self.partial, "loads": loads}


def find_capacity(
    settings: LoadSettings,
    url: str,
    *,
    attainment: float = ATTAINMENT,
    api_key: str | None = None,
    directory: Path | None = None,
    observer: Observer | None = None,
    run: Callable[..., LoadResult] = run_load,
) -> Capacity:
    """Search for the highest rate at which enough requests meet the first objective of the settings.

    The rate grows until the objective is missed, and the interval is then halved on a logarithmic scale until its ends
    are within a tenth. Every load has prompts and arrivals of its own, from the seed and its number. A load ends as
    soon as it can no longer meet the objective.

    Args:
        settings: with an objective; `rate` is where the search begins (default: where requests alone would be
            answered one after another).
        url: of the server.
        attainment: the share of requests that must meet the objective.
        api_key: for servers that want one.
        directory: where each load's records go, as `load-N.jsonl`.
        observer: hears how it goes on.
        run: puts on a load.

    Raises:
        LoadError: the settings have no objective that a queue without end would miss, or `run_load` refuses.
    """
    check_searchable(settings, attainment)
    observer, found = observer or Silent(), Capacity()
    rate = settings.rate
    for number in range(_MOST_LOADS):
        tried = _at_rate(replace(settings, seed=settings.seed + number), rate)
        file = None if directory is None else directory / f"load-{number + 1}.jsonl"
        judge = _Judge(tried, attainment)
        result = run(tried, url, api_key=api_key, file=file, observer=observer, hopeless=judge)
        if result.ended_by is not None or not result.alive:
            found.partial, found.ended_by = result.partial, result.ended_by
            return found
        rate = result.settings.rate or 0.0
        share = goodput(_begun(result), settings.slos[0], 1.0).share
        met = share >= attainment and not judge.hopeless
        found.loads.append(result)
        found.met.append(met)
        verdict = f"{'met' if met else 'missed'}, by {share:.0%} of the requests"
        if judge.hopeless:
            verdict = "missed for certain, so this load ended early"
        observer.say(f"{rate:.3g} requests per second: {settings.slos[0]} is {verdict}")
        if met:
            found.rate = rate
        else:
            found.bound = rate
        if found.bound is not None and found.rate and found.bound / found.rate <= _PRECISION:
            break
        rate = _next_rate(found)
    return found


def check_searchable(settings: LoadSettings, attainment: float = ATTAINMENT) -> None:
    """Refuse settings under which there is nothing to search for.

    Raises:
        LoadError: with what is missing.
    """
    if settings.users is not None or settings.trace is not None:
        raise LoadError("a capacity is a rate of requests; leave out users and trace")
    if not settings.slos or (settings.slos[0].ttft is None and settings.slos[0].e2e is None):
        raise LoadError("a capacity needs an SLO with a bound for ttft or e2e, which a growing queue would miss")
    if not 0 < attainment <= 1:
        raise LoadError(f"the share of requests that must meet the SLO must be above 0 and at most 1, not {attainment}")


def forecast(settings: LoadSettings) -> str:
    """How long a search takes, for the user."""
    length = duration(settings.duration or LOAD_SECONDS)
    if settings.num_requests is not None:
        length = f"what {settings.num_requests} requests take"
    return f"searching with up to {_MOST_LOADS} loads of {length} each; those that miss the objective end earlier"


class _Judge:
    """Whether a load can still meet the objective: too many misses among the planned requests end it."""

    def __init__(self, settings: LoadSettings, attainment: float) -> None:
        self._slo = settings.slos[0]
        planned = settings.num_requests or _LEAST_REQUESTS
        self._allowed = planned * (1 - attainment)
        self._missed = 0
        self.hopeless = False

    def __call__(self, record: RequestRecord) -> bool:
        self._missed += not record.meets(self._slo)
        self.hopeless |= self._missed > self._allowed
        return self.hopeless


def _begun(result: LoadResult) -> list[RequestRecord]:
    return [record for record in result.records if record.kind == "load"]


def _at_rate(settings: LoadSettings, rate: float | None) -> LoadSettings:
    """The settings of one load: by default so many seconds, but enough requests for a percentile."""
    number = settings.num_requests
    if number is None:
        seconds = settings.duration or LOAD_SECONDS
        number = max(_LEAST_REQUESTS, math.ceil(seconds * (rate or 0.0)))
    return replace(settings, rate=rate, num_requests=number, duration=None)


def _next_rate(found: Capacity) -> float:
    """Grow or shrink while one end is unknown, then meet in the middle; with the digits that are shown."""
    if found.bound is None:
        rate = found.rate * _GROWTH
    elif not found.rate:
        rate = found.bound / _GROWTH
    else:
        rate = math.sqrt(found.rate * found.bound)
    return float(f"{rate:.4g}")
