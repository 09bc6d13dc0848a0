"""`POST /v1/chat/completions`: messages through the model's chat template, whole or streamed."""

import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from headstart.engine.outputs import CompletionOutput, RequestOutput
from headstart.server.answers import Answer
from headstart.server.body import read_body
from headstart.server.logprobs import chat_logprobs
from headstart.server.protocol import ChatRequest
from headstart.server.service import Job, Service
from headstart.server.tools.calls import CallDelta
from headstart.server.tools.format import CallParser, Piece
from headstart.server.tools.use import ToolUse, blamed_on_tools, tool_use


class ChatAnswer(Answer):
    """The response to a `ChatRequest`; `tools` are what it may call."""

    prefix = "chatcmpl"
    object_whole = "chat.completion"
    object_chunk = "chat.completion.chunk"

    def __init__(
        self, service: Service, asked: ChatRequest, jobs: list[Job], arrival: float, tools: ToolUse | None
    ) -> None:
        super().__init__(service, asked, jobs, arrival)
        self._alternatives = (asked.top_logprobs or 0) if asked.logprobs else None
        self._tools = tools
        self._parsers: dict[int, CallParser] = {}

    def choice(self, job: int, output: RequestOutput, choice: CompletionOutput) -> dict[str, Any]:
        text, calls = "", []
        for piece in self.pieces(job, choice):
            if isinstance(piece, str):
                text += piece
            elif piece.name is not None:
                calls.append(_call(piece))
            else:
                calls[-1]["function"]["arguments"] += piece.arguments
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
        if calls:
            message["tool_calls"] = calls
        return self._choice(job, choice, message=message)

    def chunks(
        self, job: int, output: RequestOutput, choice: CompletionOutput, first: bool
    ) -> Iterator[dict[str, Any]]:
        if first:
            opening = {"role": "assistant", "content": ""}
            yield {"index": self.number(job, choice), "delta": opening, "logprobs": None, "finish_reason": None}
        deltas = [_delta(piece) for piece in self.pieces(job, choice)] or [{}]
        for delta in deltas[:-1]:
            yield {"index": self.number(job, choice), "delta": delta, "logprobs": None, "finish_reason": None}
        chunk = self._choice(job, choice, delta=deltas[-1])
        if chunk["delta"] or chunk["logprobs"] or chunk["finish_reason"]:
            yield chunk

    def pieces(self, job: int, choice: CompletionOutput) -> Iterable[Piece]:
        """What is new in a choice: text, and parts of calls."""
        if self._tools is None:
            return [choice.text] if choice.text else []
        parser = self._parsers.setdefault(self.number(job, choice), self._tools.parser())
        return parser.feed(choice.text, choice.finish_reason is not None)

    def _choice(self, job: int, choice: CompletionOutput, **content: dict[str, Any]) -> dict[str, Any]:
        logprobs = None
        if self._alternatives is not None and choice.logprobs:
            entries = chat_logprobs(self.service.texts, choice.token_ids, choice.logprobs, self._alternatives)
            logprobs = {"content": entries, "refusal": None}
        parser = self._parsers.get(self.number(job, choice))
        called = choice.finish_reason == "stop" and parser is not None and parser.num_calls
        return {
            "index": self.number(job, choice),
            **content,
            "logprobs": logprobs,
            "finish_reason": "tool_calls" if called else choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }


def _call(piece: CallDelta) -> dict[str, Any]:
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _delta(piece: Piece) -> dict[str, Any]:
    if isinstance(piece, str):
        return {"content": piece}
    body = {"function": {"arguments": piece.arguments}} if piece.name is None else _call(piece)
    return {"tool_calls": [{"index": piece.index, **body}]}


def chat_routes(service: Service) -> APIRouter:
    """The route, bound to a service."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        arrival = time.monotonic()
        asked = await read_body(request, ChatRequest)
        service.check_model(asked.model)
        tools = tool_use(service, asked.tools, asked.tool_choice, asked.parallel_tool_calls)
        job = await chat_job(service, asked, tools)
        with blamed_on_tools(tools):
            return await ChatAnswer(service, asked, [job], arrival, tools).respond(request)

    return router


async def chat_job(service: Service, asked: ChatRequest, tools: ToolUse | None, length_field: str | None = None) -> Job:
    """What the engine is to run for a chat.

    Args:
        service: reads the messages.
        asked: the request.
        tools: what it may call.
        length_field: what its client calls `max_completion_tokens`.

    Raises:
        HeadstartError: messages that the model's template refuses, or that are too long, or parameters out of range.
    """
    token_ids, chunks = await service.encode_chat(
        asked.messages,
        asked.add_generation_prompt,
        asked.chat_template_kwargs,
        () if tools is None else tools.tools,
        asked.chunks,
    )
    field = "max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens"
    params = asked.sampling_params(
        service.sampling_defaults(),
        max_tokens=service.output_length(
            len(token_ids), getattr(asked, field), None, length_field or field, "messages"
        ),
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        **({} if tools is None else tools.params(service)),
    )
    return Job(token_ids, None, params, "messages", chunks)
