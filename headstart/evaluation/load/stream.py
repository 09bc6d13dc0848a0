"""An answer as it came in pieces, read as server-sent events: when its tokens came, and how it ended."""

import asyncio
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

# Reading events is work that other streams wait for; after so many, theirs come first.
_EVENTS_AT_ONCE = 16

# An event with some text that is not the last: most of them. Within a JSON string quotes are escaped, so these can
# only be keys, and nothing has to be parsed.
_PLAIN = re.compile(rb'"text": ?"[^"].*"finish_reason": ?null')


@dataclass
class Answer:
    """What an answer holds.

    Attributes:
        times: of the events that brought tokens, in seconds of the pieces' clock.
        finish_reason: of the first choice.
        usage: the token counts, if the server sent them.
        error: message of an error event.
        complete: the stream came to its own end.
    """

    times: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    complete: bool = False


def events(pieces: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """The data of each server-sent event, with the time of the piece that completed it."""
    rest = b""
    for time, piece in pieces:
        rest += piece
        if b"\r" in rest:
            rest = rest.replace(b"\r\n", b"\n")
        *whole, rest = rest.split(b"\n\n")
        for text in whole:
            lines = [line[5:].removeprefix(b" ") for line in text.split(b"\n") if line.startswith(b"data:")]
            if lines:
                yield time, b"\n".join(lines)


async def read_answer(pieces: Iterable[tuple[float, bytes]]) -> Answer:
    """Read a streamed completion, letting other work go on meanwhile."""
    answer = Answer()
    for number, (time, data) in enumerate(events(pieces), start=1):
        if _PLAIN.search(data):
            answer.times.append(time)
        else:
            _take(answer, time, data)
        if number % _EVENTS_AT_ONCE == 0:
            await asyncio.sleep(0)
    return answer


def _take(answer: Answer, time: float, data: bytes) -> None:
    """Read an event with care."""
    if data == b"[DONE]":
        answer.complete = True
        return
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        answer.error = "an event of the stream is not a JSON object"
        return
    if event.get("error"):
        answer.error = error_message(event)
        return
    if isinstance(event.get("usage"), dict):
        answer.usage = event["usage"]
    choices = event.get("choices") or []
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    if choice is None:
        return
    # Servers send an event without text for a token that is half a character, and for the end.
    if choice.get("text") or not choice.get("finish_reason"):
        answer.times.append(time)
    if choice.get("finish_reason"):
        answer.finish_reason = str(choice["finish_reason"])


def error_message(body: Any) -> str:
    """The sentence of an error body of OpenAI's shape or another, shortened."""
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(message).split())[:300]
