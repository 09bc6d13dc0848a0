"""The request of `/v1/responses`, and the chat that it stands for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, model_validator
from typing_extensions import TypedDict

from headstart.errors import InvalidRequestError
from headstart.server.errors import ApiError
from headstart.server.fields import Body, LabelledRequest, Tolerant, expected, within
from headstart.server.messages import (
    FUNCTION_NAME,
    MAX_TOOLS,
    CalledFunction,
    Function,
    Message,
    Tool,
    ToolCall,
    check_tools,
)
from headstart.server.protocol import (
    LOWEST_PRIORITY,
    MAX_CHUNKS,
    MAX_LOGPROBS,
    MAX_SALT_CHARACTERS,
    ChatRequest,
    JsonSchema,
    OwnUse,
    ResponseFormat,
    StreamOptions,
)

# Fields that mean the same in a chat.
_SHARED = (
    *("model", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "ignore_eos", "stream"),
    *("cache_salt", "chunks", "priority", "use", "parallel_tool_calls", "chat_template_kwargs"),
)
_LOGPROBS = "message.output_text.logprobs"
# What a chat calls differently.
_NAMES = {"messages": "input", "max_completion_tokens": "max_output_tokens", "response_format": "text.format"}


class Part(Body):
    """A part of an item's text. What a response put beside the text comes back with it and is not needed."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


def _parts(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "input_text", "text": value}]
    if value is None or isinstance(value, list):
        return value
    raise expected("a string or a list of text parts")


Parts = Annotated[list[Part] | None, BeforeValidator(_parts, json_schema_input_type=str | list[Part] | None)]


class Item(Tolerant):
    """A message, a call that was made, or what the called function returned."""

    type: Literal["message", "function_call", "function_call_output"] = "message"
    id: str | None = None
    status: str | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Parts = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: Parts = None

    @model_validator(mode="after")
    def _fields_suit_the_type(self) -> "Item":
        suits = {
            "message": ("role", "content"),
            "function_call": ("call_id", "name", "arguments"),
            "function_call_output": ("call_id", "output"),
        }
        for field in ("role", "content", "call_id", "name", "arguments", "output"):
            given = getattr(self, field) is not None
            if given != (field in suits[self.type]):
                wrong = "not a field of" if given else "required in"
                raise InvalidRequestError(f"{field} is {wrong} an item of type {self.type}", field)
        return self


def _input(value: Any) -> Any:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if isinstance(value, list):
        return value
    raise expected("a string or a list of items")


