"""Latencies of late: a ring of samples, its percentiles, and a histogram on a logarithmic grid."""

import math
from collections import Counter, deque
from typing import Any

SAMPLES_KEPT = 1024
PERCENTILES = (50, 90, 99)
_BINS_PER_DECADE = 8
# Nothing that a clock can tell from zero is drawn further to the left than this.
_SHORTEST = 1e-5


class Recent:
    """The last `SAMPLES_KEPT` durations, in seconds."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=SAMPLES_KEPT)
        self._total = 0

    def add(self, seconds: float, times: int = 1) -> None:
        """Record a duration that occurred so many times."""
        self._samples.extend([seconds] * min(times, SAMPLES_KEPT))
        self._total += times

    def summary(self) -> dict[str, Any]:
        """As plain data.

        Returns:
            `total` (all that were ever added), `count` (those that the rest is about), `percentiles` (seconds by
            `PERCENTILES`, by nearest rank; empty without samples) and `bins` (low, high, count; eight to a power of
            ten, without gaps from the shortest to the longest).
        """
        ordered = sorted(self._samples)
        found = Counter(math.floor(math.log10(max(value, _SHORTEST)) * _BINS_PER_DECADE) for value in ordered)
        places = range(min(found), max(found) + 1) if found else ()
        return {
            "total": self._total,
            "count": len(ordered),
            "percentiles": {str(p): ordered[math.ceil(p / 100 * len(ordered)) - 1] for p in PERCENTILES if ordered},
            "bins": [[_edge(place), _edge(place + 1), found[place]] for place in places],
        }


def _edge(place: int) -> float:
    return 10 ** (place / _BINS_PER_DECADE)
