"""Calls on the event loop at exact times, and the measure of how late the loop is."""

import asyncio
import heapq
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter

import numpy as np

# How often the loop's lateness is sampled.
_SAMPLE_SECONDS = 0.05

Call = tuple[float, Callable[[], None]]


class Pacer:
    """A thread that sleeps until each call is due and hands it to the loop: the timers of event loops are a
    millisecond late. Each of its samples waits as long as a byte that arrives at that time.

    Args:
        calls: times of `time.perf_counter()`, rising, and what to call on the running loop then.

    Attributes:
        lateness: seconds from when a sample was due to when the loop got round to it.
    """

    def __init__(self, calls: Iterable[Call]) -> None:
        self.lateness: list[float] = []
        self._loop = asyncio.get_running_loop()
        self._calls = heapq.merge(calls, self._samples(), key=itemgetter(0))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="headstart-pacer", daemon=True)
        self._thread.start()

    def _samples(self) -> Iterator[Call]:
        due = time.perf_counter()
        while True:
            due += _SAMPLE_SECONDS
            yield due, lambda due=due: self.lateness.append(time.perf_counter() - due)

    def _run(self) -> None:
        for due, call in self._calls:
            wait = due - time.perf_counter()
            if self._stopped.is_set() or (wait > 0 and self._stopped.wait(wait)):
                return
            self._loop.call_soon_threadsafe(call)

    def stop(self) -> None:
        """End the thread; calls that are not due yet are dropped."""
        self._stopped.set()
        self._thread.join()


@dataclass(frozen=True)
class Overhead:
    """What the load generator itself took. Durations in seconds.

    Attributes:
        cpu_seconds: processor time of this process during the load.
        seconds: how long the load took.
        cores: of this machine.
        loop_lag: 50th and 99th percentile of how late the event loop got round to what was due; a token that arrives
            is noted as late as that.
        send_lag: the same percentiles of how late requests were sent, which counts as latency.
    """

    cpu_seconds: float
    seconds: float
    cores: int
    loop_lag: tuple[float, float]
    send_lag: tuple[float, float]

    @property
    def cpu_share(self) -> float:
        """The part of the machine's processor time that the generator took, 0 to 1."""
        return self.cpu_seconds / (self.seconds * self.cores)


def two_percentiles(values: list[float]) -> tuple[float, float]:
    """The 50th and the 99th, or zeros of nothing."""
    if not values:
        return 0.0, 0.0
    median, high = np.percentile(values, (50, 99))
    return float(median), float(high)
