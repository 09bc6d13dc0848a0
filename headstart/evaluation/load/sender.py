"""One request, from its bytes to its record, whatever happens to it."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Literal

from headstart.evaluation.load.client import Client, ConnectionFailed, Reply
from headstart.evaluation.load.plan import Ask
from headstart.evaluation.load.records import RequestRecord, Status
from headstart.evaluation.load.stream import error_message, read_answer


class Sender:
    """Sends completion requests.

    Args:
        client: to the server.
        timeout: seconds after which a request is given up.

    Attributes:
        origin: the time of `time.perf_counter()` that the records' times count from.
    """

    def __init__(self, client: Client, timeout: float) -> None:
        self.client, self._timeout = client, timeout
        self.origin = 0.0

    async def send(
        self,
        kind: Literal["load", "probe"],
        ask: Ask,
        body: bytes,
        on_piece: Callable[[], None] | None = None,
    ) -> RequestRecord:
        """Send a request and wait for its end. Never raises: a cancelled one returns what it has, with status "cut"."""
        begun = time.perf_counter()
        reply: Reply | None = None
        status, error = "ok", None
        try:
            async with asyncio.timeout(self._timeout):
                reply = await self.client.ask("POST", "/v1/completions", body, on_piece=on_piece)
                await reply.done
        except TimeoutError:
            status, error = "timeout", f"no complete answer within {self._timeout:g} s"
        except ConnectionFailed as failure:
            status, error = "broken", str(failure)
        except asyncio.CancelledError:
            status, error = "cut", "the load ended first"
        record = RequestRecord(
            kind=kind,
            index=ask.index,
            at=begun - self.origin if ask.at is None else ask.at,
            sent=begun - self.origin,
            end=time.perf_counter() - self.origin,
            status=status,
            asked_input=ask.input_tokens,
            asked_output=ask.output_tokens,
            error=error,
        )
        if reply is not None:
            if not reply.complete:
                reply.close()
            await self._read(record, reply)
        return record

    async def _read(self, record: RequestRecord, reply: Reply) -> None:
        """Fill in what has come back, and judge it if nothing has gone wrong before."""
        record.http_status = reply.status
        if reply.status not in (0, 200):
            if record.status == "ok":
                record.status, record.error = "refused", f"HTTP {reply.status}: {_refusal(reply.body)}"
            return
        answer = await read_answer(reply.pieces)
        if answer.times:
            record.first = answer.times[0] - self.origin
            record.gaps = [b - a for a, b in zip(answer.times, answer.times[1:], strict=False)]
        usage = answer.usage
        record.prompt_tokens = _number(usage.get("prompt_tokens"))
        record.completion_tokens = _number(usage.get("completion_tokens"))
        details = usage.get("prompt_tokens_details")
        record.cached_tokens = _number(details.get("cached_tokens")) if isinstance(details, dict) else None
        queue = usage.get("queue_time")
        record.queue = float(queue) if isinstance(queue, int | float) else None
        if record.status == "ok":
            record.status, record.error = _verdict(
                answer.error, ended=answer.complete or bool(answer.finish_reason), empty=not answer.times
            )


def _verdict(error: str | None, *, ended: bool, empty: bool) -> tuple[Status, str | None]:
    """Whether a stream that came to an end is an answer."""
    if error is not None:
        return "failed", error
    if not ended:
        return "broken", "the stream ended before the answer was complete"
    if empty:
        return "failed", "the answer holds no token"
    return "ok", None


def _refusal(body: bytes) -> str:
    try:
        return error_message(json.loads(body))
    except ValueError:
        return error_message(body.decode(errors="replace") or "without a reason")


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None