class ResponsesTool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    name: str = Field(pattern=FUNCTION_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def as_answered(self) -> dict[str, Any]:
        """The tool as responses repeat it: with every field."""
        return self.model_dump()


class ResponsesNamedTool(TypedDict):
    """A choice of one function."""

    type: Literal["function"]
    name: str


def _tool_choice(value: Any) -> Any:
    match value:
        case None | "none" | "auto" | "required":
            return value
        case {"type": "function", "name": str(), **more} if not more:
            return value
    raise expected('"none", "auto", "required" or {"type": "function", "name": ...}')


_Choice = Literal["none", "auto", "required"] | ResponsesNamedTool | None


class TextFormat(Body):
    """What the text must be."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> "TextFormat":
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise InvalidRequestError('a format has a schema with type "json_schema", and only then', "schema")
        return self


class TextConfig(Body):
    """How the text is written."""

    format: TextFormat | None = None


class ResponsesRequest(LabelledRequest):
    """`POST /v1/responses`."""

    input: Annotated[list[Item], BeforeValidator(_input, json_schema_input_type=str | list[Item])] = Field(min_length=1)
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = within(minimum=0)
    top_p: float | None = within(exclusiveMinimum=0, maximum=1)
    top_k: int | None = within(minimum=-1)
    min_p: float | None = within(minimum=0, maximum=1)
    repetition_penalty: float | None = within(minimum=0.01, maximum=100)
    seed: int | None = within(minimum=-(2**63), maximum=2**64 - 1)
    ignore_eos: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    include: list[Literal["message.output_text.logprobs"]] | None = None
    text: TextConfig | None = None
    tools: list[ResponsesTool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: Annotated[Any, PlainValidator(_tool_choice, json_schema_input_type=_Choice)] = None
    parallel_tool_calls: bool | None = None
    cache_salt: str | None = Field(default=None, max_length=MAX_SALT_CHARACTERS)
    chunks: list[str] | None = Field(default=None, max_length=MAX_CHUNKS)
    priority: int | None = Field(default=None, ge=-LOWEST_PRIORITY, le=LOWEST_PRIORITY)
    use: OwnUse = None
    chat_template_kwargs: dict[str, Any] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> "ResponsesRequest":
        if self.stream_options is not None and (not self.stream or self.stream_options.include_usage is not None):
            raise InvalidRequestError(
                "stream_options has nothing to say here: the usage always comes", "stream_options"
            )
        if self.top_logprobs and not self.wants_logprobs:
            raise InvalidRequestError(f'top_logprobs needs "{_LOGPROBS}" in include', "top_logprobs")
        check_tools([tool.name for tool in self.tools or ()], self.tool_choice)
        if self.tools and self.tool_choice != "none" and self.text_format()["type"] != "text":
            raise InvalidRequestError("text.format cannot be used together with tools", "text.format")
        return self

    @property
    def wants_logprobs(self) -> bool:
        """Whether the text comes with log-probabilities."""
        return _LOGPROBS in (self.include or ())

    def text_format(self) -> dict[str, Any]:
        """What the text must be, as responses repeat it."""
        found = self.text.format if self.text is not None else None
        return {"type": "text"} if found is None else found.model_dump(by_alias=True, exclude_none=True)

    def as_chat(self) -> ChatRequest:
        """The chat that gives the answer."""
        choice = self.tool_choice
        if isinstance(choice, dict):
            choice = {"type": "function", "function": {"name": choice["name"]}}
        tools = [
            Tool(type="function", function=Function(**tool.model_dump(exclude={"type"}))) for tool in self.tools or ()
        ]
        return ChatRequest(
            **{name: getattr(self, name) for name in _SHARED},
            messages=self._messages(),
            max_completion_tokens=self.max_output_tokens,
            logprobs=self.wants_logprobs,
            top_logprobs=self.top_logprobs,
            response_format=self._response_format(),
            tools=tools,
            tool_choice=choice,
        )

    @contextmanager
    def errors_by_its_names(self) -> Iterator[None]:
        """Let refusals of the chat name the fields of this request."""
        try:
            yield
        except (ApiError, InvalidRequestError) as error:
            if error.param not in _NAMES:
                raise
            status, code = (error.status, error.code) if isinstance(error, ApiError) else (400, None)
            raise ApiError(status, str(error), param=_NAMES[error.param], code=code) from None

    def _response_format(self) -> ResponseFormat | None:
        found = self.text.format if self.text is not None else None
        if found is None or found.schema_ is None:
            return None if found is None else ResponseFormat(type=found.type)
        return ResponseFormat(type=found.type, json_schema=JsonSchema(schema=found.schema_))

    def _messages(self) -> list[Message]:
        """The items as turns; the assistant's text and the calls that follow it are one turn."""
        turns: list[dict[str, Any]] = []
        if self.instructions is not None:
            turns.append({"role": "system", "content": self.instructions})
        for item in self.input:
            if item.type == "function_call":
                call = ToolCall(
                    id=item.call_id or "", function=CalledFunction(name=item.name or "", arguments=item.arguments or "")
                )
                if not turns or turns[-1]["role"] != "assistant":
                    turns.append({"role": "assistant", "content": None})
                turns[-1].setdefault("tool_calls", []).append(call)
            elif item.type == "function_call_output":
                turns.append({"role": "tool", "content": _text(item.output), "tool_call_id": item.call_id})
            else:
                turns.append({"role": item.role, "content": _text(item.content)})
        return [Message(**turn) for turn in turns]


def _text(parts: list[Part] | None) -> str:
    return "\n".join(part.text for part in parts or ())
