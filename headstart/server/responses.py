"""`POST /v1/responses`: its text subset, as a chat behind other names. Nothing is stored from one call to the next."""

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from headstart.engine.outputs import RequestOutput
from headstart.server.body import read_body
from headstart.server.chat import ChatAnswer, chat_job
from headstart.server.errors import ApiError
from headstart.server.logprobs import chat_logprobs
from headstart.server.response_items import Event, OutputItems
from headstart.server.responses_protocol import ResponsesRequest
from headstart.server.service import Job, Service
from headstart.server.streams import event
from headstart.server.tools.use import ToolUse, blamed_on_tools, tool_use


class ResponsesAnswer(ChatAnswer):
    """The response to a `ResponsesRequest`, whose chat runs as `job`."""

    def __init__(
        self, service: Service, asked: ResponsesRequest, job: Job, arrival: float, tools: ToolUse | None
    ) -> None:
        super().__init__(service, asked.as_chat(), [job], arrival, tools)
        self.id = f"resp_{uuid.uuid4().hex}"
        self._request = asked
        self._items = OutputItems()
        self._sequence = 0
        self._with_logprobs = asked.wants_logprobs

    def whole(self, outputs: dict[int, RequestOutput]) -> dict[str, Any]:
        for _ in self._take(outputs[0]):
            pass
        return self._body(outputs[0])

    async def events(self, outputs: AsyncIterator[tuple[int, RequestOutput]]) -> AsyncGenerator[bytes, None]:
        yield self._event({"type": "response.created", "response": self._body(None)})
        yield self._event({"type": "response.in_progress", "response": self._body(None)})
        async for _, output in outputs:
            for made in self._take(output):
                yield self._event(made)
            if output.finished:
                body = self._body(output)
                yield self._event({"type": f"response.{body['status']}", "response": body})

    def farewell(self, error: ApiError) -> bytes:
        told = {"type": "error", "code": error.code or error.kind, "message": str(error), "param": error.param}
        failure = {"code": "server_error", "message": str(error)}
        failed = self._body(None) | {"status": "failed", "error": failure}
        return self._event(told) + self._event({"type": "response.failed", "response": failed})

    def _take(self, output: RequestOutput) -> list[Event]:
        """The events of what is new."""
        self.usage.add(0, output)
        events: list[Event] = []
        for choice in output.outputs:
            if self._with_logprobs and choice.logprobs:
                top = self._request.top_logprobs or 0
                self._items.logprobs += chat_logprobs(self.service.texts, choice.token_ids, choice.logprobs, top)
            for piece in self.pieces(0, choice):
                events += self._items.add(piece)
            if choice.finish_reason is not None:
                events += self._items.close(complete=choice.finish_reason != "length")
        return events

    def _event(self, made: Event) -> bytes:
        data = made | {"sequence_number": self._sequence}
        self._sequence += 1
        return event(data, made["type"])

    def _body(self, output: RequestOutput | None) -> dict[str, Any]:
        """The response object: as it begins, or with `output` as it ends."""
        status, incomplete = "in_progress", None
        if output is not None:
            cut = any(choice.finish_reason == "length" for choice in output.outputs)
            status = "incomplete" if cut else "completed"
            incomplete = {"reason": "max_output_tokens"} if cut else None
        asked, params = self._request, self.jobs[0].params
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": incomplete,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": self.service.model_name,
            "output": [] if output is None else self._items.items,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": params.temperature,
            "text": {"format": asked.text_format()},
            "tool_choice": asked.tool_choice or "auto",
            "tools": [tool.as_answered() for tool in asked.tools or ()],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": None if output is None else self.usage.responses_body(),
            "user": asked.user,
        }


def response_routes(service: Service) -> APIRouter:
    """The route, bound to a service."""
    router = APIRouter()

    @router.post("/v1/responses")
    async def responses(request: Request) -> Response:
        arrival = time.monotonic()
        asked = await read_body(request, ResponsesRequest)
        service.check_model(asked.model)
        chat = asked.as_chat()
        tools = tool_use(service, chat.tools, chat.tool_choice, chat.parallel_tool_calls)
        with asked.errors_by_its_names():
            job = await chat_job(service, chat, tools, "max_output_tokens")
            with blamed_on_tools(tools):
                return await ResponsesAnswer(service, asked, job, arrival, tools).respond(request)

    return router
