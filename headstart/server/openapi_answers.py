"""JSON schemas of what the server answers."""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}
ANY: Schema = {}


def record(**fields: Schema) -> Schema:
    """An object with these fields, all present, and no others."""
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def with_optional(schema: Schema, **fields: Schema) -> Schema:
    """A record that may have further fields."""
    return schema | {"properties": schema["properties"] | fields}


def several(schema: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": schema}


def maybe(schema: Schema) -> Schema:
    """This or null."""
    return {"anyOf": [schema, NULL]}


def one_of(*values: str) -> Schema:
    """One of these strings."""
    return {"enum": list(values)}


def mapping(schema: Schema) -> Schema:
    """An object with any keys."""
    return {"type": "object", "additionalProperties": schema}


_TIMES = {"exact": FLAG, "queue_time": NUMBER, "prefill_time": NUMBER}
_CACHED = record(cached_tokens=COUNT)
_USAGE = record(
    prompt_tokens=COUNT,
    completion_tokens=COUNT,
    total_tokens=COUNT,
    prompt_tokens_details=_CACHED,
    decode_time=NUMBER,
    **_TIMES,
)
_PROMPT_LOGPROBS = several(maybe(mapping(record(logprob=NUMBER, rank=COUNT, decoded_token=TEXT))))
_ENTRY = record(token=TEXT, logprob=NUMBER, bytes=several(COUNT))
_LOGPROBS = several(record(**_ENTRY["properties"], top_logprobs=several(_ENTRY)))
_ENDED: dict[str, Schema] = {"stop_reason": {"anyOf": [TEXT, COUNT, NULL]}}
_CALL = record(id=TEXT, type=one_of("function"), function=record(name=TEXT, arguments=TEXT))
_MESSAGE = with_optional(record(role=one_of("assistant"), content=maybe(TEXT), refusal=NULL), tool_calls=several(_CALL))
_CHAT_CHOICE = record(
    index=COUNT,
    message=_MESSAGE,
    logprobs=maybe(record(content=_LOGPROBS, refusal=NULL)),
    finish_reason=one_of("stop", "length", "tool_calls", "abort"),
    **_ENDED,
)
_COMPLETION_LOGPROBS = record(
    tokens=several(TEXT),
    token_logprobs=several(maybe(NUMBER)),
    top_logprobs=several(maybe(mapping(NUMBER))),
    text_offset=several(COUNT),
)
_COMPLETION_CHOICE = record(
    index=COUNT,
    text=TEXT,
    logprobs=maybe(_COMPLETION_LOGPROBS),
    finish_reason=one_of("stop", "length", "abort"),
    **_ENDED,
)


def _completion(kind: str, choice: Schema) -> Schema:
    choices = several(with_optional(choice, prompt_logprobs=maybe(_PROMPT_LOGPROBS)))
    return record(id=TEXT, object=one_of(kind), created=COUNT, model=TEXT, choices=choices, usage=_USAGE)


_STATUS = one_of("completed", "incomplete")
_PART = record(type=one_of("output_text"), text=TEXT, annotations=several(ANY), logprobs=_LOGPROBS)
_MESSAGE_ITEM = record(
    type=one_of("message"), id=TEXT, role=one_of("assistant"), status=_STATUS, content=several(_PART)
)
_CALL_ITEM = record(type=one_of("function_call"), id=TEXT, call_id=TEXT, name=TEXT, arguments=TEXT, status=_STATUS)
_RESPONSE_USAGE = record(
    input_tokens=COUNT,
    input_tokens_details=_CACHED,
    output_tokens=COUNT,
    output_tokens_details=record(reasoning_tokens=COUNT),
    total_tokens=COUNT,
    decode_time=NUMBER,
    **_TIMES,
)
_RESPONSE = record(
    id=TEXT,
    object=one_of("response"),
    created_at=COUNT,
    completed_at=maybe(COUNT),
    status=_STATUS,
    error=NULL,
    incomplete_details=maybe(record(reason=one_of("max_output_tokens"))),
    instructions=maybe(TEXT),
    max_output_tokens=maybe(COUNT),
    metadata=mapping(TEXT),
    model=TEXT,
    output=several({"anyOf": [_MESSAGE_ITEM, _CALL_ITEM]}),
    parallel_tool_calls=FLAG,
    previous_response_id=NULL,
    reasoning=record(effort=NULL, summary=NULL),
    store=FLAG,
    temperature=NUMBER,
    text=record(format={"type": "object"}),
    tool_choice={"anyOf": [TEXT, {"type": "object"}]},
    tools=several({"type": "object"}),
    top_logprobs=COUNT,
    top_p=NUMBER,
    truncation=one_of("disabled"),
    usage=_RESPONSE_USAGE,
    user=maybe(TEXT),
)
_EMBEDDINGS = record(
    object=one_of("list"),
    data=several(
        record(object=one_of("embedding"), index=COUNT, embedding={"anyOf": [several(NUMBER), TEXT]}),
    ),
    model=TEXT,
    usage=record(prompt_tokens=COUNT, total_tokens=COUNT, prompt_tokens_details=_CACHED, **_TIMES),
)
_MODEL = record(
    id=TEXT,
    object=one_of("model"),
    created=COUNT,
    owned_by=TEXT,
    root=TEXT,
    max_model_len=COUNT,
    exact=FLAG,
    allow_use=several(TEXT),
)

ANSWERS: dict[str, Schema] = {
    "ChatCompletion": _completion("chat.completion", _CHAT_CHOICE),
    "Completion": _completion("text_completion", _COMPLETION_CHOICE),
    "Response": _RESPONSE,
    "Embeddings": _EMBEDDINGS,
    "Tokens": record(count=COUNT, max_model_len=COUNT, tokens=several(COUNT)),
    "Text": record(prompt=TEXT),
    "Model": _MODEL,
    "Models": record(object=one_of("list"), data=several(_MODEL)),
    "Health": record(status=TEXT),
    "Version": record(version=TEXT),
    "Error": record(error=record(message=TEXT, type=TEXT, param=maybe(TEXT), code=maybe(TEXT))),
}
