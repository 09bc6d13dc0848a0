"""`/v1/responses` through the openai client: text, calls, formats, events."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from tests.server.harness import Running, running
from tests.server.scripted import Script, scripted_model
from tests.server.test_tools import ADD, written

TOOLS: list[Any] = [{"type": "function", "name": "add", "description": "Adds.", "parameters": ADD, "strict": False}]
CALL = written("hermes", ("add", '{"a": 1, "b": 2}'))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Script]]:
    engine, script = scripted_model(tmp_path_factory.mktemp("models") / "scripted", "hermes")
    with running(engine) as server:
        yield server, script
        server.wait_until_idle()


def create(server: Running, **body: Any) -> Any:
    return server.openai.responses.create(
        **({"model": "scripted", "input": "What is 1 + 2?", "temperature": 0, "max_output_tokens": 200} | body)
    )


def content_of(response: Response) -> list[Any]:
    """What a response says, without names and times."""
    items: list[Any] = []
    for item in response.output:
        if item.type == "message":
            items.append((item.status, [part.model_dump(exclude_none=True) for part in item.content]))
        elif item.type == "function_call":
            items.append((item.status, item.name, item.arguments))
    return items


@pytest.mark.parametrize("stream", [False, True])
def test_text_calls_and_text_again_come_as_items(model: tuple[Running, Script], stream: bool) -> None:
    server, script = model
    script.lines = (f"I add.\n{CALL} so ☃",)
    body: dict[str, Any] = {"tools": TOOLS, "instructions": "Be brief.", "metadata": {"a": "b"}, "user": "me"}
    answer = last_of(create(server, **body, stream=True)) if stream else create(server, **body)
    assert answer.status == "completed"
    assert answer.output_text == "I add. so ☃"
    assert [item[0] for item in content_of(answer)] == ["completed"] * 3
    assert content_of(answer)[1][1:] == ("add", '{"a": 1, "b": 2}')
    assert answer.instructions == "Be brief."
    assert answer.metadata == {"a": "b"}
    assert answer.tools[0].name == "add"
    chat = server.post(
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What is 1 + 2?"},
            ],
            "tools": [{"type": "function", "function": {k: v for k, v in TOOLS[0].items() if k != "type"}}],
            "temperature": 0,
        },
    ).json()
    assert answer.usage.input_tokens == chat["usage"]["prompt_tokens"]
    assert answer.usage.output_tokens == chat["usage"]["completion_tokens"]
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def last_of(stream: Any) -> Response:
    """The response at the end of a stream, having checked that its events tell the same in order."""
    events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    texts: dict[str, str] = {}
    ended = []
    opened = None
    for event in events[2:-1]:
        if event.type == "response.output_item.added":
            assert opened is None
            opened = event.item.id
            assert event.item.status == "in_progress"
            texts[opened] = ""
        elif event.type == "response.output_item.done":
            assert event.item.id == opened
            opened = None
            ended.append(event.item)
        else:
            assert event.item_id == opened
            assert event.output_index == len(ended)
            if event.type.endswith(".delta"):
                texts[opened] += event.delta
            elif event.type == "response.output_text.done":
                assert event.text == texts[opened]
            elif event.type == "response.function_call_arguments.done":
                assert event.arguments == texts[opened]
    response = events[-1].response
    assert events[-1].type == f"response.{response.status}"
    assert [item.to_dict() for item in response.output] == [item.to_dict() for item in ended]
    return response


def test_a_conversation_with_a_call_goes_on(model: tuple[Running, Script]) -> None:
    """The items of one response are the input of the next, and make the prompt that the same chat has."""
    server, script = model
    script.lines = (f"I add.\n{CALL}",)
    first = create(server, tools=TOOLS)
    script.lines = ("Three.",)
    given = [{"role": "user", "content": "What is 1 + 2?"}, *(item.to_dict() for item in first.output)]
    call = first.output[1]
    given.append({"type": "function_call_output", "call_id": call.call_id, "output": "3"})
    second = create(server, input=given, tools=TOOLS)
    assert second.output_text == "Three."
    function = {"name": "add", "arguments": call.arguments}
    messages = [
        {"role": "user", "content": "What is 1 + 2?"},
        {
            "role": "assistant",
            "content": "I add.",
            "tool_calls": [{"id": call.call_id, "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": call.call_id, "content": "3"},
    ]
    tools = [{"type": "function", "function": {k: v for k, v in TOOLS[0].items() if k != "type"}}]
    tokens = server.post("/tokenize", {"messages": messages, "tools": tools}).json()
    assert second.usage.input_tokens == tokens["count"]
    assert second.usage.input_tokens_details.cached_tokens > 0


def test_the_length_ends_it_incomplete(model: tuple[Running, Script]) -> None:
    server, script = model
    script.lines = ("A long story without end",)
    for answer in (create(server, max_output_tokens=6), last_of(create(server, max_output_tokens=6, stream=True))):
        assert answer.status == "incomplete"
        assert answer.incomplete_details.reason == "max_output_tokens"
        assert answer.output_text == "A long"
        assert answer.output[0].status == "incomplete"
    script.lines = ("",)
    for answer in (create(server), last_of(create(server, stream=True))):
        assert answer.status == "completed"
        assert answer.output_text == ""


class Hero(BaseModel):
    happy: bool


def test_formats_and_log_probabilities(model: tuple[Running, Script]) -> None:
    server, script = model
    script.lines = ()
    asked: Any = {"model": "scripted", "input": [{"role": "developer", "content": "x"}], "max_output_tokens": 60}
    parsed = server.openai.responses.parse(**asked, text_format=Hero)
    assert isinstance(parsed.output_parsed, Hero)
    with server.openai.responses.stream(**asked, text_format=Hero) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Hero)
    script.lines = ("é!",)
    with_logprobs: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    for answer in (create(server, **with_logprobs), last_of(create(server, **with_logprobs, stream=True))):
        entries = answer.output[0].content[0].logprobs
        assert b"".join(bytes(entry.bytes) for entry in entries if entry.token != "</s>").decode() == "é!"
        assert all(len(entry.top_logprobs) == 2 for entry in entries)


@pytest.mark.parametrize(
    ("body", "param", "phrase"),
    [
        ({}, "input", "required"),
        ({"input": 3}, "input", "a string or a list of items"),
        ({"input": []}, "input", "at least 1"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "'item_reference'"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
            "input_image",
        ),
        ({"input": [{"role": "user"}]}, "input[0].content", "required"),
        ({"input": [{"type": "function_call", "name": "x", "arguments": ""}]}, "input[0].call_id", "required"),
        ({"input": [{"role": "user", "content": "x", "output": "y"}]}, "input[0].output", "not a field"),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id", "not supported"),
        ({"input": "x", "store": True}, "store", "not supported"),
        ({"input": "x", "background": True}, "background", "not supported"),
        ({"input": "x", "truncation": "auto"}, "truncation", "not supported"),
        ({"input": "x", "reasoning": {"effort": "low"}}, "reasoning", "not supported"),
        ({"input": "x", "include": ["file_search_call.results"]}, "include[0]", "message.output_text.logprobs"),
        ({"input": "x", "text": {"verbosity": "low"}}, "text.verbosity", "not supported"),
        ({"input": "x", "text": {"format": {"type": "json_schema"}}}, "text.format.schema", "json_schema"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type", "'web_search'"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice", "no tools"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens", "at least 1"),
        ({"input": "x", "max_output_tokens": 5000}, "max_output_tokens", "max_output_tokens asks for 5000"),
        ({"input": "x" * 9000}, "input", "4096"),
        ({"input": "x" * 100_000}, "input", "100"),
        ({"input": "x", "temperature": -1}, "temperature", "at least 0"),
        ({"input": "x", "text": {"format": {"type": "json_schema", "schema": {"type": "foo"}}}}, "text.format", "foo"),
        ({"input": "x", "max_tokens": 5}, "max_tokens", "no field max_tokens"),
        ({"input": "x", "model": "gpt-4"}, "model", "'scripted'"),
    ],
)
def test_refusals_name_the_field(model: tuple[Running, Script], body: Any, param: str, phrase: str) -> None:
    for stream in (False, True):
        response = model[0].post("/v1/responses", body | {"stream": stream})
        assert response.status_code == (404 if param == "model" else 400), response.text
        error = response.json()["error"]
        assert error["param"] == param, error
        assert phrase in error["message"]


def test_neutral_fields_are_accepted_and_events_are_named(model: tuple[Running, Script]) -> None:
    server, script = model
    script.lines = ("Hi.",)
    neutral = {
        "background": False,
        "conversation": None,
        "include": [],
        "previous_response_id": None,
        "prompt_cache_key": "k",
        "reasoning": {"effort": None},
        "safety_identifier": "s",
        "service_tier": "auto",
        "store": False,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "truncation": "disabled",
    }
    text = server.post("/v1/responses", {"input": "x", "stream": True} | neutral).text
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    for name, data in blocks:
        assert name.removeprefix("event: ") == json.loads(data.removeprefix("data: "))["type"]
    assert blocks[-1][0] == "event: response.completed"
