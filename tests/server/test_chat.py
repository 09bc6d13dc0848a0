"""`/v1/chat/completions` through the openai client."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, Field

from headstart import LLM, SamplingParams
from tests.server.harness import Running

MESSAGES = [
    {"role": "system", "content": "Tell stories."},
    {"role": "user", "content": "Once upon a time"},
    {"role": "assistant", "content": "there was é☃"},
    {"role": "user", "content": "and then"},
]
RENDERED = "<s>system: Tell stories.\nuser: Once upon a time\nassistant: there was é☃\nuser: and then\nassistant:"


def create(server: Running, messages: Any = MESSAGES, **body: Any) -> Any:
    return server.openai.chat.completions.create(model="stories", messages=messages, **body)


def test_the_template_is_applied_once_and_the_answer_is_the_models(server: Running, llm: LLM) -> None:
    expected = llm.generate(
        [{"prompt_token_ids": llm.tokenizer.encode(RENDERED, add_special_tokens=False)}],
        SamplingParams(temperature=0, max_tokens=40),
    )[0]
    whole = create(server, temperature=0, max_completion_tokens=40)
    assert whole.object == "chat.completion"
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].message.content == expected.outputs[0].text
    assert whole.choices[0].finish_reason == expected.outputs[0].finish_reason
    assert whole.usage.prompt_tokens == len(expected.prompt_token_ids)
    tokens = server.post("/tokenize", {"messages": MESSAGES}).json()["tokens"]
    assert tokens == expected.prompt_token_ids


def test_a_stream_is_the_whole_answer_in_parts(server: Running) -> None:
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 40, "n": 3}
    whole = create(server, **asked)
    chunks = list(create(server, **asked, stream=True, stream_options={"include_usage": True}))
    texts, reasons = ["", "", ""], [None, None, None]
    opened: set[int] = set()
    for chunk in chunks[:-1]:
        assert chunk.object == "chat.completion.chunk"
        (choice,) = chunk.choices
        assert (choice.delta.role == "assistant") == (choice.index not in opened)
        opened.add(choice.index)
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_without_max_tokens_it_goes_on_to_the_models_length(server: Running) -> None:
    answer = create(server, temperature=0, extra_body={"ignore_eos": True})
    assert answer.usage.total_tokens == 512
    assert answer.choices[0].finish_reason == "length"


def test_roles_parts_and_template_arguments(server: Running) -> None:
    def rendered(messages: list[dict[str, Any]], **more: Any) -> str:
        tokens = server.post("/tokenize", {"messages": messages, **more}).json()["tokens"]
        return server.post("/detokenize", {"tokens": tokens}).json()["prompt"]

    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert rendered([{"role": "developer", "content": parts}]) == "system: one\ntwo\nassistant:"
    turn = [{"role": "user", "content": "x"}]
    assert rendered(turn, chat_template_kwargs={"opening": "bot"}) == "user: x\nbot:"
    assert rendered(turn, add_generation_prompt=False) == "user: x\n"
    # As clients send an assistant's message back: with everything the API may return, empty.
    back = {"role": "assistant", "content": "y", "refusal": None, "tool_calls": None, "annotations": []}
    assert rendered([*turn, back]) == "user: x\nassistant: y\nassistant:"


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_carry_the_bytes_of_the_text(server: Running, stream: bool) -> None:
    # These characters are no tokens of the vocabulary, so every token is part of one.
    grammar = {"structured_outputs": {"regex": "[é☃]{4}"}}
    asked: dict[str, Any] = {"max_tokens": 12, "seed": 5, "extra_body": grammar, "logprobs": True, "top_logprobs": 2}
    answer = create(server, **asked, stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    content = [choice.delta.content if stream else choice.message.content for choice in choices]
    entries = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]
    data = b"".join(bytes(entry.bytes) for entry in entries if entry.token != "</s>")
    assert data.decode() == "".join(part or "" for part in content)
    assert len(data.decode()) == 4
    for entry in entries:
        assert len(entry.top_logprobs) == 2
        assert entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob
        assert entry.logprob <= entry.top_logprobs[0].logprob


class Hero(BaseModel):
    name: str = Field(max_length=8)
    age: int = Field(ge=0, le=120)
    friends: list[bool] = Field(max_length=2)


@pytest.mark.parametrize("seed", range(6))
def test_structured_output_is_valid_whatever_the_model_would_say(server: Running, seed: int) -> None:
    parsed = server.openai.chat.completions.parse(
        model="stories", messages=MESSAGES[:2], response_format=Hero, seed=seed, temperature=1.5, max_tokens=200
    )
    assert isinstance(parsed.choices[0].message.parsed, Hero)
    assert parsed.choices[0].finish_reason == "stop"
    expression = {"structured_outputs": {"regex": r"(yes|no)!{1,3}"}}
    text = create(server, MESSAGES[:2], seed=seed, max_tokens=20, extra_body=expression).choices[0].message.content
    assert text.rstrip("!") in ("yes", "no")


def test_json_objects_streamed(server: Running) -> None:
    for seed in range(2):
        stream = create(
            server,
            MESSAGES[:2],
            seed=seed,
            max_tokens=120,
            logit_bias={"128": 5},  # "}"
            response_format={"type": "json_object"},
            stream=True,
        )
        chunks = [chunk.choices[0] for chunk in stream]
        if chunks[-1].finish_reason == "stop":
            assert isinstance(json.loads("".join(chunk.delta.content or "" for chunk in chunks)), dict)


def test_a_later_turn_finds_the_earlier_ones_in_the_cache(server: Running) -> None:
    messages = [{"role": "user", "content": "A very long story about " + "cats and dogs " * 15}]
    first = create(server, messages, max_tokens=16, temperature=0)
    said = first.choices[0].message
    again = [*messages, said.model_dump(), {"role": "user", "content": "go on"}]
    second = create(server, again, max_tokens=1)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens - 16
