"""The web application: every endpoint around one engine."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.cors import CORSMiddleware

from headstart import __version__
from headstart.engine.client import EngineClient
from headstart.server.auth import ApiKeyGuard
from headstart.server.chat import chat_routes
from headstart.server.completions import completion_routes
from headstart.server.embeddings import embedding_routes
from headstart.server.errors import install_error_handlers
from headstart.server.health import Probe
from headstart.server.lifecycle import DrainGate
from headstart.server.limits import Outermost, TenantGate
from headstart.server.metrics import AnswerCounter
from headstart.server.openapi import openapi_routes
from headstart.server.own_methods import OwnMethods
from headstart.server.responses import response_routes
from headstart.server.service import Service
from headstart.server.tenants import Tenants, tenants_of_keys
from headstart.server.tokens import token_routes
from headstart.server.tracing import TraceHeaders, Tracing
from headstart.server.web import page_routes

# A client on a slow line may stall for a while; one that has gone without a word never comes back.
CLIENT_TIMEOUT = 60.0
# The page itself holds nothing secret, and asks for a key before it shows anything.
PAGE_PATHS = ("/", "/page/")


def create_app(
    engine: EngineClient,
    *,
    served_model_name: str | None = None,
    api_keys: Sequence[str] = (),
    tenants: Tenants | None = None,
    max_queued_requests: int | None = None,
    client_timeout: float = CLIENT_TIMEOUT,
    allowed_origins: Sequence[str] = (),
    tracing: Tracing | None = None,
    allow_use: Sequence[str] = (),
) -> FastAPI:
    """The application around `engine`, which it shuts down when it ends. `app.state.service` holds its parts.

    Args:
        engine: runs the requests.
        served_model_name: what clients call the model (default: the engine's name for it).
        api_keys: any of them opens all paths but health, metrics and the page's files, which are open; none opens
            everything.
        tenants: who has which keys and limits, instead of `api_keys`.
        max_queued_requests: with so many prompts waiting for the engine, no more are taken; None is no limit.
        client_timeout: seconds that a client may take to send a body, or to read what was sent to it.
        allowed_origins: web pages of these origins may call the server from a browser; `*` is every page.
        tracing: takes spans of every request (`tracing_to`); None makes none.
        allow_use: methods that requests may bring for themselves, as `--use` takes them.

    Raises:
        HeadstartError: an API key is empty, or a method cannot be a request's own.
    """
    tenants = tenants or tenants_of_keys(api_keys)
    service = Service(engine, served_model_name or engine.model_name, max_queued_requests, OwnMethods(allow_use))
    app = FastAPI(
        title="Headstart",
        version=__version__,
        openapi_url=None,
        lifespan=_lifespan(engine, tracing),
        redirect_slashes=False,
    )
    app.state.service, app.state.tenants = service, tenants
    api_routes = (completion_routes, chat_routes, response_routes, embedding_routes, token_routes, openapi_routes)
    for routes in (operation_routes, model_routes, *api_routes, page_routes):
        app.include_router(routes(service))
    install_error_handlers(app)
    if tracing is not None:
        service.tracing = tracing
        app.add_middleware(TraceHeaders)
    # From the inside out.
    app.add_middleware(TenantGate, refused=service.metrics.refused, client_timeout=client_timeout)
    app.add_middleware(ApiKeyGuard, tenants=tenants, open_paths=PAGE_PATHS)
    app.add_middleware(DrainGate, lifecycle=service.lifecycle)
    if allowed_origins:
        methods, headers = ["GET", "POST"], ["Authorization", "Content-Type"]
        app.add_middleware(
            CORSMiddleware, allow_origins=list(allowed_origins), allow_methods=methods, allow_headers=headers
        )
    app.add_middleware(Outermost, client_timeout=client_timeout)
    app.add_middleware(AnswerCounter, metrics=service.metrics)
    return app


def _lifespan(engine: EngineClient, tracing: Tracing | None) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        yield
        await engine.shutdown()
        if tracing is not None:
            await asyncio.to_thread(tracing.shutdown)

    return lifespan


def operation_routes(service: Service) -> APIRouter:
    """Health, metrics and version."""
    router = APIRouter()
    probe = Probe(service)

    @router.get("/health")
    async def health() -> Response:
        if service.engine.errored is not None:
            return JSONResponse({"status": "restarting" if service.engine.restarting else "dead"}, 503)
        if service.lifecycle.draining:
            return JSONResponse({"status": "draining"}, 503)
        return JSONResponse({"status": "ok"})

    @router.get("/health_generate")
    async def health_generate() -> Response:
        alive = await probe.generates()
        return JSONResponse({"status": "ok"} if alive else {"status": "no token came"}, 200 if alive else 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/version")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    return router


def model_routes(service: Service) -> APIRouter:
    """The list of models, which has one entry."""
    router = APIRouter()

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(service)]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return _model(service)

    return router


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "headstart",
        "root": service.engine.model_name,
        "max_model_len": service.engine.max_model_len,
        "exact": service.engine.exact,
        "allow_use": service.methods.allowed,
    }
