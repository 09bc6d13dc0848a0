"""Bad requests: the right status, one sentence that names the field, and a server that serves on."""

import inspect
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import OpenAI

from headstart.server.embeddings import EmbeddingRequest
from headstart.server.fields import UNSUPPORTED, Body
from headstart.server.protocol import ChatRequest, CompletionRequest
from headstart.server.responses_protocol import ResponsesRequest
from tests.server.harness import Running

PROMPT = {"prompt": "Once upon"}
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"


ENDLESS = 'start: "a" b\nb: "x" b'
DEAD_END = 'start: "a" /[^\\x00-\\U0010FFFF]/'


def with_schema(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


CASES: list[tuple[str, Any, int, str | None, str]] = [
    (COMPLETIONS, PROMPT | {"temperature": "hot"}, 400, "temperature", "must be a number, not 'hot'"),
    (COMPLETIONS, PROMPT | {"temperature": True}, 400, "temperature", "must be a number"),
    (COMPLETIONS, PROMPT | {"temperature": -1}, 400, "temperature", "at least 0"),
    (COMPLETIONS, PROMPT | {"temperature": 10**400}, 400, "temperature", "must be a number"),
    (COMPLETIONS, PROMPT | {"top_p": 0}, 400, "top_p", "above 0"),
    (COMPLETIONS, PROMPT | {"max_tokens": -5}, 400, "max_tokens", "at least 0, not -5"),
    (COMPLETIONS, PROMPT | {"max_tokens": 0}, 400, "max_tokens", "at least 1 unless echo"),
    (COMPLETIONS, PROMPT | {"max_tokens": 1.5}, 400, "max_tokens", "must be an integer"),
    (COMPLETIONS, PROMPT | {"max_tokens": 600}, 400, "max_tokens", "512"),
    (COMPLETIONS, PROMPT | {"n": 0}, 400, "n", "at least 1"),
    (COMPLETIONS, PROMPT | {"n": 10**9}, 400, "n", "at most 128"),
    (COMPLETIONS, PROMPT | {"n": 3, "best_of": 2}, 400, "best_of", "at least n"),
    (COMPLETIONS, PROMPT | {"n": 1, "best_of": 2, "stream": True}, 400, "best_of", "stream"),
    (COMPLETIONS, PROMPT | {"logprobs": 21}, 400, "logprobs", "at most 20"),
    (COMPLETIONS, PROMPT | {"logprobs": True}, 400, "logprobs", "an integer"),
    (COMPLETIONS, PROMPT | {"seed": 2**70}, 400, "seed", "at most"),
    (COMPLETIONS, PROMPT | {"stop": 3}, 400, "stop", "a string or a list of strings, not 3"),
    (COMPLETIONS, PROMPT | {"stop": [""]}, 400, "stop", "not empty"),
    (COMPLETIONS, PROMPT | {"stop": ["x"] * 17}, 400, "stop", "at most 16 strings"),
    (COMPLETIONS, PROMPT | {"stop": "x" * 257}, 400, "stop", "at most 256 characters"),
    (COMPLETIONS, PROMPT | {"stop": ["x", "y" * 100_000]}, 400, "stop", "at most 256 characters"),
    (COMPLETIONS, PROMPT | {"stop": ["x" * 255 + str(i % 10) for i in range(16)]}, 200, None, ""),
    (COMPLETIONS, PROMPT | {"cache_salt": "x" * 257}, 400, "cache_salt", "at most 256 characters"),
    (COMPLETIONS, PROMPT | {"cache_salt": "☃" * 256}, 200, None, ""),
    (COMPLETIONS, PROMPT | {"cache_salt": 3}, 400, "cache_salt", "a string"),
    (COMPLETIONS, PROMPT | {"stop_token_ids": [512]}, 400, "stop_token_ids", "512"),
    (COMPLETIONS, PROMPT | {"logit_bias": {"x": 1}}, 400, "logit_bias", "no token id"),
    (COMPLETIONS, PROMPT | {"logit_bias": {"5": 101}}, 400, "logit_bias", "at most 100"),
    (COMPLETIONS, PROMPT | {"logit_bias": {"9999": 1}}, 400, "logit_bias", "9999"),
    (COMPLETIONS, PROMPT | {"min_tokens": 9, "max_tokens": 5}, 400, "min_tokens", "must not exceed"),
    (COMPLETIONS, PROMPT | {"temprature": 1}, 400, "temprature", "did you mean 'temperature'"),
    (COMPLETIONS, PROMPT | {"suffix": "end"}, 400, "suffix", "not supported"),
    (COMPLETIONS, PROMPT | {"model": "gpt-4"}, 404, "model", "'stories'"),
    (COMPLETIONS, PROMPT | {"model": 3}, 400, "model", "a string"),
    (COMPLETIONS, PROMPT | {"stream_options": {"include_usage": True}}, 400, "stream_options", "stream"),
    (COMPLETIONS, PROMPT | {"prompt_logprobs": 1, "stream": True}, 400, "prompt_logprobs", "stream"),
    (COMPLETIONS, PROMPT | {"response_format": {"type": "xml"}}, 400, "response_format.type", "'xml'"),
    (COMPLETIONS, PROMPT | with_schema({"type": "foo"}), 400, "response_format", "foo"),
    (COMPLETIONS, PROMPT | with_schema({"type": "foo"}) | {"stream": True}, 400, "response_format", "foo"),
    (COMPLETIONS, PROMPT | {"response_format": {"type": "json_schema"}}, 400, None, "json_schema"),
    (COMPLETIONS, PROMPT | with_schema({"$ref": "#"}), 400, "response_format", "nothing can complete it"),
    (COMPLETIONS, PROMPT | {"structured_outputs": {"grammar": ENDLESS}}, 400, "structured_outputs", "Too many items"),
    (COMPLETIONS, PROMPT | {"structured_outputs": {"grammar": DEAD_END}}, 400, "structured_outputs", "complete"),
    (COMPLETIONS, PROMPT | {"structured_outputs": {"regex": "("}}, 400, "structured_outputs", "unclosed"),
    (COMPLETIONS, {}, 400, "prompt", "required"),
    (COMPLETIONS, {"prompt": ""}, 200, None, ""),
    (COMPLETIONS, {"prompt": []}, 400, "prompt", "a list of token ids"),
    (COMPLETIONS, {"prompt": [[]]}, 400, "prompt", "a list of token ids"),
    (COMPLETIONS, {"prompt": [1, "a"]}, 400, "prompt", "a list of token ids"),
    (COMPLETIONS, {"prompt": ["a", 1]}, 400, "prompt", "a list of token ids"),
    (COMPLETIONS, {"prompt": [True]}, 400, "prompt", "a list of token ids"),
    (COMPLETIONS, {"prompt": [1, 512]}, 400, "prompt", "512"),
    (COMPLETIONS, {"prompt": [-1]}, 400, "prompt", "-1"),
    (COMPLETIONS, {"prompt": [10**30]}, 400, "prompt", "10000"),
    (COMPLETIONS, {"prompt": [1] * 512}, 400, "prompt", "512"),
    (COMPLETIONS, {"prompt": [1] * 1_000_000}, 400, "prompt", "1000000"),
    (COMPLETIONS, {"prompt": "x " * 500}, 400, "prompt", "512"),
    (COMPLETIONS, {"prompt": "x" * 4_000_000}, 400, "prompt", "4000000 characters"),
    (COMPLETIONS, {"prompt": "x" * 10_000_000}, 413, None, "8 MiB"),
    (COMPLETIONS, {"prompt": ["x"] * 2000}, 400, "prompt", "at most 1024"),
    (COMPLETIONS, [], 400, None, "must be an object"),
    (COMPLETIONS, "text", 400, None, "must be an object"),
    (CHATS, {}, 400, "messages", "required"),
    (CHATS, {"messages": []}, 400, "messages", "at least 1"),
    (CHATS, {"messages": [{"role": "user"}]}, 400, "messages[0].content", "required"),
    (CHATS, {"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages[0].role", "'wizard'"),
    (CHATS, {"messages": [{"role": "user", "content": 3}]}, 400, "messages[0].content", "a string or"),
    (
        CHATS,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "messages[0].content[0].type",
        "'image_url'",
    ),
    (
        CHATS,
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
        400,
        "messages[0].tool_calls[0].function",
        "required",
    ),
    (CHATS, CHAT | {"tools": [{"type": "function"}]}, 400, "tools[0].function", "required"),
    (CHATS, CHAT | {"tool_choice": "required"}, 400, "tool_choice", "no tools"),
    (CHATS, CHAT | {"user": 3}, 400, "user", "a string"),
    (CHATS, CHAT | {"priority": 1}, 400, "priority", "scheduling-policy"),
    (CHATS, CHAT | {"priority": 10**20}, 400, "priority", "at most"),
    (CHATS, CHAT | {"store": 0}, 400, "store", "not supported"),
    (CHATS, CHAT | {"stream": True, "stream_options": {"include_obfuscation": True}}, 400, None, "include_obfuscation"),
    (CHATS, CHAT | {"max_completion_tokens": 0}, 400, "max_completion_tokens", "at least 1"),
    (CHATS, CHAT | {"max_completion_tokens": 600}, 400, "max_completion_tokens", "512"),
    (CHATS, CHAT | {"top_logprobs": 2}, 400, "top_logprobs", "logprobs"),
    (CHATS, CHAT | {"logprobs": 5}, 400, "logprobs", "true or false"),
    (CHATS, CHAT | {"chat_template_kwargs": {"chat_template": "x"}}, 400, "chat_template_kwargs", "cannot set"),
    (CHATS, CHAT | {"best_of": 2}, 400, "best_of", "no field best_of"),
    (CHATS, CHAT | {"cache_salt": "x" * 10_000}, 400, "cache_salt", "at most 256 characters"),
    (CHATS, CHAT | {"stop": ["x"] * 1000}, 400, "stop", "at most 16 strings"),
    (CHATS, {"messages": [{"role": "user", "content": "x" * 100_000}]}, 400, "messages", "100"),
    ("/tokenize", {}, 400, "prompt", "either prompt or messages"),
    ("/detokenize", {"tokens": [99999]}, 400, "tokens", "99999"),
    ("/detokenize", {"tokens": "x"}, 400, "tokens", "a list"),
    ("/v1/rerank", {"input": "x"}, 404, None, "/v1/rerank"),
    ("/health", {}, 405, None, "POST"),
]


@pytest.fixture(scope="module", autouse=True)
def serving_on(server: Running) -> Iterator[None]:
    """After all of it the server answers and holds nothing."""
    yield
    assert server.http.get("/health").status_code == 200
    assert server.post(COMPLETIONS, PROMPT).status_code == 200
    server.wait_until_idle()


def check_error(response: Any, status: int, param: str | None, phrase: str) -> None:
    assert response.status_code == status, response.text[:300]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert phrase in error["message"]
    assert len(error["message"]) < 400
    assert "\n" not in error["message"]
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize(("path", "body", "status", "param", "phrase"), CASES, ids=range(len(CASES)))
def test_refused_in_one_sentence(
    server: Running, path: str, body: Any, status: int, param: str | None, phrase: str
) -> None:
    response = server.post(path, body)
    if status == 200:
        assert response.status_code == 200
    else:
        check_error(response, status, param, phrase)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"prompt": "x"',
        b'{"prompt": NaN}',
        b"\xff\xfe",
        b'{"prompt": "\\ud800"}',
        b"[" * 100_000,
        b'{"prompt": "x"} trailing',
    ],
)
def test_what_is_not_json(server: Running, body: bytes) -> None:
    check_error(server.http.post(COMPLETIONS, content=body), 400, None, "not valid JSON")


