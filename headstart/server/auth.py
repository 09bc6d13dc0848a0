"""API keys: `Authorization: Bearer KEY` on all but the paths that are open, and whose request it is."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from headstart.server.errors import ApiError
from headstart.server.tenants import Tenant, Tenants, current_tenant

OPEN_PATHS = frozenset({"/health", "/health_generate", "/metrics"})
"""Paths without anything secret, for those who watch the server."""


class ApiKeyGuard:
    """ASGI middleware that answers 401 to requests without a tenant's key, and sets `current_tenant` for the others.

    Args:
        app: what it guards.
        tenants: who may come in.
        open_paths: further paths that need no key; one that ends with `/` opens everything below it.
    """

    def __init__(self, app: ASGIApp, tenants: Tenants, open_paths: tuple[str, ...] = ()) -> None:
        self.app, self.tenants = app, tenants
        self._open = OPEN_PATHS | set(open_paths)
        self._open_below = tuple(path for path in open_paths if path.endswith("/") and path != "/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open or scope["path"].startswith(self._open_below):
            await self.app(scope, receive, send)
            return
        tenant = self._tenant(Headers(scope=scope))
        if tenant is not None:
            current_tenant.set(tenant)
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

    def _tenant(self, headers: Headers) -> Tenant | None:
        if self.tenants.anonymous is not None:
            return self.tenants.anonymous
        scheme, _, key = headers.get("authorization", "").partition(" ")
        found = self.tenants.find(key.strip().encode("latin-1"))
        return found if scheme.lower() == "bearer" else None
