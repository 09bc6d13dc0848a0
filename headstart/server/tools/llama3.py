"""Llama 3's JSON format: an answer that is nothing but `{"name": ..., "parameters": {...}}`, or several with `;`."""

from collections.abc import Collection, Iterator, Sequence

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.server.messages import Tool
from headstart.server.tools.calls import CallScanner
from headstart.server.tools.format import CallParser, Piece, ToolFormat

TAG = "<|python_tag|>"


class Llama3Parser(CallParser):
    """All calls or all text: the first thing that is no call of a known function begins text that goes to the end."""

    _text = False
    _before = ""

    def outside(self, final: bool) -> Iterator[Piece]:
        found = self.buffer if self._text else self._next()
        if not self._text and found.startswith("{"):
            self._before = "" if self.num_calls else self.buffer[: -len(found)]
            self.buffer, self.scanner = found, CallScanner()
        elif self._text or (final and not self.num_calls) or (found and (final or not TAG.startswith(found))):
            text, self.buffer = found if self.num_calls else self.buffer, ""
            self._text = True
            yield from self.say(text)

    def ended(self, failed: str | None) -> Iterator[Piece]:
        self._text = failed is not None
        if failed is not None:
            yield from self.say(self._before + failed)

    def accepts(self, name: str) -> bool:
        # Nothing but its name tells a call from an answer that happens to be JSON.
        return name in self.names

    def _next(self) -> str:
        """The buffer without what may stand before a call."""
        return self.buffer.lstrip(" \t\r\n;").removeprefix(TAG).lstrip()


class Llama3Format(ToolFormat):
    """`{"name": ..., "parameters": {...}}`, as Llama 3.1, 3.2 and 3.3 write it."""

    name = "llama3_json"
    arguments_key = "parameters"

    def writes(self, template: str) -> bool:
        return '{"name": function name, "parameters":' in template or "<|python_tag|>" in template

    def parser(self, names: Collection[str], parallel: bool) -> CallParser:
        return Llama3Parser(names, parallel)

    def grammar(self, tools: Sequence[Tool], tokenizer: Tokenizer, *, text: bool, several: bool) -> str:
        calls = "calls: call" + (' ("; " call)*' if several else "")
        # Text that began with a brace would be read as a call.
        start = r"start: calls | /([^{\s](.|\n)*)?/" if text else "start: calls"
        return "\n".join((start, calls, self.call_rules(tools)))
