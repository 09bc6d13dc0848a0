"""`POST /v1/completions`: prompts as text or token ids, several at once, whole or streamed."""

import time
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from headstart.engine.outputs import CompletionOutput, RequestOutput
from headstart.server.answers import Answer
from headstart.server.body import read_body
from headstart.server.logprobs import CompletionLogprobs
from headstart.server.protocol import CompletionRequest
from headstart.server.service import Job, Service

DEFAULT_MAX_TOKENS = 16


class CompletionAnswer(Answer):
    """The response to a `CompletionRequest`."""

    prefix = "cmpl"
    object_whole = object_chunk = "text_completion"

    def __init__(self, service: Service, asked: CompletionRequest, jobs: list[Job], arrival: float) -> None:
        super().__init__(service, asked, jobs, arrival)
        self._echo = bool(asked.echo)
        self._alternatives = asked.logprobs
        # With max_tokens 0 the engine is still asked for one token, which is not shown.
        self._hidden = self.usage.hide_completion = asked.max_tokens == 0
        self._logprobs: dict[int, CompletionLogprobs] = {}

    def choice(self, job: int, output: RequestOutput, choice: CompletionOutput) -> dict[str, Any]:
        return self._choice(job, output, choice, first=True)

    def chunks(
        self, job: int, output: RequestOutput, choice: CompletionOutput, first: bool
    ) -> Iterator[dict[str, Any]]:
        chunk = self._choice(job, output, choice, first=first)
        if chunk["text"] or chunk["logprobs"] or chunk["finish_reason"]:
            yield chunk

    def _choice(self, job: int, output: RequestOutput, choice: CompletionOutput, *, first: bool) -> dict[str, Any]:
        number = self.number(job, choice)
        echo = self._echo and first
        text = self._prompt_text(job) if echo else ""
        logprobs = None
        if self._alternatives is not None:
            token_ids = list(output.prompt_token_ids) if echo else []
            found = list(output.prompt_logprobs or []) if echo else []
            if not self._hidden:
                token_ids += choice.token_ids
                found += choice.logprobs or []
            builder = self._logprobs.setdefault(number, CompletionLogprobs(self.service.texts, self._alternatives))
            logprobs = builder.body(token_ids, found) if token_ids else None
        return {
            "index": number,
            "text": text if self._hidden else text + choice.text,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }

    def _prompt_text(self, job: int) -> str:
        text = self.jobs[job].text
        return self.service.tokenizer.decode(self.jobs[job].token_ids) if text is None else text


def completion_routes(service: Service) -> APIRouter:
    """The route, bound to a service."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def completions(request: Request) -> Response:
        arrival = time.monotonic()
        asked = await read_body(request, CompletionRequest)
        service.check_model(asked.model)
        prompts = asked.prompts
        spans = None
        if asked.chunks is not None and isinstance(asked.prompt, str):
            ids, spans = await service.encode_parts(asked.prompt, asked.chunks, "prompt")
            encoded = [ids]
        else:
            encoded = await service.encode_prompts(prompts, "prompt")
        jobs = [_job(service, asked, *prompt, spans) for prompt in zip(prompts, encoded, strict=True)]
        return await CompletionAnswer(service, asked, jobs, arrival).respond(request)

    return router


def _job(
    service: Service,
    asked: CompletionRequest,
    prompt: str | list[int],
    token_ids: list[int],
    chunks: list[tuple[int, int]] | None,
) -> Job:
    text = prompt if isinstance(prompt, str) else None
    wanted = None if asked.max_tokens is None else max(asked.max_tokens, 1)
    echoed = asked.logprobs if asked.echo else None
    params = asked.sampling_params(
        service.sampling_defaults(),
        max_tokens=service.output_length(len(token_ids), wanted, DEFAULT_MAX_TOKENS, "max_tokens", "prompt"),
        best_of=asked.best_of,
        logprobs=asked.logprobs,
        prompt_logprobs=max((k for k in (echoed, asked.prompt_logprobs) if k is not None), default=None),
    )
    return Job(token_ids, text, params, chunks=chunks)
