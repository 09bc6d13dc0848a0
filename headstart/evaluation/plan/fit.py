"""The plan held against measured runs: at peak, and with efficiencies that were fitted at other lengths."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from headstart.engine.engine import Engine
from headstart.evaluation.engine_times import EngineTimes
from headstart.evaluation.nonnegative import fit_nonnegative
from headstart.evaluation.plan.costs import ModelCosts
from headstart.evaluation.plan.devices import Device, PlanError

# Fitted lengths, as parts of the lengths that are then predicted: never the same, and the longest lies beyond them.
_PARTS = (0.35, 0.7)
_ROUNDS = 3


@dataclass(frozen=True)
class Efficiency:
    """What of the peaks a machine reaches in this engine.

    Attributes:
        step: seconds of a prefill step that are not work.
        linear, attention: seconds per FLOP of matrix products and of attention.
        decode_step: seconds of a decode step that are not traffic.
        traffic: seconds per byte that a decode step reads.
    """

    step: float
    linear: float
    attention: float
    decode_step: float
    traffic: float

    @classmethod
    def fit(cls, costs: ModelCosts, chunk: int, prefill: dict[int, float], decode: dict[int, float]) -> Self:
        """From measured seconds by length.

        Args:
            costs: of the model.
            chunk: tokens of a prefill step.
            prefill: from prompts to first tokens.
            decode: of one step of one sequence.
        """
        rows = [(-(-n // chunk), costs.linear_flops(n), costs.attention_flops(n)) for n in prefill]
        step, linear, attention = fit_nonnegative(rows, list(prefill.values()))
        rows = [(1.0, _decode_bytes(costs, n)) for n in decode]
        decode_step, traffic = fit_nonnegative(rows, list(decode.values()))
        return cls(float(step), float(linear), float(attention), float(decode_step), float(traffic))

    def prefill(self, costs: ModelCosts, chunk: int, length: int) -> float:
        """Seconds from a prompt to its first token."""
        steps = -(-length // chunk)
        work = self.linear * costs.linear_flops(length) + self.attention * costs.attention_flops(length)
        return self.step * steps + work

    def decode(self, costs: ModelCosts, length: int) -> float:
        """Seconds per token of one sequence."""
        return self.decode_step + self.traffic * _decode_bytes(costs, length)


@dataclass(frozen=True)
class FitRow:
    """One quantity at one length; times in seconds.

    Attributes:
        what: "prefill" or "decode".
        length: tokens of context.
        peak: at the device's peaks.
        fitted: with the efficiencies, to which this length was unknown.
        measured: the median of the rounds.
    """

    what: str
    length: int
    peak: float
    fitted: float
    measured: float

    @property
    def error(self) -> float:
        """Of the fitted prediction, as a share of what was measured."""
        return self.fitted / self.measured - 1

    @property
    def of_peak(self) -> float:
        """The share of the device's peak that was reached."""
        return self.peak / self.measured


@dataclass(frozen=True)
class Fit:
    """What `fit` found."""

    efficiency: Efficiency
    chunk: int
    rows: list[FitRow]

    @property
    def worst(self) -> float:
        """The largest error, whichever its sign."""
        return max(abs(row.error) for row in self.rows)


def fit(
    engine: Engine,
    costs: ModelCosts,
    device: Device,
    lengths: Sequence[int],
    say: Callable[[str], None] = lambda _: None,
    rounds: int = _ROUNDS,
) -> Fit:
    """Measure an engine, fit its efficiencies, and predict lengths that were left out of the fit.

    Args:
        engine: idle, with no prefix cache.
        costs: of its model.
        device: what it runs on.
        lengths: of contexts to predict, at least one.
        say: hears how it goes on.
        rounds: of each measurement; the median counts.

    Raises:
        PlanError: a length that the engine cannot serve.
    """
    known = sorted({max(16, int(n * part)) for n in lengths for part in _PARTS} - set(lengths))
    decode_tokens = 16
    longest = max(lengths) + decode_tokens + 2
    if longest > engine.max_model_len:
        raise PlanError(
            f"a context of {max(lengths)} tokens and a short answer need {longest} tokens, and the engine serves "
            f"{engine.max_model_len}; ask for shorter --fit-lengths"
        )
    times = EngineTimes(engine)
    times.prefill(known[0])
    times.decode(known[0])
    prefill: dict[int, list[float]] = {n: [] for n in (*known, *lengths)}
    decode: dict[int, list[float]] = {n: [] for n in (*known, *lengths)}
    for number in range(rounds):
        say(f"measuring, round {number + 1} of {rounds}")
        # Interleaved, so that what disturbs the machine disturbs what is fitted and what is predicted alike.
        for n in sorted(prefill):
            prefill[n].append(times.prefill(n))
            decode[n].append(times.decode(n, tokens=decode_tokens))
    took = {n: statistics.median(values) for n, values in prefill.items()}
    wrote = {n: statistics.median(values) for n, values in decode.items()}
    chunk = engine.planner.max_num_batched_tokens
    found = Efficiency.fit(costs, chunk, {n: took[n] for n in known}, {n: wrote[n] for n in known})
    flops = device.peak(costs.dtype)
    rows = [
        FitRow("prefill", n, costs.prefill_flops(n) / flops, found.prefill(costs, chunk, n), took[n]) for n in lengths
    ]
    rows += [
        FitRow("decode", n, _decode_bytes(costs, n) / device.bandwidth, found.decode(costs, n), wrote[n])
        for n in lengths
    ]
    return Fit(found, chunk, rows)


def _decode_bytes(costs: ModelCosts, length: int) -> float:
    return costs.decode_weight_bytes() + costs.kv_read_bytes(length)
