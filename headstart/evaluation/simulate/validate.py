"""Whether the simulator tells the truth: the goodput of a load on real engines beside what it says of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from headstart.evaluation.capacity.loads import LoadShape
from headstart.evaluation.load.run import Observer, run_load
from headstart.evaluation.load.settings import Slo
from headstart.evaluation.simulate.cost import SimulationError
from headstart.evaluation.simulate.placement import Cluster, Placement
from headstart.evaluation.simulate.run import SimResult

# Below what the placement can do, near it, and beyond: a queue that grows is the hardest to foretell.
SHARES = (0.5, 0.8, 1.1)


@dataclass(frozen=True)
class Check:
    """A load at one rate, in requests per second; goodput is of those that met both bounds.

    Attributes:
        rate: at which it came.
        measured, simulated: goodput.
        met: the shares of requests that met both, measured and simulated.
    """

    rate: float
    measured: float
    simulated: float
    met: tuple[float, float]

    @property
    def error(self) -> float:
        """Of the simulated goodput, relative to the measured one."""
        if not self.measured:
            return 0.0 if not self.simulated else float("inf")
        return abs(self.simulated / self.measured - 1)


def bounds_of(cluster: Cluster, placement: Placement, load: LoadShape, rate: float) -> Slo:
    """Bounds that a quiet placement meets with some room: three times what the slowest tenth of requests gets there.

    Args:
        cluster: the engines.
        placement: what they do.
        load: its shape.
        rate: so low that requests hardly meet.
    """
    quiet = cluster.run(placement, load, rate)
    ttft, tpot = (float(f"{3 * sorted(values)[int(0.9 * len(values))]:.2g}") for values in (quiet.ttft, quiet.tpot))
    return Slo(ttft=ttft, tpot=tpot)


def validate(
    cluster: Cluster,
    placement: Placement,
    load: LoadShape,
    bounds: Slo,
    rates: Sequence[float],
    url: str,
    observer: Observer,
    heard: Callable[[Check], None] = lambda check: None,
) -> Iterator[Check]:
    """Put the load on a server at each rate, and on the simulator.

    Args:
        cluster: the simulated engines.
        placement: what they do, as the server's do.
        load: its shape.
        bounds: on ttft and tpot.
        rates: requests per second.
        url: of the server.
        observer: hears how each load goes on.
        heard: hears each check.

    Raises:
        SimulationError: a load that did not come to its end.
    """
    assert bounds.ttft is not None and bounds.tpot is not None
    for rate in rates:
        result = run_load(replace(load.settings_at(rate), slos=(bounds,)), url, observer=observer)
        if result.ended_by is not None:
            raise KeyboardInterrupt
        if result.partial is not None:
            raise SimulationError(f"the load of {rate:.3g} requests per second was not served: {result.partial}")
        good = result.summary.goodput[0]
        told = cluster.run(placement, load, rate)
        share = told.attainment(bounds.ttft, bounds.tpot)
        check = Check(rate, good.per_second, _goodput(told, share), (good.share, share))
        heard(check)
        yield check


def _goodput(told: SimResult, share: float) -> float:
    return share * len(told.jobs) / told.seconds if told.seconds else 0.0
