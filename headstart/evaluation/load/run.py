"""Putting a load on a server: warm-up, arrivals kept to their times, and an end that always leaves a result."""

import asyncio
import gc
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from headstart import __version__
from headstart.evaluation.load.agreement import compare, scrape
from headstart.evaluation.load.client import Client
from headstart.evaluation.load.plan import Ask, Extent, extent
from headstart.evaluation.load.prompts import WARM_UP, Prompts
from headstart.evaluation.load.records import RecordFile, RequestRecord
from headstart.evaluation.load.result import LoadResult
from headstart.evaluation.load.sender import Sender
from headstart.evaluation.load.session import Hopeless, Session
from headstart.evaluation.load.settings import LoadError, LoadSettings
from headstart.evaluation.load.target import Target, make_prompts, meet

try:
    import resource

    from uvloop import new_event_loop
except ImportError:  # there is none for Windows
    resource = None
    from asyncio import new_event_loop

# How long another thread of this process may keep the event loop waiting while both have work, in seconds.
_SWITCH_SECONDS = 0.0005

_SIGNALS = {signal.SIGINT: "interrupted by Ctrl-C", signal.SIGTERM: "ended by SIGTERM"}


class Observer(Protocol):
    """Hears how a load goes on."""

    def say(self, text: str) -> None:
        """A line for the user."""
        ...

    def progress(self, finished: int, total: int | None, running: int, failed: int) -> None:
        """Requests so far, about once a second; the total is None if only time ends the load."""
        ...


class Silent:
    """An observer that keeps it to itself."""

    def say(self, text: str) -> None:
        """Nothing."""

    def progress(self, finished: int, total: int | None, running: int, failed: int) -> None:
        """Nothing."""


def run_load(
    settings: LoadSettings,
    url: str,
    *,
    api_key: str | None = None,
    file: Path | None = None,
    observer: Observer | None = None,
    hopeless: Hopeless | None = None,
) -> LoadResult:
    """Put a load on a server and measure what every request gets.

    Ctrl-C, SIGTERM and a server that stops answering end it early with what was measured so far, marked `partial`.
    It runs an event loop of its own; outside of the main thread it leaves signals alone.

    Args:
        settings: the load.
        url: of any server with OpenAI's `/v1/completions`, with or without `/v1` at its end.
        api_key: for servers that want one.
        file: where each request is written as soon as it is over, as JSON lines; must not be there yet.
        observer: hears how it goes on.
        hopeless: sees each finished request, and ends the load early by returning True.

    Raises:
        LoadError: nobody answers at the URL, the load cannot be put on that server, or the trace is broken.
        OSError: the file cannot be written any more.
    """
    client = Client(url, api_key)
    with _undisturbed(), asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(_run(settings, client, file, observer or Silent(), hopeless))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep garbage collection off what other code has built up, other threads off the event loop's time, and the usual
    limit on open files off the number of connections.
    """
    interval = sys.getswitchinterval()
    if resource is not None:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(ValueError, OSError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.freeze()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.unfreeze()


async def _run(
    settings: LoadSettings, client: Client, file: Path | None, observer: Observer, hopeless: Hopeless | None
) -> LoadResult:
    size = extent(settings)
    try:
        target = await meet(client, settings)
        target.check_fits(*size.longest, settings)
        prompts = await make_prompts(client, target, settings)
        sender = Sender(client, settings.request_timeout)
        target, alone = await _warm_up(sender, target, prompts, settings, size)
        settings = _with_rate(settings, alone)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        result = LoadResult(settings, client.url, target, started, [], path=file)
        with ExitStack() as stack:
            session = Session(settings, sender, target, prompts, observer.progress, hopeless)
            await session.prepare()
            observer.say(_forecast(settings, session.asks, alone))
            records = None if file is None else stack.enter_context(RecordFile(file))
            if records is not None:
                records.header(
                    version=__version__,
                    settings=settings.to_json(),
                    url=client.url,
                    server=target.to_json(),
                    started=started,
                )
            stack.enter_context(_signals_end(session, result))
            before = await scrape(client)
            await session.run(_forget if records is None else records.request, alone.tpot or 0.0)
            result.origin = sender.origin
            result.records, result.partial, result.alive = session.records, session.why_ended, session.alive
            result.overhead = session.overhead()
            if session.alive:
                result.agreement = compare(result.records, before, await scrape(client))
            if records is not None:
                agreement = [asdict(item) for item in result.agreement]
                records.end(partial=result.partial, overhead=asdict(result.overhead), agreement=agreement)
        return result
    finally:
        client.close()


def _forget(record: RequestRecord) -> None:
    """Keep nothing: the result has it."""


async def _warm_up(
    sender: Sender, target: Target, prompts: Prompts, settings: LoadSettings, size: Extent
) -> tuple[Target, RequestRecord]:
    """Requests of typical size that run alone and are not counted; returns the last one's record, and the target
    without the fields that it does not take.

    Raises:
        LoadError: the server refuses or fails them.
    """
    record = None
    for index in range(settings.warmup):
        ask = Ask(index, None, *size.typical)
        prompt = await prompts.prompt(ask, WARM_UP)
        record = await sender.send("load", ask, target.body(prompt, ask.output_tokens))
        if record.http_status in (400, 422) and target.extras:
            target = replace(target, extras={})
            record = await sender.send("load", ask, target.body(prompt, ask.output_tokens))
        if record.status != "ok":
            raise LoadError(f"the server at {sender.client.url} does not answer a first request: {record.error}")
    assert record is not None
    return target, record


def _with_rate(settings: LoadSettings, alone: RequestRecord) -> LoadSettings:
    """The settings with a rate if they say nothing of when requests come: one comes when the last would be done."""
    if settings.rate is not None or settings.users is not None or settings.trace is not None:
        return settings
    # Two digits that count, so that a rerun with the printed rate is the same load.
    return replace(settings, rate=float(f"{1 / max(alone.e2e or 1.0, 1e-3):.2g}"))


def _forecast(settings: LoadSettings, asks: list[Ask], alone: RequestRecord) -> str:
    """What will happen and how long it will take."""
    service = alone.e2e or 0.0
    one = f"a request alone takes {duration(service)}"
    if settings.users is not None:
        total, last = settings.most_requests, settings.last_arrival
        least = service * -(-total // settings.users) if total else last or 0.0
        what = f"{total} requests" if total else duration(last or 0.0)
        return f"{settings.users} users, {what}: at least {duration(min(least, last or least))} ({one})"
    lead = " and a second for the probe" if settings.probe else ""
    span = asks[-1].at or 0.0
    rate = f" at {settings.rate:g} per second" if settings.rate else f" of {settings.trace}"
    return (
        f"{len(asks)} requests{rate}: {duration(span)} of arrivals{lead}, and then the last answers, "
        f"about {duration(span + service)} if the server keeps up ({one}), {duration(span + settings.drain)} at most"
    )


def duration(seconds: float) -> str:
    """For people: `40 ms`, `2.5 s`, `75 s`, `6 min`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"


@contextmanager
def _signals_end(session: Session, result: LoadResult) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the load rather than the process, which then has a result to show."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    def end(number: int) -> None:
        result.ended_by = number
        session.end(_SIGNALS[signal.Signals(number)])

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        with suppress(NotImplementedError):  # there is none for Windows
            loop.add_signal_handler(number, end, number)
    try:
        yield
    finally:
        for number, handler in before.items():
            with suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            signal.signal(number, handler)
