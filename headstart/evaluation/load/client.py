"""A lean HTTP/1.1 client that notes when each piece of an answer came out of the socket."""

import asyncio
import json
import ssl
import time
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

from headstart.evaluation.load.settings import LoadError

CONNECT_SECONDS = 10.0
# Servers close a connection that is idle for a few seconds; a request written just then would be lost.
_IDLE_SECONDS = 3.0


class ConnectionFailed(Exception):
    """The connection could not be made or was lost before the answer was complete; the text says how."""


class Reply:
    """What has come back so far.

    Args:
        close: closes the connection.
        on_piece: called when a piece of the body of a success has come.

    Attributes:
        status: the HTTP status, 0 before it came.
        pieces: time of `time.perf_counter()` and bytes of each piece of the body.
        done: set when the body is complete; fails with `ConnectionFailed`.
    """

    def __init__(self, close: Callable[[], None], on_piece: Callable[[], None] | None = None) -> None:
        self.close, self.on_piece = close, on_piece
        self.status = 0
        self.pieces: list[tuple[float, bytes]] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def complete(self) -> bool:
        """Whether all of it has come."""
        return self.done.done() and not self.done.cancelled() and self.done.exception() is None

    @property
    def body(self) -> bytes:
        """The body so far."""
        return b"".join(piece for _, piece in self.pieces)

    def end(self, why: str | None = None) -> None:
        """There will be no more; `why` says what went wrong."""
        if self.done.done():
            return
        if why is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(ConnectionFailed(why))


class _Connection(asyncio.Protocol):
    """One connection, used for one request after another."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._reply: Reply | None = None
        self._until_closed = False
        self.transport: asyncio.Transport
        self.open = False
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.open = cast(asyncio.Transport, transport), True

    def send(self, request: bytes, reply: Reply) -> None:
        """Write a request whose answer goes to `reply`."""
        self._reply = reply
        self._parser = httptools.HttpResponseParser(self)
        self._until_closed = True
        self._now = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._now = self._client.last_heard = time.perf_counter()
        if self._reply is None:
            self.transport.abort()  # nobody asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._reply.end("the answer is not HTTP")
            self.transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._until_closed = False

    def on_headers_complete(self) -> None:
        if self._reply is not None:
            self._reply.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        reply = self._reply
        if reply is not None:
            reply.pieces.append((self._now, body))
            if reply.on_piece is not None and reply.status == 200:
                reply.on_piece()

    def on_message_complete(self) -> None:
        reply, self._reply = self._reply, None
        if reply is not None:
            reply.end()
        if self._parser.should_keep_alive():
            self.idle_since = self._now
            self._client.idle.append(self)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        reply, self._reply = self._reply, None
        if reply is None:
            return
        if exc is None and reply.status and self._until_closed:
            reply.end()
        else:
            reply.end(f"the connection was lost {'during the answer' if reply.status else 'before an answer came'}")


class Client:
    """Requests to one server.

    Args:
        url: of the server, with or without `/v1` at its end.
        api_key: sent as a bearer token.

    Attributes:
        idle: connections that wait for their next request.
        last_heard: when the last byte came from the server, by `time.perf_counter()`.

    Raises:
        LoadError: the URL is none.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1").rstrip("/")
        try:
            parts = urlsplit(self.url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
            raise LoadError(f"{url!r} is no address of a server; write one such as http://127.0.0.1:8000")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host, self._port = host, port or (443 if self._tls else 80)
        self._path = parts.path
        self._address: str | None = None
        named = f"[{self._host}]" if ":" in self._host else self._host
        authorization = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._headers = (
            f"Host: {named}:{self._port}\r\nUser-Agent: headstart-bench\r\nAccept: */*\r\n{authorization}"
            "Content-Type: application/json\r\n"
        )
        self.idle: list[_Connection] = []
        self.last_heard = 0.0

    async def ask(
        self, method: str, path: str, body: bytes = b"", *, on_piece: Callable[[], None] | None = None
    ) -> Reply:
        """Send a request; returns the reply, which grows.

        Raises:
            ConnectionFailed: no connection could be made.
        """
        head = f"{method} {self._path}{path} HTTP/1.1\r\n{self._headers}Content-Length: {len(body)}\r\n\r\n"
        connection = await self._connection()
        reply = Reply(connection.transport.abort, on_piece)
        connection.send(head.encode() + body, reply)
        return reply

    async def _connection(self) -> _Connection:
        while self.idle:
            # The one used last is the one that the server is least likely to have given up.
            connection = self.idle.pop()
            fresh = time.perf_counter() - connection.idle_since < _IDLE_SECONDS
            if fresh and connection.open and not connection.transport.is_closing():
                return connection
            connection.transport.abort()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await self._connect()
        except TimeoutError:
            raise ConnectionFailed("no connection within 10 s") from None
        except OSError as error:
            raise ConnectionFailed(f"no connection: {error.strerror or error}") from None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        name = self._host if self._tls else None
        # The name is looked up once: a look-up goes through a thread and would count as latency.
        host = self._address or self._host
        transport, connection = await loop.create_connection(
            lambda: _Connection(self), host, self._port, ssl=self._tls, server_hostname=name
        )
        self._address = transport.get_extra_info("peername")[0]
        return connection

    async def whole(self, method: str, path: str, body: Any = None, *, seconds: float = 60.0) -> tuple[int, bytes]:
        """Status and body of a small request, with `body` as its JSON.

        Raises:
            ConnectionFailed: no complete answer came within the time.
        """
        data = b"" if body is None else json.dumps(body).encode()
        reply = None
        try:
            async with asyncio.timeout(seconds):
                reply = await self.ask(method, path, data)
                await reply.done
        except TimeoutError:
            if reply is not None:
                reply.close()
            raise ConnectionFailed(f"no answer within {seconds:g} s") from None
        return reply.status, reply.body

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self.idle:
            connection.transport.abort()
        self.idle.clear()
