"""The requests that the server understands: OpenAI's fields, and vLLM's where OpenAI has none."""

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, model_validator

from headstart.engine.params import SamplingParams, StructuredOutputs
from headstart.errors import InvalidRequestError
from headstart.server.fields import Body, LabelledRequest, expected, within
from headstart.server.messages import MAX_TOOLS, Message, Tool, ToolChoice, check_tools

MAX_PROMPTS = 1024
MAX_LOGPROBS = 20
# Every stop string is looked for after every token.
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_SALT_CHARACTERS = 256
MAX_CHUNKS = 1024
MAX_METHODS = 8
MAX_METHOD_CHARACTERS = 256

LOWEST_PRIORITY = 2**31


def _stop(value: Any) -> str | list[str] | None:
    if value is None:
        return None
    several = [value] if isinstance(value, str) else value
    if not isinstance(several, list) or not all(isinstance(item, str) for item in several):
        raise expected("a string or a list of strings")
    if len(several) > MAX_STOPS:
        raise expected(f"at most {MAX_STOPS} strings")
    if any(len(item) > MAX_STOP_CHARACTERS for item in several):
        raise expected(f"of at most {MAX_STOP_CHARACTERS} characters a string")
    return value


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(type(item) is int for item in value)


def _prompt(value: Any) -> str | list[str] | list[int] | list[list[int]]:
    # By hand, because pydantic would try, and report, every alternative for every one of a million ids.
    if isinstance(value, str) or _is_token_ids(value):
        return value
    if isinstance(value, list) and value:
        if len(value) > MAX_PROMPTS:
            raise expected(f"at most {MAX_PROMPTS} prompts")
        if all(isinstance(item, str) for item in value) or all(_is_token_ids(item) for item in value):
            return value
    raise expected("a string, a list of strings, a list of token ids or a list of lists of token ids")


Prompts = Annotated[
    str | list[str] | list[int] | list[list[int]],
    PlainValidator(_prompt, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]


def one_by_one(prompts: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """One prompt or many, as many: each is text or token ids."""
    if isinstance(prompts, str) or isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


class StreamOptions(Body):
    """How a stream is sent."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class JsonSchema(Body):
    """OpenAI's wrapping of a schema."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(default_factory=lambda: {"type": "object"}, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """OpenAI's structured output."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise InvalidRequestError(
                'response_format takes json_schema with type "json_schema", and only then', "json_schema"
            )
        return self


class StructuredOutputsField(Body):
    """vLLM's structured output: one of these."""

    json_: dict[str, Any] | None = Field(default=None, alias="json")
    json_object: bool = False
    regex: str | None = None
    grammar: str | None = None


OwnUse = Annotated[list[Annotated[str, Field(max_length=MAX_METHOD_CHARACTERS)]] | None, Field(max_length=MAX_METHODS)]
"""Methods for one request, as `--use` takes them; none of them is the model alone."""


class GenerationRequest(LabelledRequest):
    """What completions and chat have in common."""

    n: int | None = within(minimum=1, maximum=128)
    temperature: float | None = within(minimum=0)
    top_p: float | None = within(exclusiveMinimum=0, maximum=1)
    top_k: int | None = within(minimum=-1)
    min_p: float | None = within(minimum=0, maximum=1)
    repetition_penalty: float | None = within(minimum=0.01, maximum=100)
    presence_penalty: float | None = within(minimum=-2, maximum=2)
    frequency_penalty: float | None = within(minimum=-2, maximum=2)
    logit_bias: dict[str, float] | None = None
    seed: int | None = within(minimum=-(2**63), maximum=2**64 - 1)
    stop: Annotated[str | list[str] | None, PlainValidator(_stop, json_schema_input_type=str | list[str] | None)] = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = within(minimum=0)
    prompt_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    skip_special_tokens: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputsField | None = None
    cache_salt: str | None = Field(default=None, max_length=MAX_SALT_CHARACTERS)
    chunks: list[str] | None = Field(default=None, max_length=MAX_CHUNKS)
    priority: int | None = Field(default=None, ge=-LOWEST_PRIORITY, le=LOWEST_PRIORITY)
    use: OwnUse = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _stream_fields_agree(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("stream_options is for requests with stream set to true", "stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise InvalidRequestError("prompt_logprobs is not available in a stream", "prompt_logprobs")
        return self

    def sampling_params(self, defaults: dict[str, float | int], **chosen: Any) -> SamplingParams:
        """The engine's parameters.

        Args:
            defaults: for fields the request leaves out, as the model's `generation_config.json` has them.
            chosen: parameters that the endpoint works out for itself.

        Raises:
            InvalidRequestError: a value out of range.
        """
        names = set(SamplingParams.__dataclass_fields__) & set(GenerationRequest.model_fields)
        asked = {name: getattr(self, name) for name in names - {"structured_outputs"}}
        given = {name: value for name, value in asked.items() if value is not None}
        output_kind = "delta" if self.stream else "final"
        grammar = {"structured_outputs": self._grammar(), "output_kind": output_kind}
        return SamplingParams(**{**defaults, **given, **grammar, **chosen})

    def _grammar(self) -> StructuredOutputs | None:
        format_ = self.response_format if self.response_format and self.response_format.type != "text" else None
        if self.structured_outputs is not None:
            if format_ is not None:
                raise InvalidRequestError(
                    "response_format and structured_outputs cannot be used together", "structured_outputs"
                )
            return StructuredOutputs(**{k.rstrip("_"): v for k, v in dict(self.structured_outputs).items()})
        if format_ is None:
            return None
        if format_.json_schema is None:
            return StructuredOutputs(json_object=True, param="response_format")
        return StructuredOutputs(json=format_.json_schema.schema_, param="response_format")


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`."""

    prompt: Prompts
    max_tokens: int | None = Field(default=None, ge=0)
    best_of: int | None = within(minimum=1, maximum=128)
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _fields_agree(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequestError("max_tokens must be at least 1 unless echo is true, not 0", "max_tokens")
        if self.chunks is not None and (not isinstance(self.prompt, str)):
            raise InvalidRequestError("chunks is for requests whose prompt is one text", "chunks")
        if self.stream and self.best_of is not None and self.best_of > (self.n or 1):
            raise InvalidRequestError("best_of above n is not available in a stream", "best_of")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one, as text or as token ids."""
        return one_by_one(self.prompt)


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError("top_logprobs needs logprobs to be true", "top_logprobs")
        check_tools([tool.function.name for tool in self.tools or ()], self.tool_choice)
        if self.tools and self.tool_choice != "none":
            if self._grammar() is not None:
                field = "response_format" if self.response_format is not None else "structured_outputs"
                raise InvalidRequestError(f"{field} cannot be used together with tools", field)
            if not self.add_generation_prompt:
                raise InvalidRequestError("tools need add_generation_prompt to be true", "add_generation_prompt")
        return self


class TokenizeRequest(Body):
    """`POST /tokenize`: a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequestError("give either prompt or messages", "prompt")
        return self


class DetokenizeRequest(Body):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: list[int]
    skip_special_tokens: bool = True
