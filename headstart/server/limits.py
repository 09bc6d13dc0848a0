"""What keeps one client from harming the others: rates, body sizes, readers that stall, and errors that nobody saw."""

import asyncio
import math
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headstart.server.errors import ApiError, ClientGone, api_error
from headstart.server.tenants import Tenant, current_tenant

# A body too large by up to this factor is read to its end before it is refused.
_DISCARDED = 8
_LONGEST_NUMBER = 20


def too_many(message: str, code: str, seconds: float) -> ApiError:
    """429, with the time after which it is worth to try again."""
    headers = {"Retry-After": str(max(1, math.ceil(seconds)))}
    return ApiError(429, message, kind="rate_limit_error", code=code, headers=headers)


class TenantGate:
    """ASGI middleware that holds each tenant to its limits. Only requests that ask for work (POST) count.

    Args:
        app: what it guards.
        refused: told the code of every refusal.
        client_timeout: seconds that a request's body may take to arrive.
    """

    def __init__(self, app: ASGIApp, refused: Callable[[str], None], client_timeout: float) -> None:
        self.app, self._refused, self._client_timeout = app, refused, client_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tenant = current_tenant.get()
        if scope["type"] != "http" or scope["method"] != "POST" or tenant is None:
            await self.app(scope, receive, send)
            return
        try:
            self._admit(tenant)
        except ApiError as refusal:
            self._refused(refusal.code or "")
            await refusal.response()(scope, receive, send)
            return
        most = tenant.limits.max_body_bytes
        receive = bounded(receive, Headers(scope=scope), most, self._client_timeout)
        tenant.active += 1
        try:
            await self.app(scope, receive, send)
        finally:
            tenant.active -= 1

    @staticmethod
    def _admit(tenant: Tenant) -> None:
        limits = tenant.limits
        if limits.max_concurrent_requests is not None and tenant.active >= limits.max_concurrent_requests:
            message = f"{tenant.active} requests of this key are being answered, and no more may run at once"
            raise too_many(message, "concurrency_limit_exceeded", 1)
        if wait := tenant.tokens.wait(1):
            message = f"this key has used up its {limits.tokens_per_minute} tokens per minute"
            raise too_many(message, "rate_limit_exceeded", wait)
        if wait := tenant.requests.wait(1):
            message = f"this key has used up its {limits.requests_per_minute} requests per minute"
            raise too_many(message, "rate_limit_exceeded", wait)
        tenant.requests.spend(1)


def bounded(receive: Receive, headers: Headers, most: int, seconds: float) -> Receive:
    """`receive`, which refuses a body of more than `most` bytes, or one that takes longer than `seconds` to come.

    A client that is still sending when it is refused may never see why, so a body somewhat too large is read and
    thrown away first.
    """
    declared = headers.get("content-length", "")
    size = int(declared) if declared.isdecimal() and len(declared) < _LONGEST_NUMBER else 0
    deadline = asyncio.get_running_loop().time() + seconds
    received, complete = 0, False

    async def read() -> Message:
        nonlocal received, complete
        if complete:
            return await receive()
        while max(size, received) <= most * _DISCARDED:
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                sentence = f"the request body did not arrive within {seconds:g} seconds"
                raise ApiError(408, sentence, kind="timeout_error", code="request_timeout") from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if max(size, received) <= most or message["type"] != "http.request":
                return message
            if complete:
                break
        raise _too_large(most)

    return read


def _too_large(most: int) -> ApiError:
    limit = f"{most / 2**20:g} MiB" if most >= 2**20 else f"{most} bytes"
    return ApiError(413, f"the request body is larger than the {limit} that may be sent here", code="too_large")


class Outermost:
    """ASGI middleware around all others: answers what nobody expected, and gives up on clients that stop reading.

    Args:
        app: what it surrounds.
        client_timeout: seconds that a client may leave unread what was sent to it before its request ends.
    """

    def __init__(self, app: ASGIApp, client_timeout: float) -> None:
        self.app, self._client_timeout = app, client_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def patient(message: Message) -> None:
            nonlocal begun
            begun = True
            try:
                # Unlike `wait_for`, no task of its own for each of many thousand events a second.
                async with asyncio.timeout(self._client_timeout):
                    await send(message)
            except TimeoutError:
                raise ClientGone from None

        try:
            await self.app(scope, receive, patient)
        except ClientGone:
            return
        except Exception as error:
            told = api_error(error)
            if not begun:
                await told.response()(scope, receive, send)
