"""The requests that the server understands: OpenAI's fields, and vLLM's where OpenAI has none."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from headstart.engine.params import SamplingParams, StructuredOutputs
from headstart.errors import InvalidRequestError

MAX_PROMPTS = 1024
MAX_LOGPROBS = 20
# Every stop string is looked for after every token.
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_SALT_CHARACTERS = 256

# Fields that do not change an answer here, so they are accepted and left unread.
IGNORED = {
    "metadata",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}
# Fields of OpenAI's API that change the answer and are not served, with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "parallel_tool_calls": (None, True, False),
    "reasoning_effort": (None,),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "verbosity": (None,),
    "web_search_options": (None,),
}


def expected(what: str) -> PydanticCustomError:
    """The error for a value that is not `what`; the sentence adds the field and the value."""
    return PydanticCustomError("expected", "expected {expected}", {"expected": what})


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


class Body(BaseModel):
    """A request body: types are strict, and a field that is not known is an error."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_unused(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if key in cls.model_fields or not _unused(key, value)}


def _unused(key: str, value: Any) -> bool:
    return key in IGNORED or value in UNSUPPORTED.get(key, ())


class StreamOptions(Body):
    """How a stream is sent."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


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


class GenerationRequest(Body):
    """What completions and chat have in common."""

    model: str | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: Annotated[str | list[str] | None, PlainValidator(_stop)] = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    prompt_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    skip_special_tokens: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputsField | None = None
    cache_salt: str | None = Field(default=None, max_length=MAX_SALT_CHARACTERS)
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
            return StructuredOutputs(json_object=True)
        return StructuredOutputs(json=format_.json_schema.schema_)


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`."""

    prompt: Annotated[str | list[str] | list[int] | list[list[int]], PlainValidator(_prompt)]
    max_tokens: int | None = Field(default=None, ge=0)
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _fields_agree(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequestError("max_tokens must be at least 1 unless echo is true, not 0", "max_tokens")
        if self.stream and self.best_of is not None and self.best_of > (self.n or 1):
            raise InvalidRequestError("best_of above n is not available in a stream", "best_of")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one, as text or as token ids."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


class TextPart(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


def _content(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if isinstance(value, list):
        return value
    raise expected("a string or a list of text parts")


class Message(Body):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], BeforeValidator(_content)]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_unused(cls, data: Any) -> Any:
        # Clients send back the assistant's messages as they got them, with fields that are empty.
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if key in cls.model_fields or value not in (None, [])}

    def for_template(self) -> dict[str, str]:
        """The message as chat templates take it; `developer` is OpenAI's newer name of `system`."""
        role = "system" if self.role == "developer" else self.role
        named = {"name": self.name} if self.name is not None else {}
        return {"role": role, "content": "\n".join(part.text for part in self.content), **named}


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError("top_logprobs needs logprobs to be true", "top_logprobs")
        return self


class TokenizeRequest(Body):
    """`POST /tokenize`: a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)
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
