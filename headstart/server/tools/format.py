"""What a format of tool calls is: recognised by a chat template, held to by a grammar, read by a parser."""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import ClassVar

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.server.messages import Tool
from headstart.server.tools.calls import CallDelta, CallScanner

Piece = str | CallDelta

# Text of any length, in Lark's notation.
ANY_TEXT = r"TEXT: /(.|\n)*/"
# One space or none between the parts of a call, or a small model may write white space until its tokens run out.
_COMPACT = {"whitespace_pattern": " ?"}


class CallParser(ABC):
    """Splits one answer into text and calls as it comes.

    White space before a call or at the end of an answer with calls is dropped.

    Args:
        names: of the functions that may be called.
        parallel: read every call; otherwise only the first, and nothing after it.
    """

    def __init__(self, names: Collection[str], parallel: bool = True) -> None:
        self.names, self.parallel = names, parallel
        self.num_calls = 0
        self.buffer = ""
        self.scanner: CallScanner | None = None
        self._announced = False
        self._held = ""

    def feed(self, text: str, final: bool = False) -> Iterator[Piece]:
        """What `text` brings: text to show, and parts of calls. With `final` nothing is held back any more."""
        self.buffer += text
        progress = True
        while progress and (self.parallel or not self.num_calls or self.scanner is not None):
            before = (self.buffer, self.scanner)
            yield from self.inside(final) if self.scanner is not None else self.outside(final)
            progress = before != (self.buffer, self.scanner)
        if final and not self.num_calls and self._held:
            yield self._held

    @abstractmethod
    def outside(self, final: bool) -> Iterator[Piece]:
        """Take text from `buffer` up to the next call, and set `scanner` where one begins."""

    @abstractmethod
    def ended(self, failed: str | None) -> Iterator[Piece]:
        """A call is over, or what looked like one is not: then `failed` is its text."""

    def inside(self, final: bool) -> Iterator[Piece]:
        """Take the text of a call from `buffer`."""
        scanner = self.scanner
        assert scanner is not None
        self.buffer = self.buffer[scanner.feed(self.buffer) :]
        if not self._announced and scanner.name is not None and not self.accepts(scanner.name):
            scanner.failed = True
        elif scanner.name is not None and scanner.begun:
            if not self._announced:
                self._announced, self._held = True, ""
                self.num_calls += 1
                yield CallDelta(self.num_calls - 1, scanner.name, "")
            if arguments := scanner.take():
                yield CallDelta(self.num_calls - 1, None, arguments)
        if scanner.done or scanner.failed or final:
            failed = None if self._announced else scanner.text
            self.scanner, self._announced = None, False
            yield from self.ended(failed)

    def accepts(self, name: str) -> bool:
        """Whether an object with this name is a call."""
        return True

    def say(self, text: str) -> Iterator[Piece]:
        """Show text, but hold white space at its end back until it is clear what follows."""
        text = self._held + text
        shown = text.rstrip()
        self._held = text[len(shown) :]
        if shown:
            yield shown


class ToolFormat(ABC):
    """How a family of models writes its calls."""

    name: ClassVar[str]
    arguments_key: ClassVar[str]

    @abstractmethod
    def writes(self, template: str) -> bool:
        """Whether a chat template teaches this format."""

    @abstractmethod
    def parser(self, names: Collection[str], parallel: bool) -> CallParser:
        """A parser for one answer."""

    @abstractmethod
    def grammar(self, tools: Sequence[Tool], tokenizer: Tokenizer, *, text: bool, several: bool) -> str:
        """A Lark grammar that answers with calls must follow.

        Args:
            tools: that may be called; the schemas of all of them are enforced.
            tokenizer: whose own tokens stand for the format's markers where it has them.
            text: allow an answer without calls.
            several: allow more than one call.
        """

    def call_rules(self, tools: Sequence[Tool]) -> str:
        """Lark rules under which `call` is one call of any of the tools."""
        rules = [f"call: {' | '.join(f'call_{i}' for i in range(len(tools)))}"]
        for index, tool in enumerate(tools):
            opening = f'{{"name": {json.dumps(tool.function.name)}, "{self.arguments_key}": '
            schema = {"type": "object"} | (tool.function.parameters or {}) | {"x-guidance": _COMPACT}
            rules.append(f'call_{index}: {json.dumps(opening)} %json {json.dumps(schema)} "}}"')
        return "\n".join(rules)


def marker(text: str, tokenizer: Tokenizer) -> str:
    """A marker of the form `<...>` in Lark's notation: one token where the vocabulary has it, else its characters."""
    return json.dumps(text) if tokenizer.inner.token_to_id(text) is None else text
