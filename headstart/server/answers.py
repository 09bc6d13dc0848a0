"""How a generating endpoint answers: whole or as a stream of chunks, and never for a client that has left."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any, ClassVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from headstart.engine.outputs import CompletionOutput, RequestOutput
from headstart.server.errors import ApiError
from headstart.server.logprobs import prompt_logprobs
from headstart.server.protocol import GenerationRequest
from headstart.server.service import Job, Service
from headstart.server.streams import DONE, EventStream, begin, event, unless_gone
from headstart.server.usage import Usage


class Answer(ABC):
    """Builds the response to one request from the outputs of its jobs.

    Subclasses say how a choice looks, whole and as a chunk.

    Args:
        service: runs the jobs.
        asked: the request.
        jobs: one for each prompt.
        arrival: when the request came in, by `time.monotonic()`.
    """

    prefix: ClassVar[str]
    object_whole: ClassVar[str]
    object_chunk: ClassVar[str]

    def __init__(self, service: Service, asked: GenerationRequest, jobs: list[Job], arrival: float) -> None:
        self.service, self.asked, self.jobs, self.arrival = service, asked, jobs, arrival
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.usage = Usage()
        self._created = int(time.time())
        self._started: set[int] = set()

    @abstractmethod
    def choice(self, job: int, output: RequestOutput, choice: CompletionOutput) -> dict[str, Any]:
        """A finished choice."""

    @abstractmethod
    def chunks(
        self, job: int, output: RequestOutput, choice: CompletionOutput, first: bool
    ) -> Iterator[dict[str, Any]]:
        """What is new in a choice, as the choices of any number of chunks."""

    async def respond(self, request: Request) -> Response:
        """Run the jobs and answer.

        Raises:
            HeadstartError: a job was refused.
            ClientGone: the client left before the answer began.
        """
        outputs = self.service.run(self.jobs, self.id, self.asked.cache_salt, self.arrival, self.asked.use)
        closing = self.service.lifecycle.closing
        if self.asked.stream:
            begun = await begin(outputs, request.receive, closing)
            return EventStream(begun, self.events(begun), closing, self.farewell)
        return JSONResponse(self.whole(await unless_gone(request.receive, closing, last_outputs(outputs))))

    def number(self, job: int, choice: CompletionOutput) -> int:
        """The choice's index among all of the response."""
        return job * (self.asked.n or 1) + choice.index

    def whole(self, outputs: dict[int, RequestOutput]) -> dict[str, Any]:
        """The body of the response, from the last output of each job."""
        choices: list[dict[str, Any]] = []
        for job, output in sorted(outputs.items()):
            self.usage.add(job, output)
            extra = {}
            if self.asked.prompt_logprobs is not None:
                extra["prompt_logprobs"] = prompt_logprobs(self.service.texts, output.prompt_logprobs)
            choices += [self.choice(job, output, choice) | extra for choice in output.outputs]
        choices.sort(key=lambda choice: choice["index"])
        return self._envelope(self.object_whole, choices) | {"usage": self.usage.body()}

    def farewell(self, error: ApiError) -> bytes:
        """The end of a stream that an error cuts short."""
        return event(error.body()) + DONE

    async def events(self, outputs: AsyncIterator[tuple[int, RequestOutput]]) -> AsyncGenerator[bytes, None]:
        """The stream of the response."""
        with_usage = bool(self.asked.stream_options and self.asked.stream_options.include_usage)
        # OpenAI's API has the field in every chunk once it is asked for, and its value in the last.
        usage = {"usage": None} if with_usage else {}
        async for job, output in outputs:
            self.usage.add(job, output)
            for choice in output.outputs:
                number = self.number(job, choice)
                for chunk in self.chunks(job, output, choice, number not in self._started):
                    yield event(self._envelope(self.object_chunk, [chunk]) | usage)
                self._started.add(number)
        if with_usage:
            yield event(self._envelope(self.object_chunk, []) | {"usage": self.usage.body()})
        yield DONE

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self._created,
            "model": self.service.model_name,
            "choices": choices,
        }


async def last_outputs(outputs: AsyncGenerator[tuple[int, RequestOutput], None]) -> dict[int, RequestOutput]:
    """The last output of each job."""
    return {job: output async for job, output in outputs}
