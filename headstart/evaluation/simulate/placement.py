"""Placement by simulation (DistServe, arXiv 2401.09670): which of several workers read, which write, or all do both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headstart.evaluation.capacity.loads import LoadShape
from headstart.evaluation.simulate.cost import SimulationError, StepCost
from headstart.evaluation.simulate.run import Link, SimResult, simulate, simulate_disaggregated
from headstart.evaluation.simulate.worker import SimWorker, WorkerSettings
from headstart.methods import registry

# Tokens of a step of either side, where the user names none.
DISTSERVE_TOKENS = 512
# Nine in ten requests must meet both bounds (section 2).
ATTAINMENT = 0.9
_PRECISION = 1.04
_MOST_PROBES = 30


@dataclass(frozen=True)
class Placement:
    """What the workers do: `replicas` do both with a scheduler, or `prefill` read and `decode` write."""

    replicas: int = 0
    prefill: int = 0
    decode: int = 0
    use: str = "sarathi-serve"

    @property
    def workers(self) -> int:
        """How many there are."""
        return self.replicas + self.prefill + self.decode

    def __str__(self) -> str:
        if self.replicas:
            return f"{self.replicas} x {self.use}"
        return f"prefill={self.prefill},decode={self.decode}"


@dataclass(frozen=True)
class Goodput:
    """A placement's answer.

    Attributes:
        placement: who does what.
        rate: the highest rate in requests per second at which enough requests meet both bounds; 0 if none.
        attainment: the share at that rate, or at the lowest that was tried.
        transfer: the share of all requests' time that their keys spent on the link.
    """

    placement: Placement
    rate: float
    attainment: float
    transfer: float

    @property
    def per_worker(self) -> float:
        """Requests per second and worker."""
        return self.rate / self.placement.workers


@dataclass(frozen=True)
class Cluster:
    """What every placement is simulated with.

    Attributes:
        cost: of a step on one worker.
        settings: of each worker's engine.
        link: between workers.
    """

    cost: StepCost
    settings: WorkerSettings
    link: Link

    def run(self, placement: Placement, shape: LoadShape, rate: float) -> SimResult:
        """Serve the load at a rate.

        Raises:
            SimulationError: a request that no worker could hold.
        """
        asks = shape.at(rate)
        if placement.replicas:
            return simulate(asks, self._workers(placement.replicas, placement.use))
        # As `headstart serve --disaggregate` starts them.
        tokens = self.settings.asked_tokens or DISTSERVE_TOKENS
        prefill, decode = (
            self._workers(count, f"distserve:role={role},tokens={tokens}")
            for role, count in (("prefill", placement.prefill), ("decode", placement.decode))
        )
        return simulate_disaggregated(asks, prefill, decode, self.link)

    def _workers(self, count: int, use: str) -> list[SimWorker]:
        return [SimWorker(self.cost, registry.build(use, "inference"), self.settings) for _ in range(count)]


def placements(workers: int, schedulers: Sequence[str]) -> list[Placement]:
    """Every way to use so many workers: all as replicas with one of the schedulers, or parted in two.

    Raises:
        SimulationError: there are none.
    """
    if workers < 1:
        raise SimulationError(f"a placement needs at least 1 worker, not {workers}")
    together = [Placement(replicas=workers, use=use) for use in schedulers]
    return together + [Placement(prefill=count, decode=workers - count) for count in range(1, workers)]


def goodput(
    cluster: Cluster, placement: Placement, shape: LoadShape, ttft: float, tpot: float, start: float
) -> Goodput:
    """The highest rate at which `ATTAINMENT` of the requests meet both bounds, by bisection.

    Args:
        cluster: the workers and their link.
        placement: who does what.
        shape: the load.
        ttft: seconds to the first token.
        tpot: mean seconds per token after it, which the way of the keys is part of.
        start: the rate to begin with.
    """
    low, high, best = 0.0, None, (0.0, 0.0)
    rate = start
    for _ in range(_MOST_PROBES):
        result = cluster.run(placement, shape, rate)
        share = result.attainment(ttft, tpot)
        spent = sum(job.tokens[-1] - job.arrived for job in result.jobs)
        moved = sum(job.transfer for job in result.jobs) / spent if spent else 0.0
        if share >= ATTAINMENT:
            low, best = rate, (share, moved)
        else:
            high = rate
            best = best if low else (share, moved)
        if high is None:
            rate *= 2
        elif not low:
            if rate < start / 1024:
                break
            rate /= 2
        elif high / low <= _PRECISION:
            break
        else:
            rate = (low * high) ** 0.5
    return Goodput(placement, low, *best)


def choose(
    cluster: Cluster,
    options: Sequence[Placement],
    shape: LoadShape,
    ttft: float,
    tpot: float,
    start: float,
    heard: Callable[[Goodput], None] = lambda _: None,
) -> list[Goodput]:
    """The goodput of each placement, the best first."""
    found = []
    for placement in options:
        found.append(goodput(cluster, placement, shape, ttft, tpot, start))
        heard(found[-1])
    return sorted(found, key=lambda item: item.rate, reverse=True)


def verdict(found: Sequence[Goodput]) -> str:
    """Whether taking prefill and decode apart pays, in one sentence."""
    apart = max((g for g in found if not g.placement.replicas), key=lambda g: g.rate, default=None)
    together = max((g for g in found if g.placement.replicas), key=lambda g: g.rate, default=None)
    if apart is None or together is None:
        return "there is nothing to compare: one worker cannot be parted"
    if not apart.rate and not together.rate:
        return "no placement meets both bounds at any rate: ask for looser ones"
    if apart.rate > together.rate:
        times = f"{apart.rate / together.rate:.2f} times" if together.rate else "where nothing else serves any:"
        return (
            f"it pays: {apart.placement} serves {times} the rate of {together.placement}, and keys are "
            f"{apart.transfer:.1%} of the time on the link"
        )
    share = f"{apart.rate / together.rate:.2f} times" if apart.rate else "none of"
    return f"it does not pay: {apart.placement} serves {share} the rate of {together.placement}"
