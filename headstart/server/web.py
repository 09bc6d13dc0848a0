"""The page at `/`: its files, what it shows of the engine (`/stats`), and the catalogue of methods."""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from headstart import __version__
from headstart.errors import HeadstartError
from headstart.server.errors import ApiError, unavailable
from headstart.server.service import Service
from headstart.server.tenants import current_tenant
from headstart.server.web_methods import method_detail, method_list

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Scripts and styles come from here alone, and no script can be written into a page. `connect-src` is wide, since the
# page compares this server with another one that its user names.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' http: https:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Asset:
    """A file of the page."""

    content: bytes
    media_type: str
    etag: str


@cache
def assets() -> dict[str, Asset]:
    """The page's files by name."""
    found = {}
    for path in files("headstart.server").joinpath("page").iterdir():
        suffix = path.name[path.name.rfind(".") :]
        if suffix in _TYPES:
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:24]}"'
            found[path.name] = Asset(content, _TYPES[suffix], etag)
    return found


class _Quiet(logging.Filter):
    """Keeps what the page asks twice a second out of the log of requests."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not any(isinstance(part, str) and part.startswith("/stats?") for part in record.args or ())


_QUIET = _Quiet()


def page_routes(service: Service) -> APIRouter:
    """The page, its files, and what it asks for."""
    router = APIRouter(include_in_schema=False)
    logging.getLogger("uvicorn.access").addFilter(_QUIET)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        return _asset(request, "index.html")

    @router.api_route("/page/{name}", methods=["GET", "HEAD"])
    async def file(request: Request, name: str) -> Response:
        return _asset(request, name)

    @router.get("/stats")
    async def stats(request: Request) -> Response:
        return _data(await _stats(service, _number(request, "after")))

    @router.get("/catalogue")
    async def catalogue() -> Response:
        return _data(await _in_thread(method_list))

    @router.get("/catalogue/{key}")
    async def method(key: str) -> Response:
        return _data(await _in_thread(lambda: method_detail(key)))

    return router


def _asset(request: Request, name: str) -> Response:
    found = assets().get(name)
    if found is None:
        raise ApiError(404, f"there is nothing at {request.url.path}")
    headers = _HEADERS | {"ETag": found.etag}
    if found.etag in request.headers.get("if-none-match", ""):
        return Response(None, 304, headers)
    return Response(found.content, headers=headers, media_type=found.media_type)


def _data(content: Any) -> Response:
    return JSONResponse(content, headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})


async def _in_thread(work: Callable[[], Any]) -> Any:
    """Work that reads files, without keeping the streams waiting."""
    return await asyncio.to_thread(work)


def _number(request: Request, name: str) -> int:
    text = request.query_params.get(name, "0")
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise ApiError(400, f"{name} must be a whole number of at least 0", param=name)
    return int(text)


async def _stats(service: Service, after: int) -> dict[str, Any]:
    """What the page's live view shows; of other tenants only sums."""
    tenant, engine = current_tenant.get(), service.engine
    tenants = {"": "everybody"} if tenant is None or not tenant.salt else {tenant.salt: tenant.name}
    counts = engine.stats()
    try:
        seen = await engine.look(after, tenants)
    except HeadstartError as error:
        service.check_alive()
        raise unavailable(str(error)) from None
    return {
        "server": {
            "model": service.model_name,
            "version": __version__,
            "exact": engine.exact,
            "max_model_len": engine.max_model_len,
            "chat": service.tokenizer.chat_template is not None,
        },
        "engine": seen,
        "totals": {
            "running": counts.num_running,
            "waiting": counts.num_waiting,
            "prompt_tokens": counts.prompt_tokens,
            "generation_tokens": counts.generation_tokens,
            "queried_tokens": counts.queried_tokens,
            "cached_tokens": counts.cached_tokens,
            "preemptions": counts.preemptions,
            "finished": counts.finished,
        },
        "latency": {
            "first_token": service.metrics.first_tokens.summary(),
            "gap": service.metrics.gaps.summary(),
        },
    }
