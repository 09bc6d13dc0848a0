"""What a step costs: a model with few terms, fitted to measured steps."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from headstart.errors import HeadstartError
from headstart.evaluation.nonnegative import fit_nonnegative

Row = tuple[int, int]
"""Tokens that a sequence computes in a step, and tokens of its context at the end of it."""

# The time of everything but attention is read off at these numbers of tokens, with straight lines between them.
KNOTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
# Steps that others on the machine disturbed: so many of the worst are left out.
_OUTLIERS = 0.1
_LEAST_SAMPLES = 20


class SimulationError(HeadstartError):
    """A simulation that cannot be run: too few measurements, or a load that no worker could hold."""


@dataclass(frozen=True)
class StepSample:
    """A measured step."""

    rows: tuple[Row, ...]
    seconds: float


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step.

    Attributes:
        knots: numbers of tokens, ascending.
        linear: seconds of a step of so many tokens, but for attention: weights are read once, and computing begins to
            count somewhere.
        pair: seconds per query-key pair of a chunk.
        read: seconds per token of context of a decode.
        sequence: seconds per sequence.
    """

    knots: tuple[int, ...]
    linear: tuple[float, ...]
    pair: float
    read: float
    sequence: float

    def seconds(self, rows: Sequence[Row]) -> float:
        """Of a step with these rows."""
        tokens = pairs = context = 0
        for new, end in rows:
            tokens += new
            if new > 1:
                pairs += new * (end - new) + new * (new + 1) // 2
            else:
                context += end
        return self._linear(tokens) + self.pair * pairs + self.read * context + self.sequence * len(rows)

    def _linear(self, tokens: int) -> float:
        """Between knots on a line, beyond the last on that through the last two."""
        knots, values = self.knots, self.linear
        if len(knots) == 1:
            return values[0]
        place = min(max(bisect_left(knots, tokens), 1), len(knots) - 1)
        low, high = knots[place - 1], knots[place]
        share = max(0.0, (tokens - low) / (high - low))
        return values[place - 1] + share * (values[place] - values[place - 1])

    @classmethod
    def fit(cls, samples: Sequence[StepSample]) -> Self:
        """The cost model that comes nearest to measured steps, by relative error.

        Raises:
            SimulationError: too few steps.
        """
        if len(samples) < _LEAST_SAMPLES:
            raise SimulationError(f"a cost model needs at least {_LEAST_SAMPLES} measured steps, not {len(samples)}")
        totals = [sum(new for new, _ in sample.rows) for sample in samples]
        inner = [knot for knot in KNOTS if min(totals) <= knot <= max(totals)]
        knots = tuple(sorted({min(totals), *inner, max(totals)}))
        kept = list(samples)
        for last in (False, True):
            rows = [_features(sample.rows, knots) for sample in kept]
            found = fit_nonnegative(rows, [sample.seconds for sample in kept])
            cost = cls(
                knots=knots,
                linear=_filled(knots, found[: len(knots)], np.asarray(rows)[:, : len(knots)].sum(0)),
                pair=float(found[-3]),
                read=float(found[-2]),
                sequence=float(found[-1]),
            )
            if last:
                return cost
            worst = sorted(kept, key=lambda sample: abs(np.log(cost.seconds(sample.rows) / sample.seconds)))
            kept = worst[: max(_LEAST_SAMPLES, int(len(worst) * (1 - _OUTLIERS)))]
        raise AssertionError

    def error(self, samples: Sequence[StepSample]) -> float:
        """The median relative error on measured steps."""
        return float(np.median([abs(self.seconds(s.rows) / s.seconds - 1) for s in samples]))


def _features(rows: Sequence[Row], knots: tuple[int, ...]) -> list[float]:
    """The step's place between the knots, its pairs, its context and its sequences."""
    tokens = sum(new for new, _ in rows)
    place = [0.0] * len(knots)
    if len(knots) == 1:
        place[0] = 1.0
    else:
        at = min(max(bisect_left(knots, tokens), 1), len(knots) - 1)
        share = (tokens - knots[at - 1]) / (knots[at] - knots[at - 1])
        place[at - 1], place[at] = 1 - share, share
    pairs = sum(new * (end - new) + new * (new + 1) / 2 for new, end in rows if new > 1)
    context = sum(end for new, end in rows if new == 1)
    return [*place, float(pairs), float(context), float(len(rows))]


def _filled(knots: tuple[int, ...], values: np.ndarray, weight: np.ndarray) -> tuple[float, ...]:
    """The values at the knots, never falling; where nothing was measured, on the line between neighbours."""
    seen = weight > 0
    filled = np.interp(knots, np.asarray(knots)[seen], values[seen])
    return tuple(float(value) for value in np.maximum.accumulate(filled))
