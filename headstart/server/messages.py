"""The turns of a chat, and the tools that may be called in it."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, model_validator
from typing_extensions import TypedDict

from headstart.errors import InvalidRequestError
from headstart.server.fields import Body, Tolerant, expected

MAX_TOOLS = 128
FUNCTION_NAME = r"^[a-zA-Z0-9_-]{1,64}$"


class TextPart(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


def _content(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if value is None or isinstance(value, list):
        return value
    raise expected("a string or a list of text parts")


class CalledFunction(Body):
    """The function and the arguments of a call, as JSON text."""

    name: str
    arguments: str = "{}"


class ToolCall(Body):
    """A call that the assistant made in an earlier turn."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        """The call as chat templates take it: with arguments parsed, so that they are not quoted twice."""
        try:
            arguments = json.loads(self.function.arguments)
        except (ValueError, RecursionError):
            arguments = self.function.arguments
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


class Message(Tolerant):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        list[TextPart] | None, BeforeValidator(_content, json_schema_input_type=str | list[TextPart] | None)
    ] = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _fields_suit_the_role(self) -> "Message":
        if self.tool_calls and self.role != "assistant":
            raise InvalidRequestError(f"tool_calls are for the assistant, not for role {self.role!r}", "tool_calls")
        if self.content is None and not self.tool_calls:
            raise InvalidRequestError(f"content is required in a message of role {self.role!r}", "content")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            wrong = "required in" if self.role == "tool" else "only for"
            raise InvalidRequestError(f"tool_call_id is {wrong} a message of role 'tool'", "tool_call_id")
        return self

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates take it; `developer` is OpenAI's newer name of `system`."""
        turn: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role}
        turn["content"] = "\n".join(part.text for part in self.content or ())
        if self.name is not None:
            turn["name"] = self.name
        if self.tool_calls:
            turn["tool_calls"] = [call.for_template() for call in self.tool_calls]
        if self.tool_call_id is not None:
            turn["tool_call_id"] = self.tool_call_id
        return turn


class Function(Body):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: str = Field(pattern=FUNCTION_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool of chat: functions are the only kind."""

    type: Literal["function"]
    function: Function


class _FunctionName(TypedDict):
    name: str


class NamedTool(TypedDict):
    """A choice of one function."""

    type: Literal["function"]
    function: _FunctionName


def _tool_choice(value: Any) -> str | dict[str, Any] | None:
    match value:
        case None | "none" | "auto" | "required":
            return value
        case {"type": "function", "function": {"name": str(), **inner}, **outer} if not inner and not outer:
            return value
    raise expected('"none", "auto", "required" or {"type": "function", "function": {"name": ...}}')


ToolChoice = Annotated[
    str | dict[str, Any] | None,
    PlainValidator(_tool_choice, json_schema_input_type=Literal["none", "auto", "required"] | NamedTool | None),
]


def check_tools(names: Sequence[str], choice: Any) -> None:
    """Refuse tools of the same name, and a choice without tools.

    Raises:
        InvalidRequestError: `.param` is `tools` or `tool_choice`.
    """
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise InvalidRequestError(f"tools has several functions named {twice[0]!r}", "tools")
    if not names and choice not in (None, "none", "auto"):
        raise InvalidRequestError("tool_choice asks for a call, but there are no tools", "tool_choice")
