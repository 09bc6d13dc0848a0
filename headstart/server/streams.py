"""Async plumbing: work that ends with its client, several streams as one, and server-sent events."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from headstart.server.errors import ApiError, ClientGone, api_error, unavailable

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
# How long a stream that ends early waits for its client to take the reason.
FAREWELL_SECONDS = 1.0
# Of a request with several prompts, so many outputs may wait for a client that reads slowly.
UNREAD_OUTPUTS = 64


async def unless_gone(receive: Receive, closing: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled as soon as nobody waits for it.

    Args:
        receive: the request's ASGI channel, after its body has been read.
        closing: set when the server must close now.
        work: what the client waits for.

    Raises:
        ClientGone: the client closed its connection.
        ApiError: 503, the server is closing.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(receive))
    closed = asyncio.ensure_future(closing.wait())
    try:
        await asyncio.wait({task, gone, closed}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGone
        raise unavailable("the server shut down before this request was finished; try again later")
    finally:
        await _cancel(task, gone, closed)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what still runs and wait until it has cleaned up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def merge(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Items of all streams as they come, with the index of theirs. The first error ends all of them."""
    queue: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()

    async def feed(index: int, stream: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(stream):
                async for item in stream:
                    queue.put_nowait((index, item))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.ensure_future(feed(index, stream)) for index, stream in enumerate(streams)]
    running = len(tasks)
    try:
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        await _cancel(*tasks)


def together(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """`merge`, which takes no more from the streams while its reader is behind: what comes meanwhile joins there."""
    return _alone(streams[0]) if len(streams) == 1 else _merged(streams)


async def _alone(stream: AsyncGenerator[T, None]) -> AsyncGenerator[tuple[int, T], None]:
    async with aclosing(stream):
        async for item in stream:
            yield 0, item


async def _merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    permits = asyncio.Semaphore(UNREAD_OUTPUTS)

    async def held_back(stream: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        async with aclosing(stream):
            async for item in stream:
                await permits.acquire()
                yield item

    async with aclosing(merge([held_back(stream) for stream in streams])) as items:
        async for item in items:
            permits.release()
            yield item


class Begun(AsyncIterator[T]):
    """A stream whose first item is there, so that a refusal still had an HTTP status of its own."""

    def __init__(self, first: T, rest: AsyncGenerator[T, None]) -> None:
        self._first: list[T] = [first]
        self._rest = rest

    async def __anext__(self) -> T:
        return self._first.pop() if self._first else await anext(self._rest)

    async def aclose(self) -> None:
        """End the source, whether or not anything was read."""
        await self._rest.aclose()


async def begin(stream: AsyncGenerator[T, None], receive: Receive, closing: asyncio.Event) -> Begun[T]:
    """Wait for the first item of `stream`, unless nobody waits for it any more (see `unless_gone`)."""

    async def first() -> T:
        return await anext(stream)

    try:
        return Begun(await unless_gone(receive, closing, first()), stream)
    except BaseException:
        await stream.aclose()
        raise


def event(data: dict[str, Any], name: str | None = None) -> bytes:
    """One server-sent event; `name` is its type where the API names its events."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(Response):
    """A `text/event-stream` response that ends its source when the client leaves or the server closes.

    An error after the first event ends it with a `farewell`, for the status has gone out by then.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        source: Begun[Any],
        events: AsyncGenerator[bytes, None],
        closing: asyncio.Event,
        farewell: Callable[[ApiError], bytes],
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.source, self.events, self.closing, self.farewell = source, events, closing, farewell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await unless_gone(receive, self.closing, self._pump(send))
        except ClientGone:
            return
        except Exception as error:
            # A client that has stopped reading must not hold up the shutdown.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_send(send, self.farewell(api_error(error))), FAREWELL_SECONDS)
        finally:
            # Closing `events` does not reach the source if nothing was ever read from it.
            await self.events.aclose()
            await self.source.aclose()
        with contextlib.suppress(TimeoutError):
            last = {"type": "http.response.body", "body": b"", "more_body": False}
            await asyncio.wait_for(send(last), FAREWELL_SECONDS)

    async def _pump(self, send: Send) -> None:
        async for data in self.events:
            await _send(send, data)


async def _send(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})
