"""The search for a capacity, whoever answers: a simulation or a server."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from headstart.errors import HeadstartError

# Ends of the interval within a twentieth of each other are near enough.
PRECISION = 1.05
_GROWTH = 2.0
_MOST_PROBES = 24
# A rate so far below the one that was begun with is that of single requests; simulated ones cost nothing.
LEAST_SHARE = 1 / 1024


class CapacityError(HeadstartError):
    """A capacity that cannot be searched for."""


@dataclass(frozen=True)
class Targets:
    """What 99 of 100 must meet; times in seconds.

    Args:
        ttft: from arrival to first token, over requests.
        tbt: between two tokens of a request, over all such gaps of all requests.
    """

    ttft: float
    tbt: float

    def __post_init__(self) -> None:
        for name, value in (("ttft", self.ttft), ("tbt", self.tbt)):
            if not 0 < value < float("inf"):
                raise CapacityError(f"the target for {name} must be a time above 0, not {value}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """`"ttft=2,tbt=100ms"`: seconds, or with the unit `ms` or `s`; both are needed.

        Raises:
            CapacityError: it is not of this form.
        """
        found: dict[str, float] = {}
        for part in text.split(","):
            match = re.fullmatch(r"\s*(ttft|tbt)\s*=\s*(\d+\.?\d*|\.\d+)\s*(ms|s)?\s*", part)
            if match is None or match[1] in found:
                raise CapacityError(f"targets are written as ttft=2,tbt=100ms, not {text!r}")
            found[match[1]] = float(match[2]) / (1000 if match[3] == "ms" else 1)
        if len(found) < 2:
            raise CapacityError(f"a capacity needs targets for both ttft and tbt, as ttft=2,tbt=100ms, not {text!r}")
        return cls(**found)

    def __str__(self) -> str:
        return f"ttft={self.ttft:g}s,tbt={1000 * self.tbt:g}ms"


@dataclass(frozen=True)
class Probe:
    """A load at one rate.

    Attributes:
        rate: requests per second.
        ttft, tbt: the 99th percentiles, in seconds.
        output_rate: tokens written per second.
        served: whether every request was answered; a load that was ended early was not.
    """

    rate: float
    ttft: float
    tbt: float
    output_rate: float
    served: bool = True

    def meets(self, targets: Targets) -> bool:
        """Whether both tails are within their targets."""
        return self.served and self.ttft <= targets.ttft and self.tbt <= targets.tbt


@dataclass
class CapacityFound:
    """What a search found.

    Attributes:
        targets: that were asked for.
        rate: the highest rate that met them; 0 if none did.
        bound: the lowest that did not; None if all did.
        probes: every load, in that order.
    """

    targets: Targets
    rate: float = 0.0
    bound: float | None = None
    probes: list[Probe] = field(default_factory=list)

    @property
    def best(self) -> Probe | None:
        """The load at the capacity."""
        met = [probe for probe in self.probes if probe.meets(self.targets)]
        return max(met, key=lambda probe: probe.rate, default=None)

    @property
    def sentence(self) -> str:
        """The answer, and where no rate meets the targets, the nearest that one does."""
        if self.rate and self.bound is not None:
            return f"{self.rate:.3g} requests per second meet {self.targets}; {self.bound:.3g} do not"
        if self.rate:
            return (
                f"more than {self.rate:.3g} requests per second meet {self.targets}: at a higher rate so few requests "
                "would come all at once; take more of them"
            )
        served = [probe for probe in self.probes if probe.served]
        if not served:
            return f"no rate meets {self.targets}, and not even the lowest that was tried was served"
        nearest = min(served, key=self._beyond)
        met = Targets(_up(max(nearest.ttft, self.targets.ttft)), _up(max(nearest.tbt, self.targets.tbt)))
        return f"no rate meets {self.targets}; the nearest that is met, at {nearest.rate:.3g} per second, is {met}"

    def _beyond(self, probe: Probe) -> tuple[float, float]:
        """How far a load is from the targets, by the worse of the two and then by both."""
        shares = probe.ttft / self.targets.ttft, probe.tbt / self.targets.tbt
        return max(shares), sum(shares)


def search(
    probe: Callable[[float], Probe],
    targets: Targets,
    start: float,
    *,
    most: float = math.inf,
    least: float | None = None,
    precision: float = PRECISION,
    heard: Callable[[Probe, bool], None] = lambda probe, met: None,
) -> CapacityFound:
    """Grow or shrink the rate until the targets are crossed, then halve the interval on a logarithmic scale.

    Args:
        probe: puts on a load at a rate.
        targets: to be met.
        start: the rate to begin with.
        most: no rate above it is tried (`LoadShape.most_telling`).
        least: nor one below this (default: `LEAST_SHARE` of the first).
        precision: the search ends when the ends of the interval are within this factor.
        heard: hears of every load, and whether it met the targets.
    """
    found = CapacityFound(targets)
    rate = min(start, most)
    least = rate * LEAST_SHARE if least is None else least
    for _ in range(_MOST_PROBES):
        tried = probe(float(f"{rate:.4g}"))
        met = tried.meets(targets)
        found.probes.append(tried)
        heard(tried, met)
        if met:
            found.rate = tried.rate
        else:
            found.bound = tried.rate
        if found.bound is None:
            if found.rate >= most:
                break
            rate = min(found.rate * _GROWTH, most)
        elif not found.rate:
            if found.bound <= least:
                break
            rate = found.bound / _GROWTH
        elif found.bound / found.rate <= precision:
            break
        else:
            rate = math.sqrt(found.rate * found.bound)
    return found


def _up(value: float) -> float:
    """Three digits that are not below the value."""
    scale = 10 ** (2 - math.floor(math.log10(value)))
    return math.ceil(value * scale) / scale
