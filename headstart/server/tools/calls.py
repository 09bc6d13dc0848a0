"""One call as models write it, a JSON object with a name and arguments, read while it comes."""

import json
from dataclasses import dataclass
from typing import Any

WHITE = " \t\r\n"
ARGUMENTS = ("arguments", "parameters")


@dataclass(frozen=True)
class CallDelta:
    """What is new in the `index`-th call of an answer; `name` only where the call begins."""

    index: int
    name: str | None
    arguments: str


class CallScanner:
    """Reads `{"name": ..., "arguments": {...}}`, whatever the order of its keys and whatever keys stand beside them.

    Attributes:
        name: of the function, once it is known.
        begun: whether the arguments have begun.
        done: the object is complete.
        failed: it is no call.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.begun = self.done = self.failed = False
        self._state = self._open
        self._key = ""
        self._value = ""
        self._depth = 0
        self._quoted = self._escaped = False
        self._read: list[str] = []
        self._arguments: list[str] = []

    @property
    def text(self) -> str:
        """All that was read."""
        return "".join(self._read)

    def feed(self, text: str) -> int:
        """Read until the object ends; returns how many characters were taken."""
        for taken, character in enumerate(text):
            if self.done or self.failed:
                return taken
            self._read.append(character)
            self._state(character)
        return len(text)

    def take(self) -> str:
        """The text of the arguments that has come since the last call of this."""
        taken, self._arguments = self._arguments, []
        return "".join(taken)

    def _open(self, character: str) -> None:
        if character == "{":
            self._state = self._before_key
        elif character not in WHITE:
            self.failed = True

    def _before_key(self, character: str) -> None:
        if character == '"':
            self._value, self._quoted, self._escaped = character, True, False
            self._state = self._in_key
        elif character == "}":
            self._close()
        elif character not in WHITE and character != ",":
            self.failed = True

    def _in_key(self, character: str) -> None:
        self._value += character
        if not self._in_string(character):
            self._key = _parsed(self._value) or ""
            self._state = self._colon

    def _colon(self, character: str) -> None:
        if character == ":":
            self._state = self._before_value
        elif character not in WHITE:
            self.failed = True

    def _before_value(self, character: str) -> None:
        if character in WHITE:
            return
        self._value, self._depth, self._quoted, self._escaped = "", 0, False, False
        self._state = self._in_container if character in "{[" else self._in_scalar
        self._state(character)

    def _in_container(self, character: str) -> None:
        """An object or a list; as arguments it is handed on as it comes."""
        if self._key in ARGUMENTS:
            self.begun = True
            self._arguments.append(character)
        if self._quoted:
            self._quoted = self._in_string(character)
        elif character == '"':
            self._quoted = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            if not self._depth:
                self._state = self._before_key

    def _in_scalar(self, character: str) -> None:
        if self._quoted:
            self._value += character
            self._quoted = self._in_string(character)
        elif character == '"' and not self._value:
            self._value, self._quoted = character, True
        elif character in ",}" or character in WHITE:
            self._take_scalar()
            self._state = self._before_key
            if character == "}":
                self._close()
        else:
            self._value += character

    def _in_string(self, character: str) -> bool:
        """Whether the string that `character` belongs to goes on after it."""
        if self._escaped:
            self._escaped = False
            return True
        self._escaped = character == "\\"
        return character != '"'

    def _take_scalar(self) -> None:
        value = _parsed(self._value)
        if self._key == "name":
            self.name = value if isinstance(value, str) else None
            self.failed = not self.name
        elif self._key in ARGUMENTS:
            # Some models write the arguments as JSON within a string, or null for none.
            self.begun = True
            self._arguments.append(value if isinstance(value, str) else "{}" if value is None else self._value)

    def _close(self) -> None:
        if self.name is None:
            self.failed = True
        self.done = not self.failed
        if self.done and not self.begun:
            self.begun, self._arguments = True, ["{}"]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
