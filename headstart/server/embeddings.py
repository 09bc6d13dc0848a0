"""`POST /v1/embeddings`: one vector per input, pooled from the model's last hidden states."""

import base64
import time
import uuid
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from headstart.engine.outputs import RequestOutput
from headstart.engine.params import SamplingParams
from headstart.engine.pooling import unit
from headstart.errors import InvalidRequestError
from headstart.server.answers import last_outputs
from headstart.server.body import read_body
from headstart.server.errors import ApiError
from headstart.server.fields import LabelledRequest
from headstart.server.protocol import (
    LOWEST_PRIORITY,
    MAX_SALT_CHARACTERS,
    Prompts,
    one_by_one,
)
from headstart.server.service import Job, Service, off_loop
from headstart.server.streams import unless_gone
from headstart.server.usage import Usage


class EmbeddingRequest(LabelledRequest):
    """`POST /v1/embeddings`; `pooling`, `normalize`, `cache_salt` and `priority` are not OpenAI's."""

    input: Prompts
    dimensions: int | None = Field(default=None, ge=1)
    encoding_format: Literal["float", "base64"] | None = None
    pooling: Literal["auto", "last", "mean"] | None = None
    normalize: bool | None = None
    cache_salt: str | None = Field(default=None, max_length=MAX_SALT_CHARACTERS)
    priority: int | None = Field(default=None, ge=-LOWEST_PRIORITY, le=LOWEST_PRIORITY)


def embedding_routes(service: Service) -> APIRouter:
    """The route, bound to a service."""
    router = APIRouter()

    @router.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        arrival = time.monotonic()
        asked = await read_body(request, EmbeddingRequest)
        service.check_model(asked.model)
        try:
            encoded = await service.encode_prompts(one_by_one(asked.input), "input")
            jobs = [_job(service, asked, token_ids) for token_ids in encoded]
            outputs = service.run(jobs, f"embd-{uuid.uuid4().hex}", asked.cache_salt, arrival)
            done = await unless_gone(request.receive, service.lifecycle.closing, last_outputs(outputs))
        except (ApiError, InvalidRequestError) as error:
            if error.param != "prompt":
                raise
            status, code = (error.status, error.code) if isinstance(error, ApiError) else (400, None)
            raise ApiError(status, str(error), param="input", code=code) from None
        numbers = sum(len(output.embedding or ()) for output in done.values())
        return await off_loop(numbers, lambda: JSONResponse(_body(service, asked, done)))

    return router


def _job(service: Service, asked: EmbeddingRequest, token_ids: list[int]) -> Job:
    # Nothing is generated, but the engine keeps a place for the token that could be.
    service.output_length(len(token_ids), None, None, "input", "input")
    params = SamplingParams(
        max_tokens=1, pooling=asked.pooling or "auto", dimensions=asked.dimensions, priority=asked.priority or 0
    )
    return Job(token_ids, None, params, "input")


def _body(service: Service, asked: EmbeddingRequest, outputs: dict[int, RequestOutput]) -> dict[str, Any]:
    usage = Usage()
    data = []
    for index, output in sorted(outputs.items()):
        usage.add(index, output)
        embedding = _finished(asked, output.embedding or [])
        data.append({"object": "embedding", "index": index, "embedding": embedding})
    return {"object": "list", "data": data, "model": service.model_name, "usage": usage.embeddings_body()}


def _finished(asked: EmbeddingRequest, vector: list[float]) -> list[float] | str:
    """The vector normalised and written as the request wants it."""
    vector = vector if asked.normalize is False else unit(vector)
    return (
        base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode() if asked.encoding_format == "base64" else vector
    )
