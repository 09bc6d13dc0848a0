"""Errors as OpenAI's clients expect them: one sentence, the field at fault, a type and a code."""

import logging
import traceback
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from headstart.errors import HeadstartError, InvalidRequestError

log = logging.getLogger("headstart.server")


class ApiError(HeadstartError):
    """A refusal with its HTTP status. The message is one sentence for the client.

    Args:
        status: the HTTP status.
        message: the sentence.
        kind: OpenAI's error type.
        param: the request field at fault, as a path such as `messages[0].content`.
        code: OpenAI's error code, for programs.
        headers: further response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code, self.headers = status, kind, param, code, headers

    def body(self) -> dict[str, Any]:
        """The JSON of the response, or of an error event in a stream."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole response."""
        return JSONResponse(self.body(), self.status, self.headers)


class ClientGone(Exception):
    """The client closed its connection, so nobody waits for the answer."""


def unavailable(message: str, code: str | None = None) -> ApiError:
    """503, for an engine that died, a line that is full and a server that is closing."""
    return ApiError(503, message, kind="service_unavailable", code=code, headers={"Retry-After": "1"})


def api_error(error: BaseException) -> ApiError:
    """What the client is told about an exception; one that is not the client's doing is logged.

    The log says where it was raised and of what type, but not its message, which may quote a prompt.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidRequestError):
        return ApiError(400, str(error), param=error.param)
    if isinstance(error, HeadstartError):
        return ApiError(400, str(error))
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("a request failed with %s at\n%s", type(error).__name__, where)
    return ApiError(500, "the server failed on this request; its log has the reason", kind="internal_error")


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error of `app` that is expected, its framework's own included, with an OpenAI error body.

    What nobody expected is left to `headstart.server.limits.Outermost`.
    """

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        return api_error(error).response()

    async def refuse_route(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = {
            404: f"there is nothing at {request.url.path}",
            405: f"{request.url.path} does not take {request.method} requests",
        }.get(error.status_code, error.detail)
        return ApiError(error.status_code, message, headers=dict(error.headers or {})).response()

    async def hang_up(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(None, 499)

    app.add_exception_handler(HTTPException, refuse_route)
    app.add_exception_handler(ClientGone, hang_up)
    app.add_exception_handler(HeadstartError, refuse)
