"""A load while it runs: who is sent when, who watches, and how it ends."""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from headstart.evaluation.load.client import Client, ConnectionFailed
from headstart.evaluation.load.pacer import Overhead, Pacer, two_percentiles
from headstart.evaluation.load.plan import Ask, plan
from headstart.evaluation.load.probe import Probe
from headstart.evaluation.load.prompts import Prompts
from headstart.evaluation.load.records import RequestRecord
from headstart.evaluation.load.sender import Sender
from headstart.evaluation.load.settings import LoadSettings
from headstart.evaluation.load.target import Target

_LEAD_SECONDS = 0.02
_WATCH_SECONDS = 0.25
_PROGRESS_SECONDS = 1.0
# How long a server whose connections break may take to show that it is still there.
_SIGN_OF_LIFE_SECONDS = 2.0

Keep = Callable[[RequestRecord], None]
Hopeless = Callable[[RequestRecord], bool]
Progress = Callable[[int, int | None, int, int], None]


class Session:
    """The load itself, after the warm-up.

    Args:
        settings: with a rate, users or a trace.
        sender: sends the requests.
        target: writes them.
        prompts: what they ask.
        progress: called about once a second with requests finished, planned, running and failed.
        hopeless: sees each finished request, and ends the load early by returning True.

    Attributes:
        asks: what is planned; empty for users, who ask as they go.
        records: of the requests that are over.
        why_ended: the reason, if the load ended before its time.
        alive: False once the server has stopped answering.
    """

    def __init__(
        self,
        settings: LoadSettings,
        sender: Sender,
        target: Target,
        prompts: Prompts,
        progress: Progress,
        hopeless: Hopeless | None = None,
    ) -> None:
        self._settings, self._sender, self._target, self._prompts = settings, sender, target, prompts
        self._progress, self._hopeless = progress, hopeless
        self.asks: list[Ask] = []
        self.records: list[RequestRecord] = []
        self.why_ended: str | None = None
        self.alive = True
        self._bodies: list[bytes] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None
        self._open = 0  # requests under way, without the probe
        self._open_since = 0.0
        self._finished = self._failed = 0
        self._suspicious = False
        self._over = asyncio.Event()
        self._lateness: list[float] = []
        self._cpu = self._seconds = 0.0

    async def prepare(self) -> None:
        """Plan the requests and write them, so that nothing but sending is left to do."""
        if self._settings.users is None:
            self.asks = list(plan(self._settings))
            self._bodies = [await self._body(ask) for ask in self.asks]

    async def _body(self, ask: Ask) -> bytes:
        return self._target.body(await self._prompts.prompt(ask), ask.output_tokens)

    async def run(self, keep: Keep, token_seconds: float) -> None:
        """Run the load to its end.

        Args:
            keep: takes each record as soon as the request is over.
            token_seconds: what a token takes alone, by which the probe's time alone is chosen.

        Raises:
            LoadError: the probe is not answered.
            OSError: a record could not be kept.
        """
        self._keep = keep
        self._sender.origin = time.perf_counter() + _LEAD_SECONDS
        if not self._settings.probe:
            await self._run_requests()
            return
        probe = Probe(self._sender, self._target, self._prompts, self._note)
        try:
            await _unless(self._over, probe.start(token_seconds))
            await self._run_requests()
        finally:
            await _end(probe.task)

    async def _run_requests(self) -> None:
        """The load, from its origin in time on."""
        origin, cpu = self._sender.origin, time.process_time()
        pacer = Pacer((origin + (ask.at or 0.0), partial(self._begin, ask, body)) for ask, body in self._planned())
        self._spawn(self._watch())
        if self._settings.users is not None:
            self._spawn(self._start_users())
        try:
            await self._over.wait()
        finally:
            self._over.set()
            pacer.stop()
            await _end(*self._tasks)
            self._lateness = pacer.lateness
            self._cpu, self._seconds = time.process_time() - cpu, time.perf_counter() - origin
        if self._error is not None:
            raise self._error

    def end(self, why: str) -> None:
        """End the load before its time; what is under way is cut off. The first reason stays."""
        if not self._over.is_set():
            self.why_ended = why
            self._over.set()

    def overhead(self) -> Overhead:
        """What the load generator took, after the run."""
        late = [record.sent - record.at for record in self.records if record.kind == "load"]
        return Overhead(
            self._cpu, self._seconds, _usable_cores(), two_percentiles(self._lateness), two_percentiles(late)
        )

    def _planned(self) -> Iterator[tuple[Ask, bytes]]:
        """Requests with their bytes, which are let go as they are taken."""
        for index, ask in enumerate(self.asks):
            body, self._bodies[index] = self._bodies[index], b""
            yield ask, body

    def _begin(self, ask: Ask, body: bytes) -> None:
        if not self._over.is_set():
            self._spawn(self._one(ask, body))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        """Forget a finished task; an error in it ends the load."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._error = self._error or task.exception()
            self._over.set()

    async def _start_users(self) -> None:
        """Run all users until they have asked enough."""
        await asyncio.sleep(max(0.0, self._sender.origin - time.perf_counter()))
        source = plan(self._settings)
        await asyncio.gather(*(self._user(source) for _ in range(self._settings.users or 0)))
        self._over.set()

    async def _user(self, source: Iterator[Ask]) -> None:
        """Ask, wait for the answer, ask again."""
        last = self._settings.last_arrival
        while not self._over.is_set():
            late = last is not None and time.perf_counter() - self._sender.origin >= last
            ask = None if late else next(source, None)
            if ask is None:
                return
            await self._one(ask, await self._body(ask))

    async def _one(self, ask: Ask, body: bytes) -> None:
        if self._open == 0:
            self._open_since = time.perf_counter()
        self._open += 1
        record = await self._sender.send("load", ask, body)
        self._open -= 1
        self._finished += 1
        self._failed += record.status != "ok"
        self._note(record)
        if self._settings.users is None and self._finished == len(self.asks):
            self._over.set()
        if self._hopeless is not None and self._hopeless(record):
            self.end("the objective cannot be met any more")

    def _note(self, record: RequestRecord) -> None:
        self._suspicious |= record.status == "broken"
        self.records.append(record)
        self._keep(record)

    async def _watch(self) -> None:
        """Report how it goes on, and end what would never end."""
        last = self.asks[-1].at if self.asks else self._settings.last_arrival
        deadline = None if last is None else self._sender.origin + last + self._settings.drain
        total = self._settings.most_requests if self._settings.users else len(self.asks)
        reported = 0.0
        while not self._over.is_set():
            now = time.perf_counter()
            if now - reported >= _PROGRESS_SECONDS:
                reported = now
                self._progress(self._finished, total, self._open, self._failed)
            if deadline is not None and now > deadline:
                self.end(f"{self._open} requests were still open {self._settings.drain:g} s after the last arrival")
            await self._check_server(now)
            await asyncio.sleep(_WATCH_SECONDS)

    async def _check_server(self, now: float) -> None:
        """End the load if the server does not answer any more."""
        client, silence = self._sender.client, self._settings.silence
        quiet = now - max(client.last_heard, self._open_since)
        if self._suspicious:
            self._suspicious = False
            self.alive = await _answers(client, _SIGN_OF_LIFE_SECONDS)
            why = "the server is gone: connections break and new ones get no answer"
        elif self._open and quiet > silence:
            self.alive = await _answers(client, silence)
            why = f"the server stopped answering: nothing came from it for {quiet + silence:.0f} s"
        else:
            return
        if not self.alive:
            self.end(f"{why}, after {self._finished - self._failed} answers")


def _usable_cores() -> int:
    """Cores that this process may run on; `evaluation.machine` has the same, but brings PyTorch with it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, unless the event comes first."""
    task, waiting = asyncio.create_task(work), asyncio.create_task(event.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _answers(client: Client, seconds: float) -> bool:
    """Whether the server answers anything at all."""
    try:
        await client.whole("GET", "/health", seconds=seconds)
    except ConnectionFailed:
        return False
    return True


async def _end(*tasks: asyncio.Task[None]) -> None:
    """Cancel what still runs and wait until it has kept what it had."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
