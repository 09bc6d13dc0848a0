"""`GET /openapi.json`: what this server takes and answers, as an OpenAPI 3.1 document."""

from typing import Any

from fastapi import APIRouter
from pydantic.json_schema import models_json_schema

from headstart import __version__
from headstart.server.embeddings import EmbeddingRequest
from headstart.server.fields import Body
from headstart.server.openapi_answers import ANSWERS
from headstart.server.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from headstart.server.responses_protocol import ResponsesRequest
from headstart.server.service import Service

# Path → summary, request, name of the answer, and whether it can be streamed.
_POSTS: dict[str, tuple[str, type[Body], str, bool]] = {
    "/v1/chat/completions": ("Answer a chat.", ChatRequest, "ChatCompletion", True),
    "/v1/completions": ("Continue prompts.", CompletionRequest, "Completion", True),
    "/v1/responses": ("Answer with text and calls as items.", ResponsesRequest, "Response", True),
    "/v1/embeddings": ("Turn inputs into vectors.", EmbeddingRequest, "Embeddings", False),
    "/tokenize": ("Read a prompt into token ids.", TokenizeRequest, "Tokens", False),
    "/detokenize": ("Read token ids as text.", DetokenizeRequest, "Text", False),
}
_GETS = {
    "/v1/models": ("The models that are served: one.", "Models"),
    "/v1/models/{name}": ("One model.", "Model"),
    "/health": ("Whether the server answers.", "Health"),
    "/health_generate": ("Whether the engine makes tokens.", "Health"),
    "/version": ("The program's version.", "Version"),
}
# One server-sent event of a stream.
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "contentMediaType": "application/json"}},
    "required": ["data"],
}
_REFUSALS = {
    "400": "The request cannot be served; `param` names the field.",
    "401": "The key is missing or wrong.",
    "404": "There is no such model.",
    "408": "The body took too long to arrive.",
    "413": "The body is too large.",
    "429": "The key's limits are spent for now.",
    "503": "The server is busy, closing or starting again.",
    "504": "The request took longer than its key allows.",
}


def openapi_document(model_name: str) -> dict[str, Any]:
    """The document of a server that serves `model_name`."""
    requests = [(request, "validation") for _, request, _, _ in _POSTS.values()]
    _, schemas = models_json_schema(requests, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    for schema in schemas["$defs"].values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"enum": [model_name, None]}
    paths: dict[str, Any] = {path: {"post": _post(*entry)} for path, entry in _POSTS.items()}
    for path, (summary, answer) in _GETS.items():
        paths[path] = {"get": {"summary": summary, "responses": _answers(answer, stream=False)}}
        if answer == "Health":
            paths[path]["get"]["responses"]["503"] = _answer(answer, "It does not.")
    name = {"name": "name", "in": "path", "required": True, "schema": {"enum": [model_name]}}
    paths["/v1/models/{name}"]["get"]["parameters"] = [name]
    metrics = {"text/plain": {"schema": {"type": "string"}}}
    paths["/metrics"] = {
        "get": {
            "summary": "Prometheus metrics.",
            "responses": _answers("Error", stream=False) | {"200": {"description": "Metrics.", "content": metrics}},
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headstart", "version": __version__},
        "paths": paths,
        "security": [{}, {"key": []}],
        "components": {
            "schemas": schemas["$defs"] | ANSWERS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def openapi_routes(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()
    document = openapi_document(service.model_name)

    @router.get("/openapi.json")
    async def openapi() -> dict[str, Any]:
        return document

    return router


def _post(summary: str, request: type[Body], answer: str, stream: bool) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{request.__name__}"}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": _answers(answer, stream),
    }


def _answers(answer: str, stream: bool) -> dict[str, Any]:
    found = {"200": _answer(answer, "The answer.")}
    if stream:
        found["200"]["content"]["text/event-stream"] = {"schema": _EVENT}
    return found | {status: _answer("Error", text) for status, text in _REFUSALS.items()}


def _answer(name: str, description: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}
