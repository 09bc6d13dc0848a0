"""A load on simulated workers: replicas behind a router, or prefill and decode apart."""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from headstart.engine.request import Sequence as Output
from headstart.evaluation.load.plan import Ask
from headstart.evaluation.simulate.cost import SimulationError
from headstart.evaluation.simulate.worker import Job, SimWorker


@dataclass(frozen=True)
class SimResult:
    """What a load got; times in seconds.

    Attributes:
        jobs: every request, in order of arrival.
        workers: those that served it.
        seconds: from the first arrival to the last token.
    """

    jobs: list[Job]
    workers: list[SimWorker]
    seconds: float

    @property
    def ttft(self) -> np.ndarray:
        """Arrival to first token, per request `[N]`."""
        return np.array([job.tokens[0] - job.arrived for job in self.jobs])

    @property
    def tbt(self) -> np.ndarray:
        """Every gap between two tokens of one request, all together; the first token ends no gap."""
        gaps = [np.diff(job.tokens) for job in self.jobs]
        return np.concatenate(gaps) if gaps else np.empty(0)

    @property
    def tpot(self) -> np.ndarray:
        """Mean gap per request `[N]`; 0 for answers of one token."""
        spans = [(job.tokens[-1] - job.tokens[0]) / max(1, len(job.tokens) - 1) for job in self.jobs]
        return np.array(spans)

    @property
    def output_rate(self) -> float:
        """Tokens written per second."""
        return sum(len(job.tokens) for job in self.jobs) / self.seconds if self.seconds else 0.0

    def attainment(self, ttft: float, tpot: float) -> float:
        """The share of requests that meet both bounds."""
        return float(np.mean((self.ttft <= ttft) & (self.tpot <= tpot)))


class _Events:
    """What happens when, in order of time and then of being said."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = count()

    def at(self, time: float, happens: Callable[[float], None]) -> None:
        heapq.heappush(self._heap, (time, next(self._numbers), happens))

    def run(self) -> float:
        now = 0.0
        while self._heap:
            now, _, happens = heapq.heappop(self._heap)
            happens(now)
        return now


Router = Callable[[Job, Sequence[SimWorker]], SimWorker]


def least_loaded(job: Job, workers: Sequence[SimWorker]) -> SimWorker:
    """The worker with the fewest tokens to compute."""
    return workers[0] if len(workers) == 1 else min(workers, key=lambda worker: (worker.load, worker.count))


def simulate(asks: Iterable[Ask], workers: Sequence[SimWorker], route: Router = least_loaded) -> SimResult:
    """Serve a load with replicas.

    Args:
        asks: requests with arrival times, in order.
        workers: idle and equal.
        route: chooses a worker for each.

    Raises:
        SimulationError: a request that no worker could hold, or that none ever runs.
    """
    events, jobs = _Events(), [Job(ask, ask.at or 0.0) for ask in asks]
    begun = jobs[0].arrived if jobs else 0.0

    def go_on(worker: SimWorker, now: float) -> None:
        if worker.waits_for is None and worker.begin(now):
            assert worker.waits_for is not None
            events.at(worker.waits_for, lambda now: ended_step(worker, now))

    def ended_step(worker: SimWorker, now: float) -> None:
        worker.end()
        go_on(worker, now)

    def arrive(job: Job, now: float) -> None:
        worker = route(job, workers)
        worker.submit(job)
        # After all others that arrive at this moment.
        events.at(now, lambda now: go_on(worker, now))

    for job in jobs:
        events.at(job.arrived, lambda now, job=job: arrive(job, now))
    ended = events.run()
    _check(jobs)
    return SimResult(jobs, list(workers), ended - begun)


@dataclass(frozen=True)
class Link:
    """Between prefill and decode: bytes per second, seconds before the first of them, and bytes per token of keys."""

    bandwidth: float
    latency: float
    token_bytes: int

    def seconds(self, tokens: int) -> float:
        """To move the keys of so many tokens."""
        return self.latency + tokens * self.token_bytes / self.bandwidth


def simulate_disaggregated(
    asks: Iterable[Ask], prefill: Sequence[SimWorker], decode: Sequence[SimWorker], link: Link
) -> SimResult:
    """Serve a load with prefill and decode apart (DistServe, arXiv 2401.09670).

    Whoever has read a prompt keeps its keys until a decode worker with a free place and pages pulls them, in order.

    Raises:
        SimulationError: a request that no worker could hold, or that none ever runs.
    """
    events, jobs = _Events(), [Job(ask, ask.at or 0.0) for ask in asks]
    begun = jobs[0].arrived if jobs else 0.0
    bridge: deque[tuple[Job, SimWorker, Output]] = deque()

    def read_on(worker: SimWorker, now: float) -> None:
        if worker.waits_for is None and worker.begin(now):
            assert worker.waits_for is not None
            events.at(worker.waits_for, lambda now: has_read(worker, now))

    def has_read(worker: SimWorker, now: float) -> None:
        for job, sequence in worker.end():
            if sequence.lease is not None:  # answers of one token have ended
                worker.park(sequence)
                bridge.append((job, worker, sequence))
        pull(now)
        read_on(worker, now)

    def pull(now: float) -> None:
        while bridge:
            job, source, held = bridge[0]
            target = min(decode, key=lambda worker: worker.count)
            adopted = target.adopt(job, written=1)
            if adopted is None:
                return
            bridge.popleft()
            job.transfer = link.seconds(job.ask.input_tokens)
            arrives = now + job.transfer
            events.at(arrives, lambda now, s=source, h=held, t=target, a=adopted: arrived(s, h, t, a, now))

    def arrived(source: SimWorker, held: Output, target: SimWorker, adopted: Output, now: float) -> None:
        source.release(held)
        read_on(source, now)
        target.run(adopted)
        write_on(target, now)

    def write_on(worker: SimWorker, now: float) -> None:
        if worker.waits_for is None and worker.begin(now):
            assert worker.waits_for is not None
            events.at(worker.waits_for, lambda now: has_written(worker, now))

    def has_written(worker: SimWorker, now: float) -> None:
        worker.end()
        pull(now)
        write_on(worker, now)

    def arrive(job: Job, now: float) -> None:
        worker = least_loaded(job, prefill)
        worker.submit(job)
        events.at(now, lambda now: read_on(worker, now))

    for job in jobs:
        events.at(job.arrived, lambda now, job=job: arrive(job, now))
    ended = events.run()
    _check(jobs)
    return SimResult(jobs, [*prefill, *decode], ended - begun)


def _check(jobs: Sequence[Job]) -> None:
    """Everybody was served."""
    left = [job for job in jobs if len(job.tokens) < job.ask.output_tokens]
    if left:
        raise SimulationError(
            f"{len(left)} of {len(jobs)} requests were never served to the end: the scheduler leaves them waiting"
        )
