"""A fuzzer on request bodies: whatever comes, the server answers with 200 or one sentence, soon, and serves on.

`HEADSTART_FUZZ_CASES=20000 pytest tests/server/test_fuzz.py` runs as many cases, `HEADSTART_FUZZ_SEED` others.
"""

import contextlib
import copy
import json
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.harness import Running, running
from tests.server.scripted import scripted_model

CASES = int(os.environ.get("HEADSTART_FUZZ_CASES", "400"))
SEED = int(os.environ.get("HEADSTART_FUZZ_SEED", "0"))
THREADS = 4

SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "array", "items": {"$ref": "#/$defs/x"}, "maxItems": 3},
        "b": {"anyOf": [{"type": "integer", "minimum": -5, "maximum": 5}, {"type": "string", "pattern": "^a+b?$"}]},
        "c": {"enum": [1, "x", None, True]},
    },
    "required": ["a"],
    "additionalProperties": False,
    "$defs": {"x": {"type": "number", "multipleOf": 0.5}},
}
TOOL = {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "seed": 3, "user": "u", "metadata": {"k": "v"}}
SEEDS: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/completions",
        {"prompt": ["Once", "x"], "max_tokens": 4, "n": 2, "best_of": 2, "logprobs": 1, "echo": True, "stop": ["a"]}
        | {"logit_bias": {"5": 1.5}, "stop_token_ids": [7], "prompt_logprobs": 1, "cache_salt": "s", "top_k": 5}
        | SAMPLING,
    ),
    ("/v1/completions", {"prompt": [3, 4, 5], "max_tokens": 4, "structured_outputs": {"regex": "(a|b)+[0-9]{2}"}}),
    ("/v1/completions", {"prompt": "x", "max_tokens": 4, "structured_outputs": {"grammar": 'start: "a"+ /b*/'}}),
    (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "t"}], "name": "n"},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "1", "content": "3"},
            ],
            "tools": [{"type": "function", "function": TOOL}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "parallel_tool_calls": False,
            "max_completion_tokens": 8,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ),
    (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "t"}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
            "logprobs": True,
            "top_logprobs": 2,
            "max_tokens": 8,
            "chat_template_kwargs": {"x": 1},
        }
        | SAMPLING,
    ),
    (
        "/v1/responses",
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "t"}]},
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "3"},
            ],
            "instructions": "i",
            "tools": [{"type": "function", **TOOL}],
            "tool_choice": "required",
            "include": ["message.output_text.logprobs"],
            "top_logprobs": 1,
            "max_output_tokens": 8,
            "stream": True,
        },
    ),
    ("/v1/responses", {"input": "t", "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}}),
    ("/v1/embeddings", {"input": ["a", "b"], "dimensions": 4, "encoding_format": "base64", "pooling": "mean"}),
    ("/tokenize", {"messages": [{"role": "user", "content": "t"}], "add_generation_prompt": True}),
    ("/detokenize", {"tokens": [5, 6, 7], "skip_special_tokens": False}),
]
WEIRD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, -(2**63), 2**64, 10**400, 0.5, -0.0, 1e308, 1e-320, "", " ", "\x00"),
    *("\u202e", "☃" * 50, "a" * 3000, "null", "[", "<tool_call>", '{"', "\\", "#/$defs/x", "(a*)*b", "(", "[[]", {}),
    *([], [[]], [None], {"": {}}, {"$ref": "#"}, {"type": ["string", 3]}, {"a": {"a": {"a": {}}}}),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all parts of a JSON value below its root."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        if isinstance(part, dict | list):
            yield from places(part, (*path, key))


def mutate(body: Any, rng: random.Random) -> Any:
    """A body with a few parts replaced, removed, moved, nested or renamed."""
    body = copy.deepcopy(body)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        paths = list(places(body))
        if not paths:
            return body
        *way, last = rng.choice(paths)
        parent = body
        for key in way:
            parent = parent[key]
        kind = rng.randrange(7)
        if kind <= 2:
            parent[last] = copy.deepcopy(rng.choice(WEIRD))
        elif kind == 3:
            del parent[last]
        elif kind == 4:
            # Some other part of the body, if an earlier change has left it in place.
            found = body
            with contextlib.suppress(KeyError, IndexError, TypeError):
                for key in rng.choice(paths):
                    found = found[key]
                parent[last] = copy.deepcopy(found)
        elif kind == 5:
            inner = parent[last]
            for _ in range(rng.choice((1, 3, 60))):
                inner = [inner] if rng.random() < 0.5 else {rng.choice(("type", "items", "not", "allOf", "x")): inner}
            parent[last] = inner
        elif isinstance(parent, dict):
            parent[rng.choice(("model", "type", "n", "x", "$ref", "stream", "", "top_k"))] = parent.pop(last)
        else:
            parent += parent * 5
    return body


def garble(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut out or doubled."""
    for _ in range(rng.choice((1, 2, 8))):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((1, 1, 3, 40)))
        middle = rng.choice((b"", data[start:end] * 3, rng.randbytes(end - start), b"\xed\xa0\x80", b"1e999", b"NaN"))
        data = data[:start] + middle + data[end:]
    return data


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    # A short model, so that the longest answers are short.
    engine, _ = scripted_model(tmp_path_factory.mktemp("models") / "scripted", "hermes", longest=640)
    with running(engine) as server:
        yield server


@pytest.mark.timeout(36_000)
def test_no_body_breaks_the_server(server: Running) -> None:
    for path, body in SEEDS:
        assert server.post(path, body).status_code == 200, (path, server.post(path, body).text)
    seen: Counter[int] = Counter()
    failures: list[str] = []

    def work(number: int) -> None:
        rng = random.Random(f"{SEED} {number}")
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for _ in range(CASES // THREADS):
                path, body = rng.choice(SEEDS)
                content = json.dumps(mutate(body, rng)).encode()
                if rng.random() < 0.2:
                    content = garble(content, rng)
                try:
                    problem = trouble(client.post(path, content=content), seen)
                except httpx.HTTPError as error:
                    problem = repr(error)
                if problem is not None:
                    failures.append(f"{problem} from {path} for {content[:3000]!r}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, "\n".join(failures[:5])
    # The bodies are neither all good nor all hopeless.
    assert min(seen[200], seen[400]) > CASES // 20, seen
    server.wait_until_idle()
    for path, body in SEEDS:
        assert server.post(path, body).status_code == 200


def trouble(response: httpx.Response, seen: Counter[int]) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    seen[response.status_code] += 1
    if response.status_code == 200:
        failed = response.headers["content-type"].startswith("text/event-stream") and '"error":{' in response.text
        return response.text[-300:] if failed else None
    if response.status_code not in (400, 404):
        return f"{response.status_code} {response.text[:300]}"
    error = response.json()["error"]
    sentence = len(error["message"]) < 500 and "\n" not in error["message"] and "Traceback" not in error["message"]
    return None if sentence and set(error) == {"message", "type", "param", "code"} else str(error)