ENDPOINTS: list[tuple[str, Any, dict[str, Any], type[Body]]] = [
    (CHATS, OpenAI(api_key="x").chat.completions.create, CHAT, ChatRequest),
    (COMPLETIONS, OpenAI(api_key="x").completions.create, PROMPT, CompletionRequest),
    ("/v1/embeddings", OpenAI(api_key="x").embeddings.create, {"input": "x"}, EmbeddingRequest),
    ("/v1/responses", OpenAI(api_key="x").responses.create, {"input": "x"}, ResponsesRequest),
]


@pytest.mark.parametrize(("path", "call", "body", "model"), ENDPOINTS)
def test_every_parameter_of_the_client_is_served_or_refused(
    server: Running, path: str, call: Any, body: dict[str, Any], model: type[Body]
) -> None:
    """Nothing that the official client can ask for is ignored; what asks for nothing is let through."""
    own = {"extra_headers", "extra_query", "extra_body", "timeout"}
    for name in set(inspect.signature(call).parameters) - own - set(model.model_fields):
        check_error(server.post(path, body | {name: {"x": 1}}), 400, name, "not supported")
        for neutral in UNSUPPORTED[name]:
            short = {} if path == "/v1/embeddings" else {"max_output_tokens" if "resp" in path else "max_tokens": 1}
            assert server.post(path, body | short | {name: neutral}).status_code == 200


