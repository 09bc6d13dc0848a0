"""Serving the application: the port, the event loop and a shutdown that lets running requests finish."""

import asyncio
import errno
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Self

import uvicorn
from fastapi import FastAPI

from headstart.errors import HeadstartError
from headstart.server.lifecycle import Lifecycle

BACKLOG = 2048
# Long enough that a client's pool of connections rarely meets one that has just been closed.
KEEP_ALIVE_SECONDS = 30


@dataclass(frozen=True)
class Tls:
    """A private key and the certificate chain that goes with it, as PEM files."""

    keyfile: Path
    certfile: Path

    @classmethod
    def of(cls, keyfile: Path | None, certfile: Path | None) -> Self | None:
        """Both files, tried out now rather than at the first connection; None when neither is given.

        Raises:
            HeadstartError: one is missing, cannot be read, or does not go with the other.
        """
        if keyfile is None and certfile is None:
            return None
        if keyfile is None or certfile is None:
            raise HeadstartError("HTTPS takes both --ssl-keyfile and --ssl-certfile")
        for path in (keyfile, certfile):
            if not path.is_file():
                raise HeadstartError(f"there is no file {path} to serve HTTPS with")
        try:
            # A key with a passphrase would wait for somebody to type it.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keyfile, password="")
        except (ssl.SSLError, OSError, ValueError):
            message = f"{keyfile} and {certfile} are not a private key without passphrase and its certificate, in PEM"
            raise HeadstartError(message) from None
        return cls(keyfile, certfile)


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address and not yet listening; port 0 takes any free one.

    Raises:
        HeadstartError: the port is in use, or the address cannot be had.
    """
    if not 0 <= port <= 65535:
        raise HeadstartError(f"port {port} does not exist; choose one from 0 (any free one) to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise HeadstartError(f"{host!r} is no address of this machine; choose another with --host") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _no_port(host, port, error) from None
    return listener


def run_server(
    app: FastAPI,
    listener: socket.socket,
    *,
    shutdown_timeout: float = 30.0,
    log_level: str = "info",
    tls: Tls | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then drain; a second signal ends what still runs.

    Args:
        app: made by `create_app`.
        listener: a socket from `bind`.
        shutdown_timeout: seconds that running requests have to finish.
        log_level: uvicorn's; "info" writes a line per request.
        tls: serves HTTPS; None serves HTTP.

    Raises:
        HeadstartError: another program began to listen on the port in the meantime.
    """
    host, port = listener.getsockname()[:2]
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        raise _no_port(host, port, error) from None
    config = uvicorn.Config(
        app,
        log_level=log_level,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=5,
        server_header=False,
        backlog=BACKLOG,
        ssl_keyfile=None if tls is None else str(tls.keyfile),
        ssl_certfile=None if tls is None else str(tls.certfile),
    )
    DrainingServer(config, app.state.service.lifecycle, shutdown_timeout).run(sockets=[listener])


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which on a signal refuses new requests and finishes the running ones first."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, grace: float) -> None:
        super().__init__(config)
        self._lifecycle, self._grace = lifecycle, grace
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open for requests."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; uvicorn's own handler would close at once and end the process with the signal."""
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        if self._draining is not None:
            self._lifecycle.closing.set()
        else:
            self._draining = asyncio.ensure_future(self._finish())

    async def _finish(self) -> None:
        await self._lifecycle.drain(self._grace)
        self.should_exit = True


def _no_port(host: str, port: int, error: OSError) -> HeadstartError:
    if error.errno == errno.EADDRINUSE:
        return HeadstartError(f"port {port} on {host} is in use; choose another with --port")
    return HeadstartError(f"cannot serve on {host} port {port}: {error.strerror}; choose another address or port")
