"""Reading a request body: parsed off the event loop when large, refused in one sentence."""

import asyncio
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.requests import ClientDisconnect

from headstart.errors import InvalidRequestError, did_you_mean
from headstart.server.errors import ApiError, ClientGone
from headstart.server.fields import UNSUPPORTED

MAX_BODY_BYTES = 8 * 2**20
LARGE_BODY_BYTES = 64 * 2**10

KINDS = {
    "string_type": "a string",
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length} long",
    "too_long": "at most {max_length} long",
    "string_too_long": "at most {max_length} characters long",
    "string_pattern_mismatch": "text that matches {pattern}",
    "literal_error": "{expected}",
    "expected": "{expected}",
}

Model = TypeVar("Model", bound=BaseModel)


async def read_body(request: Request, model: type[Model]) -> Model:
    """The request's JSON body as `model`; `TenantGate` has bounded its size and the time it takes.

    Raises:
        ApiError: 413 if the body is too large, 408 if it takes too long, 400 if it is not JSON or not a `model`.
        ClientGone: the client left while it was sending.
    """
    try:
        # Not `request.body()`, which would keep the bytes as long as the answer is being written.
        body = b"".join([chunk async for chunk in request.stream()])
    except ClientDisconnect:
        raise ClientGone from None
    if len(body) < LARGE_BODY_BYTES:
        return _parse(body, model)
    return await asyncio.to_thread(_parse, body, model)


def _parse(body: bytes, model: type[Model]) -> Model:
    try:
        data = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the request body is not valid JSON: {error}", code="invalid_json") from None
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False)[0], model) from None


def _refusal(found: ErrorDetails, model: type[BaseModel]) -> ApiError:
    """One sentence for the first thing that pydantic found wrong."""
    path = _path(found["loc"])
    context = found.get("ctx", {})
    if isinstance(cause := context.get("error"), InvalidRequestError):
        param = ".".join(part for part in (path, cause.param) if part)
        return ApiError(400, str(cause), param=param or None)
    if found["type"] == "missing":
        return ApiError(400, f"{path} is required", param=path, code="missing_required_parameter")
    if found["type"] == "extra_forbidden":
        if path in UNSUPPORTED or len(found["loc"]) > 1:
            return ApiError(400, f"{path} is not supported here", param=path, code="unsupported_parameter")
        hint = did_you_mean(path, model.model_fields)
        return ApiError(400, f"there is no field {path}{hint}", param=path, code="unknown_parameter")
    value = _shown(found["input"])
    if found["type"] not in KINDS:
        return ApiError(400, f"{path} is {value}: {found['msg']}", param=path)
    expected = KINDS[found["type"]].format_map(context)
    return ApiError(400, f"{path or 'the request body'} must be {expected}, not {value}", param=path or None)


def _path(loc: tuple[int | str, ...]) -> str:
    """`("messages", 0, "content")` as `messages[0].content`."""
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