def test_neutral_fields_are_accepted(server: Running) -> None:
    neutral = {
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "temperature": None,
        "stop": None,
        "stream_options": None,
        "response_format": {"type": "text"},
    }
    assert server.post(CHATS, CHAT | neutral | {"max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("depth", [*range(860, 1000, 20), 100_000])
@pytest.mark.parametrize("closed", [False, True])
def test_arguments_of_an_earlier_call_may_be_nested_however_deeply(server: Running, depth: int, closed: bool) -> None:
    arguments = "[" * depth + "]" * (depth * closed)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [*CHAT["messages"], {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert server.post(CHATS, {"messages": messages, "max_tokens": 1}).status_code in (200, 400)
    item = {"type": "function_call", "call_id": "1", "name": "f", "arguments": arguments}
    asked = {"input": [{"role": "user", "content": "Hi"}, item], "max_output_tokens": 16}
    assert server.post("/v1/responses", asked).status_code in (200, 400)


def test_a_body_without_end_is_refused(server: Running) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(12):
            yield b"x" * 2**20
        yield b'"}'

    check_error(server.http.post(COMPLETIONS, content=chunks()), 413, None, "8 MiB")
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    *("model", "n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "stop"),
    *("frequency_penalty", "logit_bias", "seed", "stop_token_ids", "min_tokens", "prompt_logprobs", "stream"),
    *("response_format", "structured_outputs", "cache_salt", "stream_options", "prompt", "max_tokens", "best_of"),
    *("echo", "logprobs", "messages", "top_logprobs", "chat_template_kwargs", "ignore_eos", "tools"),
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from([COMPLETIONS, CHATS, "/tokenize", "/detokenize"]),
    body=st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, max_size=3),
)
def test_no_body_makes_the_server_fail(server: Running, path: str, body: dict[str, Any]) -> None:
    base = {COMPLETIONS: PROMPT | {"max_tokens": 2}, CHATS: CHAT | {"max_tokens": 2}}.get(path, PROMPT)
    response = server.http.post(path, content=json.dumps(base | body))
    if response.headers["content-type"].startswith("application/json") and response.status_code != 200:
        check_error(response, response.status_code, None, "")
    assert response.status_code in (200, 400, 404), response.text
