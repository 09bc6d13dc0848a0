"""One load at any rate: the requests of a trace, or drawn ones, whose arrivals are drawn together or apart."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from headstart.evaluation.capacity.search import CapacityError
from headstart.evaluation.load.plan import Ask, plan
from headstart.evaluation.load.settings import Lengths, LoadSettings

# A percentile of less would hang on one request.
LEAST_REQUESTS = 20


@dataclass(frozen=True)
class LoadShape:
    """A load without its rate.

    Attributes:
        settings: those of the load at rate `natural`.
        asks: its requests.
        natural: requests per second from its first to its last arrival.
    """

    settings: LoadSettings
    asks: Sequence[Ask]
    natural: float

    @classmethod
    def of(cls, settings: LoadSettings, requests: int) -> Self:
        """The first requests of a trace, or so many drawn ones.

        Args:
            settings: with a trace or a rate.
            requests: how many.

        Raises:
            LoadError: the trace cannot be read; a time out of order is named with its line.
            CapacityError: too few requests for a percentile, or all at once.
        """
        settings = replace(settings, num_requests=requests, duration=None)
        if settings.trace is None and settings.rate is None:
            settings = replace(settings, rate=1.0)
        asks = list(itertools.islice(plan(settings), requests))
        span = (asks[-1].at or 0.0) - (asks[0].at or 0.0) if asks else 0.0
        if len(asks) < LEAST_REQUESTS or span <= 0:
            what = f"has {len(asks)} requests" if span > 0 else "has all its requests at once"
            raise CapacityError(f"the load {what}; a 99th percentile needs at least {LEAST_REQUESTS} over some time")
        return cls(settings, asks, (len(asks) - 1) / span)

    def at(self, rate: float) -> list[Ask]:
        """The requests, arriving so many per second: the same order and the same bursts, closer or further apart."""
        factor = self.natural / rate
        return [replace(ask, at=(ask.at or 0.0) * factor) for ask in self.asks]

    def settings_at(self, rate: float) -> LoadSettings:
        """The same for the load generator."""
        if self.settings.trace is None:
            return replace(self.settings, rate=(self.settings.rate or 1.0) * rate / self.natural)
        return replace(self.settings, fast_forward=self.settings.fast_forward * rate / self.natural)

    def most_telling(self, ttft: float) -> float:
        """The highest rate of which the load says something: its arrivals last as long as a first token may take, for
        of requests that come all at once none shows whether the next ones would be served, too."""
        return (len(self.asks) - 1) / ttft

    @property
    def means(self) -> tuple[Lengths, Lengths]:
        """The mean prompt and the mean answer, for a load of as much work."""
        prompts, answers = (
            round(sum(each) / len(self.asks))
            for each in zip(*((ask.input_tokens, ask.output_tokens) for ask in self.asks), strict=True)
        )
        return Lengths(prompts, prompts), Lengths(answers, answers)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and answer together that may come."""
        drawn = [] if self.settings.trace else [self.settings.input_tokens.high + self.settings.output_tokens.high]
        return max([ask.input_tokens + ask.output_tokens for ask in self.asks] + drawn)
