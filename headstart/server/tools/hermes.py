"""Hermes' format, which Qwen and many others use: JSON between `<tool_call>` and `</tool_call>`, among text."""

from collections.abc import Collection, Iterator, Sequence

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.server.messages import Tool
from headstart.server.tools.calls import CallScanner
from headstart.server.tools.format import ANY_TEXT, CallParser, Piece, ToolFormat, marker

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesParser(CallParser):
    """Text and calls in any order. What stands between the markers and is no call is shown as text."""

    _closing = False

    def outside(self, final: bool) -> Iterator[Piece]:
        if self._closing:
            self._skip_to_end(final)
        if self._closing:
            return
        at = self.buffer.find(OPEN)
        if at >= 0:
            shown, self.buffer = self.buffer[:at], self.buffer[at + len(OPEN) :]
            self.scanner = CallScanner()
        else:
            kept = 0 if final else _overlap(self.buffer, OPEN)
            shown = self.buffer[: len(self.buffer) - kept]
            self.buffer = self.buffer[len(shown) :]
        yield from self.say(shown)

    def ended(self, failed: str | None) -> Iterator[Piece]:
        self._closing = failed is None
        if failed is not None:
            yield from self.say(OPEN + failed)

    def _skip_to_end(self, final: bool) -> None:
        """Drop what follows a complete call up to its closing marker, or to the next call if that is missing."""
        ends = [
            (at, len(mark) if mark == CLOSE else 0) for mark in (CLOSE, OPEN) if (at := self.buffer.find(mark)) >= 0
        ]
        if ends:
            at, length = min(ends)
            self.buffer = self.buffer[at + length :]
        else:
            self.buffer = "" if final else self.buffer[1 - len(CLOSE) :]
        self._closing = not ends and not final


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-n:])), 0)


class HermesFormat(ToolFormat):
    """`<tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>`."""

    name = "hermes"
    arguments_key = "arguments"

    def writes(self, template: str) -> bool:
        return OPEN in template

    def parser(self, names: Collection[str], parallel: bool) -> CallParser:
        return HermesParser(names, parallel)

    def grammar(self, tools: Sequence[Tool], tokenizer: Tokenizer, *, text: bool, several: bool) -> str:
        begin, end = marker(OPEN, tokenizer), marker(CLOSE, tokenizer)
        body = f'"\\n" call "\\n" {end}'
        if not text:
            start = "start: tagged" + (' ("\\n" tagged)*' if several else "")
            return "\n".join((start, f"tagged: {begin} {body}", self.call_rules(tools)))
        # A marker that is no token of its own is looked for in the text: "lazy" ends it at the first.
        opened = f"opened: TEXT {begin}" if begin == OPEN else f"opened[lazy]: /(.|\\n)*/ {begin}"
        start = f"start: tagged{'*' if several else '?'} TEXT"
        return "\n".join((start, f"tagged: opened {body}", opened, ANY_TEXT, self.call_rules(tools)))
