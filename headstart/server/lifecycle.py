"""From open to closed: counts the requests being answered and turns new ones away while the server drains."""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from headstart.server.errors import unavailable

ALWAYS_ANSWERED = frozenset({"/health", "/metrics"})


class Lifecycle:
    """Whether the server takes requests, and how many it is answering.

    Attributes:
        draining: new requests are refused.
        closing: set when running requests must end now.
        idle: set while no request is being answered.
    """

    def __init__(self) -> None:
        self.draining = False
        self.closing = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self._active = 0

    async def drain(self, grace: float) -> None:
        """Refuse new requests, let the running ones finish for `grace` seconds, then end the rest."""
        self.draining = True
        try:
            await asyncio.wait_for(self.idle.wait(), grace)
        except TimeoutError:
            self.closing.set()

    def enter(self) -> None:
        """A request begins."""
        self._active += 1
        self.idle.clear()

    def leave(self) -> None:
        """A request has been answered."""
        self._active -= 1
        if self._active == 0:
            self.idle.set()


class DrainGate:
    """ASGI middleware that keeps a `Lifecycle`'s count and answers 503 while it drains."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self.app = app
        self.lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in ALWAYS_ANSWERED:
            await self.app(scope, receive, send)
            return
        if self.lifecycle.draining:
            refusal = unavailable("the server is shutting down and takes no new requests; try again later")
            await refusal.response()(scope, receive, send)
            return
        self.lifecycle.enter()
        try:
            await self.app(scope, receive, send)
        finally:
            self.lifecycle.leave()
