"""`/v1/completions` through the openai client, against the same model in process."""

import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from headstart import LLM, SamplingParams
from headstart.engine.outputs import RequestOutput
from tests.server.harness import Running

PROMPTS = ["Once upon a time", "The dog", "Lily wanted to", "It was a sunny day é☃ and", "x"]


def create(server: Running, **body: Any) -> Any:
    return server.openai.completions.create(model="stories", **body)


def in_process(llm: LLM, prompt: Any, **params: Any) -> RequestOutput:
    return llm.generate([prompt], SamplingParams(**params))[0]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_same_answer_as_in_process_whole_and_streamed(server: Running, llm: LLM, prompt: str) -> None:
    expected = in_process(llm, prompt, temperature=0, max_tokens=60)
    asked: dict[str, Any] = {"prompt": prompt, "temperature": 0, "max_tokens": 60}
    whole = create(server, **asked)
    assert whole.choices[0].text == expected.outputs[0].text
    assert whole.choices[0].finish_reason == expected.outputs[0].finish_reason
    assert whole.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert whole.usage.completion_tokens == len(expected.outputs[0].token_ids)
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.usage.exact is True
    assert whole.usage.queue_time >= 0
    chunks = list(create(server, **asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert all(c.usage is None for c in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    ids = create(server, **asked | {"prompt": expected.prompt_token_ids})
    assert ids.choices[0].text == whole.choices[0].text


def test_several_prompts_and_outputs_keep_their_order(server: Running, llm: LLM) -> None:
    for prompts in (PROMPTS, [in_process(llm, p, max_tokens=1).prompt_token_ids for p in PROMPTS]):
        asked: dict[str, Any] = {"prompt": prompts, "temperature": 0, "max_tokens": 20, "n": 2}
        whole = create(server, **asked)
        expected = [in_process(llm, p, temperature=0, max_tokens=20).outputs[0].text for p in PROMPTS]
        assert [c.index for c in whole.choices] == list(range(2 * len(PROMPTS)))
        assert [c.text for c in whole.choices] == [text for text in expected for _ in range(2)]
        streamed = [""] * len(whole.choices)
        for chunk in create(server, **asked, stream=True):
            streamed[chunk.choices[0].index] += chunk.choices[0].text
        assert streamed == [c.text for c in whole.choices]


def test_many_at_once_answer_as_each_alone(server: Running, llm: LLM) -> None:
    rng = np.random.default_rng(0)
    requests = [
        {
            "prompt": [1, *rng.integers(3, 512, rng.integers(1, 200)).tolist()],
            "max_tokens": int(rng.integers(1, 40)),
            "temperature": float(rng.choice([0.0, 0.8])),
            "seed": seed,
            "stream": bool(rng.integers(2)),
        }
        for seed in range(32)
    ]

    def ask(request: dict[str, Any]) -> str:
        answer = create(server, **request)
        if request["stream"]:
            return "".join(chunk.choices[0].text for chunk in answer)
        return answer.choices[0].text

    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(ask, requests))
    for request, text in zip(requests, texts, strict=True):
        params = {key: request[key] for key in ("max_tokens", "temperature", "seed")}
        prompt = {"prompt_token_ids": request["prompt"]}
        assert text == in_process(llm, prompt, **params).outputs[0].text
    server.wait_until_idle()


def test_long_greedy_answers_over_http_are_those_in_process_token_for_token(server: Running, llm: LLM) -> None:
    """Asked all at once, so that they share steps; in process one after another."""
    rng = np.random.default_rng(4)
    words = ("Lily", "the", "dog", "ran to", "a big", "red box", "and saw", "Tim,", "who was", "very happy.", "One day")
    prompts = [*PROMPTS, *(" ".join(rng.choice(words, rng.integers(1, 60))) for _ in range(8))]
    together = Barrier(len(prompts))

    def ask(prompt: str) -> Any:
        together.wait(timeout=60)
        more = {"ignore_eos": True}
        return create(server, prompt=prompt, temperature=0, max_tokens=100, logprobs=0, extra_body=more)

    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(ask, prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        asked = {"temperature": 0, "max_tokens": 100, "logprobs": 0, "ignore_eos": True}
        expected = in_process(llm, prompt, **asked).outputs[0]
        found = answer.choices[0]
        assert found.text == expected.text
        assert answer.usage.completion_tokens == len(expected.token_ids) == 100
        chosen = [entry[i].logprob for entry, i in zip(expected.logprobs or [], expected.token_ids, strict=True)]
        np.testing.assert_allclose(found.logprobs.token_logprobs, chosen, atol=1e-3)
    server.wait_until_idle()


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(server: Running, llm: LLM, stream: bool) -> None:
    expected = in_process(llm, PROMPTS[3], temperature=0, max_tokens=30, logprobs=3).outputs[0]
    answer = create(server, prompt=PROMPTS[3], temperature=0, max_tokens=30, logprobs=3, stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
    parts = [choice.logprobs for choice in choices if choice.logprobs]
    tokens = [token for part in parts for token in part.tokens]
    offsets = [offset for part in parts for offset in part.text_offset]
    text = "".join(choice.text for choice in choices)
    assert "".join(tokens) == text == expected.text
    assert offsets == [len("".join(tokens[:i])) for i in range(len(tokens))]
    found = [value for part in parts for value in part.token_logprobs]
    chosen = [entry[i].logprob for entry, i in zip(expected.logprobs or [], expected.token_ids, strict=True)]
    np.testing.assert_allclose(found, chosen, atol=1e-4)
    for token, top, value in zip(tokens, [t for part in parts for t in part.top_logprobs], found, strict=True):
        assert top[token] == value == max(top.values())
        assert len(top) <= 4


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs_scores_the_prompt(server: Running, llm: LLM, stream: bool) -> None:
    expected = in_process(llm, PROMPTS[0], temperature=0, max_tokens=1, prompt_logprobs=1)
    asked: dict[str, Any] = {"prompt": PROMPTS[0], "temperature": 0, "logprobs": 1, "echo": True}
    answer = create(server, **asked, max_tokens=0, stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    assert "".join(choice.text for choice in choices) == PROMPTS[0]
    logprobs = next(choice.logprobs for choice in choices if choice.logprobs)
    assert logprobs.token_logprobs[0] is None
    ids = expected.prompt_token_ids
    scores = [entry[i].logprob for entry, i in zip(expected.prompt_logprobs[1:], ids[1:], strict=True)]
    np.testing.assert_allclose(logprobs.token_logprobs[1:], scores, atol=1e-4)
    if not stream:
        assert answer.usage.completion_tokens == 0
        both = create(server, **asked, max_tokens=5)
        assert both.choices[0].text.startswith(PROMPTS[0])
        assert len(both.choices[0].logprobs.tokens) == len(ids) + both.usage.completion_tokens


def test_prompt_logprobs(server: Running, llm: LLM) -> None:
    expected = in_process(llm, PROMPTS[0], max_tokens=1, prompt_logprobs=2).prompt_logprobs
    found = create(server, prompt=PROMPTS[0], max_tokens=1, extra_body={"prompt_logprobs": 2})
    first, *rest = found.choices[0].prompt_logprobs
    assert first is None
    for entry, reference in zip(rest, expected[1:], strict=True):
        assert {int(token): pytest.approx(v["logprob"], abs=1e-4) for token, v in entry.items()} == {
            token: value.logprob for token, value in reference.items()
        }


def test_sampling_fields_reach_the_engine(server: Running, llm: LLM) -> None:
    sampled = {"temperature": 1.3, "top_p": 0.9, "seed": 7, "max_tokens": 25, "presence_penalty": 0.5}
    more = {"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1, "min_tokens": 20, "stop_token_ids": [410]}
    text = create(server, prompt=PROMPTS[0], **sampled, extra_body=more).choices[0].text
    assert text == in_process(llm, PROMPTS[0], **sampled, **more).outputs[0].text
    forced = create(server, prompt="A", max_tokens=4, logit_bias={"411": 100}, extra_body={"ignore_eos": True})
    assert forced.usage.completion_tokens == 4
    assert forced.choices[0].text == server.post("/detokenize", {"tokens": [411] * 4}).json()["prompt"]
    best = create(server, prompt=PROMPTS[0], n=2, best_of=4, seed=3, max_tokens=10)
    expected = in_process(llm, PROMPTS[0], n=2, best_of=4, seed=3, max_tokens=10)
    assert [choice.text for choice in best.choices] == [output.text for output in expected.outputs]


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(server: Running, llm: LLM, stream: bool) -> None:
    free = in_process(llm, PROMPTS[0], temperature=0, max_tokens=60).outputs[0].text
    stop = free[20:24]
    answer = create(server, prompt=PROMPTS[0], temperature=0, max_tokens=60, stop=["\0", stop], stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    assert "".join(choice.text for choice in choices) == free[: free.index(stop)]
    assert choices[-1].finish_reason == "stop"
    assert choices[-1].stop_reason == stop


def test_max_tokens_left_out_is_sixteen_or_what_there_is_room_for(server: Running) -> None:
    assert create(server, prompt=PROMPTS[0], extra_body={"ignore_eos": True}).usage.completion_tokens == 16
    nearly_full = create(server, prompt=[1] * 505, extra_body={"ignore_eos": True})
    assert nearly_full.usage.total_tokens == 512


def test_cached_tokens_are_reported_and_a_salt_keeps_them_apart(server: Running) -> None:
    prompt = [1, *np.random.default_rng(99).integers(3, 512, 200).tolist()]

    def cached(**more: Any) -> int:
        answer = create(server, prompt=prompt, max_tokens=1, extra_body=more)
        return answer.usage.prompt_tokens_details.cached_tokens

    assert cached() == 0
    assert cached() >= 180
    assert cached(cache_salt="tenant") == 0
    assert cached(cache_salt="tenant") >= 180


def test_events_are_what_the_protocol_says(server: Running) -> None:
    body = {"prompt": "Hi", "max_tokens": 3, "stream": True}
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    for line in lines[:-1]:
        assert json.loads(line.removeprefix("data: "))["object"] == "text_completion"


def test_tokenize_and_back(server: Running, llm: LLM) -> None:
    for prompt in [*PROMPTS, "", "long " * 3000]:
        found = server.post("/tokenize", {"prompt": prompt}).json()
        assert found["tokens"] == llm.tokenizer.encode(prompt)
        assert found["count"] == len(found["tokens"])
        assert found["max_model_len"] == 512
        assert server.post("/detokenize", {"tokens": found["tokens"]}).json()["prompt"] == prompt


def test_models(server: Running) -> None:
    assert [model.id for model in server.openai.models.list()] == ["stories"]
    assert server.openai.models.retrieve("stories").id == "stories"
    assert server.http.get("/v1/models/nobody").status_code == 404
