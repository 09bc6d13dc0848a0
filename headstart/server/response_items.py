"""The output of `/v1/responses`: text and calls as items, and the events that tell of them as they come."""

import uuid
from collections.abc import Iterator
from typing import Any

from headstart.server.tools.calls import CallDelta
from headstart.server.tools.format import Piece

Event = dict[str, Any]


class OutputItems:
    """Gathers the items of one response; only the last one still grows.

    Attributes:
        items: the items so far.
        logprobs: of tokens whose text has not been added yet.
    """

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.logprobs: list[dict[str, Any]] = []

    def add(self, piece: Piece) -> Iterator[Event]:
        """Take what is new, and tell of it."""
        yield from self._text(piece) if isinstance(piece, str) else self._call(piece)

    def close(self, complete: bool = True) -> Iterator[Event]:
        """End the last item; a response without any item gets a message without text."""
        if not self.items:
            yield from self._open_message()
        yield from self._end(complete)

    def _text(self, text: str) -> Iterator[Event]:
        if not self.items or self.items[-1]["type"] != "message":
            yield from self._end()
            yield from self._open_message()
        part = self.items[-1]["content"][0]
        part["text"] += text
        logprobs, self.logprobs = self.logprobs, []
        part["logprobs"] += logprobs
        yield self._event("output_text.delta", content_index=0, delta=text, logprobs=logprobs)

    def _call(self, piece: CallDelta) -> Iterator[Event]:
        self.logprobs = []
        if piece.name is not None:
            yield from self._end()
            item = {
                "type": "function_call",
                "id": _name("fc"),
                "call_id": _name("call"),
                "name": piece.name,
                "arguments": "",
                "status": "in_progress",
            }
            yield from self._begin(item)
        self.items[-1]["arguments"] += piece.arguments
        if piece.arguments:
            yield self._event("function_call_arguments.delta", delta=piece.arguments)

    def _open_message(self) -> Iterator[Event]:
        message = {"type": "message", "id": _name("msg"), "role": "assistant", "status": "in_progress", "content": []}
        yield from self._begin(message)
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield self._event("content_part.added", content_index=0, part=dict(part))
        self.items[-1]["content"].append(part)

    def _begin(self, item: dict[str, Any]) -> Iterator[Event]:
        self.items.append(item)
        yield {
            "type": "response.output_item.added",
            "output_index": len(self.items) - 1,
            "item": item | ({"content": []} if "content" in item else {}),
        }

    def _end(self, complete: bool = True) -> Iterator[Event]:
        """Tell that the last item has ended, if it has not been told."""
        if not self.items or self.items[-1]["status"] != "in_progress":
            return
        item = self.items[-1]
        item["status"] = "completed" if complete else "incomplete"
        if item["type"] == "message":
            part = item["content"][0]
            part["logprobs"] += self.logprobs
            yield self._event("output_text.done", content_index=0, text=part["text"], logprobs=part["logprobs"])
            yield self._event("content_part.done", content_index=0, part=part)
        else:
            yield self._event("function_call_arguments.done", name=item["name"], arguments=item["arguments"])
        yield {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": item}

    def _event(self, kind: str, **fields: Any) -> Event:
        """An event about the last item."""
        place = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
        return {"type": f"response.{kind}", **place, **fields}


def _name(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
