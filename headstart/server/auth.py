"""API keys: `Authorization: Bearer KEY` on everything but health and metrics."""

import hashlib
import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from headstart.errors import HeadstartError
from headstart.server.errors import ApiError

OPEN_PATHS = frozenset({"/health", "/metrics"})


def check_keys(keys: Iterable[str]) -> None:
    """Refuse keys that a client could bring without knowing any.

    Raises:
        HeadstartError: a key is empty or nothing but spaces.
    """
    if not all(key.strip() for key in keys):
        raise HeadstartError("an API key is empty, so that anybody has it; give each key at least one character")


class ApiKeyGuard:
    """ASGI middleware that answers 401 to requests without one of the keys."""

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self.app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._admits(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        error = ApiError(
            401,
            "a valid API key is needed: send it in the header 'Authorization: Bearer KEY'",
            kind="authentication_error",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await error.response()(scope, receive, send)

    def _admits(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip().encode("latin-1"))
        # Every key is compared, and digests have one length, so the time taken tells nothing about any key.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
