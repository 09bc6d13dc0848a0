"""A script of every supported call, through OpenAI's clients for Python and for Node.

The Node client is not installed with the tests: `npm install --prefix DIR openai`, then
`HEADSTART_NODE_MODULES=DIR/node_modules pytest tests/server/test_openai_client.py`.
"""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI, pydantic_function_tool
from pydantic import BaseModel

from tests.server.harness import Running, running
from tests.server.scripted import Script, scripted_model

MESSAGES: list[Any] = [{"role": "user", "content": "What is 1 + 2?"}]


class Sum(BaseModel):
    big: bool


@pytest.fixture(scope="module", params=["hermes", "llama3"])
def scripted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Running, Script]]:
    engine, script = scripted_model(tmp_path_factory.mktemp("models") / "scripted", request.param)
    with running(engine, api_keys=["key"]) as server:
        yield server, script
        server.wait_until_idle()


@pytest.fixture
def server(scripted: tuple[Running, Script]) -> Running:
    """A server whose model says what it likes, unless a test tells it."""
    scripted[1].lines = ()
    return scripted[0]


def test_models(server: Running) -> None:
    (model,) = server.openai.models.list().data
    assert server.openai.models.retrieve(model.id) == model
    with pytest.raises(openai.NotFoundError):
        server.openai.models.retrieve("other")
    with pytest.raises(openai.AuthenticationError):
        OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()


def test_completions(server: Running) -> None:
    asked: dict[str, Any] = {
        "model": "scripted",
        "prompt": ["Once", "Twice"],
        "max_tokens": 12,
        "temperature": 0.8,
        "top_p": 0.9,
        "n": 2,
        "seed": 7,
        "stop": ["zzz"],
        "logit_bias": {"40": -100},
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "user": "me",
        "extra_body": {"top_k": 50, "min_p": 0.01, "cache_salt": "a", "priority": 0},
    }
    whole = server.openai.completions.create(**asked, best_of=3, logprobs=2, echo=True)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert whole.choices[0].text.startswith("Once")
    answer = server.openai.completions.create(**asked)
    texts = [""] * 4
    usage = None
    for chunk in server.openai.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in answer.choices]
    assert usage is not None
    assert usage.completion_tokens == answer.usage.completion_tokens


def test_usage_tells_times_cache_and_exactness(server: Running) -> None:
    ask: Any = {"model": "scripted", "messages": [{"role": "user", "content": "cats and dogs " * 9}], "max_tokens": 8}
    raw = server.openai.chat.completions.with_raw_response.create(**ask)
    assert raw.status_code == 200
    again = server.openai.chat.completions.create(**ask).usage
    assert again.prompt_tokens_details.cached_tokens > 0
    extra = again.model_extra
    assert extra["exact"] is False  # the test's script changes what the model says
    assert extra["queue_time"] >= 0
    assert extra["prefill_time"] > 0
    assert extra["decode_time"] >= 0
    ask["extra_body"] = {"cache_salt": "another"}
    assert server.openai.chat.completions.create(**ask).usage.prompt_tokens_details.cached_tokens == 0


def test_chat(server: Running, scripted: tuple[Running, Script]) -> None:
    scripted[1].lines = ("One answer.", "Another.")
    asked: Any = {"model": "scripted", "messages": MESSAGES, "max_completion_tokens": 20, "seed": 3, "n": 2}
    whole = server.openai.chat.completions.create(**asked, logprobs=True, top_logprobs=3, metadata={"a": "b"})
    assert all(choice.logprobs and choice.logprobs.content for choice in whole.choices)
    with server.openai.chat.completions.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    assert [c.message.content for c in final.choices] == [c.message.content for c in whole.choices]
    scripted[1].lines = ()
    parsed = server.openai.chat.completions.parse(
        model="scripted", messages=MESSAGES, max_tokens=60, response_format=Sum
    )
    assert isinstance(parsed.choices[0].message.parsed, Sum)
    free = server.openai.chat.completions.create(
        model="scripted",
        messages=MESSAGES,
        max_tokens=400,
        logit_bias={"95": 20},
        response_format={"type": "json_object"},
    )
    if free.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(free.choices[0].message.content or ""), dict)


def test_tools(server: Running) -> None:
    asked: Any = {
        "model": "scripted",
        "messages": MESSAGES,
        "tools": [pydantic_function_tool(Sum)],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tokens": 300,
        "seed": 5,
    }
    (call,) = server.openai.chat.completions.parse(**asked).choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Sum)
    with server.openai.chat.completions.stream(**asked) as stream:
        message = stream.get_final_completion().choices[0].message
    assert (message.tool_calls or [])[0].function.arguments == call.function.arguments
    turns = [*MESSAGES, message.model_dump(exclude={"parsed"}), {"role": "tool", "tool_call_id": "x", "content": "3"}]
    for sent in turns[1]["tool_calls"]:
        sent["function"].pop("parsed_arguments", None)
        sent.pop("index", None)
    asked |= {"messages": turns, "tool_choice": "none"}
    assert server.openai.chat.completions.create(**asked).choices[0].message.tool_calls is None


def test_responses(server: Running, scripted: tuple[Running, Script]) -> None:
    scripted[1].lines = ("It is three.",)
    asked: Any = {"model": "scripted", "input": "1 + 2?", "max_output_tokens": 30, "temperature": 0}
    whole = server.openai.responses.create(**asked)
    with server.openai.responses.stream(**asked) as stream:
        assert stream.get_final_response().output_text == whole.output_text
    scripted[1].lines = ()
    parsed = server.openai.responses.parse(**(asked | {"max_output_tokens": 60}), text_format=Sum)
    assert isinstance(parsed.output_parsed, Sum)
    with pytest.raises(openai.NotFoundError):
        server.openai.responses.retrieve(whole.id)
    with pytest.raises(openai.BadRequestError) as caught:
        server.openai.responses.create(**asked, previous_response_id=whole.id)
    assert caught.value.param == "previous_response_id"


def test_embeddings(server: Running) -> None:
    found = server.openai.embeddings.create(model="scripted", input=["a", "b"], dimensions=4, user="me")
    assert [len(item.embedding) for item in found.data] == [4, 4]


def test_the_asynchronous_client(server: Running) -> None:
    async def main() -> None:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="key", max_retries=0) as client:
            asked: Any = {"model": "scripted", "messages": MESSAGES, "max_tokens": 10, "temperature": 0}
            whole, stream, vector = await asyncio.gather(
                client.chat.completions.create(**asked),
                client.chat.completions.create(**asked, stream=True),
                client.embeddings.create(model="scripted", input="a"),
            )
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            assert text == whole.choices[0].message.content
            assert len(vector.data) == 1

    asyncio.run(main())


def test_the_node_client(server: Running) -> None:
    modules = os.environ.get("HEADSTART_NODE_MODULES")
    if modules is None or shutil.which("node") is None:
        pytest.skip("needs node, and HEADSTART_NODE_MODULES with the package openai")
    script = Path(__file__).with_name("openai_client.mjs")
    done = subprocess.run(
        ["node", str(script), server.url, "key"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "ok\n", done.stderr
