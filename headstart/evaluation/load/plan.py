"""Which requests a load consists of: when each arrives, how long it is, and what it shares with others."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headstart.evaluation.load.settings import LoadError, LoadSettings
from headstart.evaluation.load.traces import MOONCAKE_BLOCK, TraceRequest, read_trace

# Of the streams of random numbers that a seed gives, each for one purpose.
ARRIVALS, LENGTHS = 1, 2


@dataclass(frozen=True)
class Ask:
    """A request to be made.

    Attributes:
        index: its number, from 0.
        at: intended arrival in seconds after the load's start; None for a user who asks when ready.
        input_tokens: length of the prompt.
        output_tokens: length of the answer.
        blocks: names of the prompt's blocks: equal names are equal tokens. None for a prompt of its own.
        block_tokens: tokens in a block.
    """

    index: int
    at: float | None
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] | None = None
    block_tokens: int = 0


def arrival_times(rate: float, cv: float, seed: int) -> Iterator[float]:
    """Endless arrival times in seconds, the first at 0, at `rate` per second on average.

    Args:
        rate: arrivals per second.
        cv: coefficient of variation of the gaps, which are gamma distributed with shape 1/cv²: 1 makes them
            exponential (a Poisson process), 0 constant.
        seed: of the draw.
    """
    rng = np.random.default_rng([seed, ARRIVALS])
    shape = 1 / cv**2 if cv else 0.0
    time = 0.0
    while True:
        yield time
        time += float(rng.gamma(shape, 1 / (shape * rate))) if cv else 1 / rate


def plan(settings: LoadSettings) -> Iterator[Ask]:
    """The requests of a load whose rate, users or trace is set, in order of arrival.

    Raises:
        LoadError: the trace cannot be read, or no request of it is left.
    """
    asks = _replayed(settings) if settings.trace is not None else _drawn(settings)
    last = settings.last_arrival
    asks = itertools.islice(asks, settings.most_requests)
    return itertools.takewhile(lambda ask: last is None or ask.at is None or ask.at < last, asks)


@dataclass(frozen=True)
class Extent:
    """Tokens of prompt and output: of a request in the middle, and of the one that is longest altogether."""

    typical: tuple[int, int]
    longest: tuple[int, int]


def extent(settings: LoadSettings) -> Extent:
    """How long a load's requests are.

    Raises:
        LoadError: the trace cannot be read, or no request of it is left.
    """
    if settings.trace is None:
        both = (settings.input_tokens, settings.output_tokens)
        middle = tuple((lengths.low + lengths.high) // 2 for lengths in both)
        return Extent((middle[0], middle[1]), (both[0].high, both[1].high))
    sizes = [(ask.input_tokens, ask.output_tokens) for ask in plan(settings)]
    return Extent(sorted(sizes)[len(sizes) // 2], max(sizes, key=sum))


def _drawn(settings: LoadSettings) -> Iterator[Ask]:
    rng = np.random.default_rng([settings.seed, LENGTHS])
    times = itertools.repeat(None)
    if settings.rate is not None:
        times = arrival_times(settings.rate, settings.cv, settings.seed)
    for index, at in enumerate(times):
        yield Ask(index, at, settings.input_tokens.draw(rng), settings.output_tokens.draw(rng))


def _replayed(settings: LoadSettings) -> Iterator[Ask]:
    """The trace's requests that were answered, from its first one on."""
    assert settings.trace is not None
    requests = (
        request for request in read_trace(Path(settings.trace)) if request.output_tokens and request.input_tokens
    )
    first = next(requests, None)
    if first is None:
        raise LoadError(f"the trace {settings.trace} holds no request that was answered")
    for index, request in enumerate(itertools.chain([first], requests)):
        yield _scaled(settings, index, request, (request.time - first.time) / settings.fast_forward)


def _scaled(settings: LoadSettings, index: int, request: TraceRequest, at: float) -> Ask:
    # Blocks shrink with the prompts, so that the share of a prompt that is found in the cache stays.
    scale = settings.length_scale
    block = max(1, round(MOONCAKE_BLOCK * scale)) if request.hash_ids is not None else 0
    length = max(1, round(request.input_tokens * scale))
    if request.hash_ids is not None:
        length = min(length, len(request.hash_ids) * block)
    length = min(length, settings.max_input or length)
    output = max(1, round(request.output_tokens * scale))
    output = min(output, settings.max_output or output)
    blocks = request.hash_ids[: -(-length // block)] if request.hash_ids is not None else None
    return Ask(index, at, length, output, blocks, block)
