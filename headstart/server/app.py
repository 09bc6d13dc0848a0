"""The web application: every endpoint around one engine."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from headstart import AsyncEngine, __version__
from headstart.server.auth import ApiKeyGuard, check_keys
from headstart.server.chat import chat_routes
from headstart.server.completions import completion_routes
from headstart.server.errors import install_error_handlers
from headstart.server.lifecycle import DrainGate
from headstart.server.service import Service
from headstart.server.tokens import token_routes


def create_app(engine: AsyncEngine, *, served_model_name: str | None = None, api_keys: Sequence[str] = ()) -> FastAPI:
    """The application around `engine`, which it shuts down when it ends. `app.state.service` holds its parts.

    Args:
        engine: runs the requests.
        served_model_name: what clients call the model (default: the engine's name for it).
        api_keys: any of them opens all paths but health and metrics, which are open; none opens everything.

    Raises:
        HeadstartError: an API key is empty.
    """
    check_keys(api_keys)
    service = Service(engine, served_model_name or engine.model_name)
    app = FastAPI(
        title="Headstart",
        version=__version__,
        openapi_url=None,
        lifespan=_lifespan(engine),
        redirect_slashes=False,
    )
    app.state.service = service
    for routes in (operation_routes, model_routes, completion_routes, chat_routes, token_routes):
        app.include_router(routes(service))
    install_error_handlers(app)
    if api_keys:
        app.add_middleware(ApiKeyGuard, keys=api_keys)
    app.add_middleware(DrainGate, lifecycle=service.lifecycle)
    return app


def _lifespan(engine: AsyncEngine) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        yield
        await engine.shutdown()

    return lifespan


def operation_routes(service: Service) -> APIRouter:
    """Health, metrics and version."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> Response:
        if service.engine.errored is not None:
            return JSONResponse({"status": "dead"}, 503)
        if service.lifecycle.draining:
            return JSONResponse({"status": "draining"}, 503)
        return JSONResponse({"status": "ok"})

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
    }
