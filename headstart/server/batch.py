"""A batch file through the server's own endpoints, without a port: its requests are all known before any runs."""

import asyncio
import json
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI

from headstart.engine.async_engine import AsyncEngine
from headstart.engine.client import Submission
from headstart.engine.engine import Engine
from headstart.engine.seams import Piece
from headstart.errors import HeadstartError
from headstart.server.batch_file import BatchRow, Results, result

_current: ContextVar[int] = ContextVar("batch_row")


class JobEngine(AsyncEngine):
    """An engine that lets requests gather, so that its scheduler can plan them as one job."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._held: list[Submission] | None = None
        self._expected: set[int] = set()
        self._all_here = asyncio.Event()

    def hold(self, rows: Sequence[int]) -> None:
        """Keep requests back until each of these rows has sent one, or is ended without."""
        self._held, self._expected = [], set(rows)
        self._all_here.clear()

    def expect_no_more_of(self, row: int) -> None:
        """A row has sent a request, or has ended."""
        self._expected.discard(row)
        if not self._expected:
            self._all_here.set()

    async def release(self) -> None:
        """Wait for the rows, and send their requests in the order that the scheduler wants."""
        await self._all_here.wait()
        held, self._held = self._held or [], None
        job = [Piece(each.request_id, _ids(each), each.params.max_tokens) for each in held]
        for place in await self.call("arrange", job):
            super()._submit(held[place])

    def _submit(self, submission: Submission) -> None:
        if self._held is None:
            super()._submit(submission)
            return
        self._held.append(submission)
        self.expect_no_more_of(_current.get())


def _ids(submission: Submission) -> list[int]:
    prompt = submission.prompt
    assert isinstance(prompt, dict) and "prompt_token_ids" in prompt, "endpoints send token ids"
    return list(prompt["prompt_token_ids"])


@dataclass
class Progress:
    """How far a job is: rows done and failed, and the tokens of their answers' usage."""

    done: int = 0
    failed: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: {"prompt": 0, "cached": 0, "completion": 0})

    def note(self, status: int, body: Any) -> None:
        """A row has ended."""
        self.done += 1
        self.failed += status != 200
        usage = (body.get("usage") or {}) if isinstance(body, dict) and status == 200 else {}
        prompt = usage.get("prompt_tokens", usage.get("input_tokens", 0))
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
        written = usage.get("completion_tokens", usage.get("output_tokens", 0))
        for name, count in (("prompt", prompt), ("cached", details.get("cached_tokens", 0)), ("completion", written)):
            self.tokens[name] += count or 0


async def run_job(
    app: FastAPI,
    engine: JobEngine,
    rows: Sequence[BatchRow],
    results: Results,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Answer every row, each on its own: what one of them asks wrongly is its own result.

    Args:
        app: the server's application around `engine`.
        engine: runs the requests.
        rows: of the job, those that have a result already left out.
        results: takes each row as it is done.
        tell: hears of every row.

    Raises:
        HeadstartError: the engine has stopped; what was done is in the results.
    """
    progress = Progress()
    engine.hold([row.line for row in rows])

    async def answer(row: BatchRow) -> None:
        _current.set(row.line)
        try:
            status, body = await ask(app, row.url, row.body)
        finally:
            engine.expect_no_more_of(row.line)
        results.add(result(row.custom_id, status, body))
        progress.note(status, body)
        tell(progress)

    async with asyncio.TaskGroup() as group:
        for row in rows:
            group.create_task(answer(row))
        await engine.release()
    if engine.errored is not None:
        raise HeadstartError(
            f"the engine has stopped because of an error ({engine.errored}): {results.path} has what was done, and the "
            "same command goes on from there"
        )
    return progress


async def ask(app: FastAPI, url: str, body: dict[str, Any]) -> tuple[int, Any]:
    """POST a body to the application → status and the answer's JSON."""
    sent = asyncio.Event()
    content = json.dumps(body).encode()
    request: list[dict[str, Any]] = [{"type": "http.request", "body": content, "more_body": False}]
    status, parts = 500, []

    async def receive() -> dict[str, Any]:
        if request:
            return request.pop()
        await sent.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))

    headers = [(b"host", b"batch"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    scope: dict[str, Any] = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST"}
    scope |= {"scheme": "http", "path": url, "raw_path": url.encode(), "root_path": "", "query_string": b""}
    scope |= {"headers": headers, "server": ("batch", 80), "client": ("batch", 0)}
    try:
        await app(scope, receive, send)
    finally:
        sent.set()
    return status, json.loads(b"".join(parts) or b"null")
