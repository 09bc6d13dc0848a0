"""`POST /v1/chat/completions`: messages through the model's chat template, whole or streamed."""

import time
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from headstart.engine.outputs import CompletionOutput, RequestOutput
from headstart.server.answers import Answer
from headstart.server.body import read_body
from headstart.server.logprobs import chat_logprobs
from headstart.server.protocol import ChatRequest
from headstart.server.service import Job, Service


class ChatAnswer(Answer):
    """The response to a `ChatRequest`."""

    prefix = "chatcmpl"
    object_whole = "chat.completion"
    object_chunk = "chat.completion.chunk"

    def __init__(self, service: Service, asked: ChatRequest, jobs: list[Job], arrival: float) -> None:
        super().__init__(service, asked, jobs, arrival)
        self._alternatives = (asked.top_logprobs or 0) if asked.logprobs else None

    def choice(self, job: int, output: RequestOutput, choice: CompletionOutput) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return self._choice(job, choice, message=message)

    def chunks(
        self, job: int, output: RequestOutput, choice: CompletionOutput, first: bool
    ) -> Iterator[dict[str, Any]]:
        if first:
            opening = {"role": "assistant", "content": ""}
            yield {
                "index": self.number(job, choice),
                "delta": opening,
                "logprobs": None,
                "finish_reason": None,
            }
        chunk = self._choice(job, choice, delta={"content": choice.text} if choice.text else {})
        if chunk["delta"] or chunk["logprobs"] or chunk["finish_reason"]:
            yield chunk

    def _choice(self, job: int, choice: CompletionOutput, **content: dict[str, Any]) -> dict[str, Any]:
        logprobs = None
        if self._alternatives is not None and choice.logprobs:
            entries = chat_logprobs(self.service.texts, choice.token_ids, choice.logprobs, self._alternatives)
            logprobs = {"content": entries, "refusal": None}
        return {
            "index": self.number(job, choice),
            **content,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }


def chat_routes(service: Service) -> APIRouter:
    """The route, bound to a service."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        arrival = time.monotonic()
        asked = await read_body(request, ChatRequest)
        service.check_model(asked.model)
        job = await _job(service, asked)
        return await ChatAnswer(service, asked, [job], arrival).respond(request)

    return router


async def _job(service: Service, asked: ChatRequest) -> Job:
    token_ids = await service.encode_chat(asked.messages, asked.add_generation_prompt, asked.chat_template_kwargs)
    field = "max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens"
    params = asked.sampling_params(
        service.sampling_defaults(),
        max_tokens=service.output_length(len(token_ids), getattr(asked, field), None, field),
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
    )
    return Job(token_ids, None, params)
