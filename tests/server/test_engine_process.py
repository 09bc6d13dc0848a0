"""A server whose engine has a process of its own: the same answers, and what its clients see when that process dies."""

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from headstart import LLM, SamplingParams
from headstart.engine.grammar import COMPILE_SECONDS, GrammarCompiler
from headstart.engine.process import ProcessEngine
from tests.server.harness import Running, running

LONG: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 480, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[Running]:
    engine = ProcessEngine.from_model(str(checkpoint), dtype="float32")
    with running(engine) as server:  # type: ignore[arg-type]
        yield server
        server.wait_until_idle()


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_everything_is_told_before_the_first_request(server: Running) -> None:
    assert 'headstart:engine_steps_total{model_name="stories"} 0.0' in server.http.get("/metrics").text
    assert server.http.get("/health").json() == {"status": "ok"}


def test_the_same_answers_as_in_process(server: Running, llm: LLM) -> None:
    prompts = ["Once upon a time", "The dog", "Lily wanted to"]
    want = [output.outputs[0].text for output in llm.generate(prompts, SamplingParams(temperature=0))]
    for stream in (False, True):
        for prompt, text in zip(prompts, want, strict=True):
            body = {"prompt": prompt, "max_tokens": 16, "temperature": 0, "stream": stream}
            response = server.post("/v1/completions", body)
            if stream:
                events = [line.removeprefix("data: ") for line in response.text.splitlines() if line][:-1]
                assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == text
            else:
                assert response.json()["choices"][0]["text"] == text
    prompt = [1, *range(300, 340)]
    for cached in (0, 32):
        usage = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 1}).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == cached
        assert usage["prompt_tokens"] == len(prompt)


def test_streams_are_told_when_the_engine_is_killed_and_it_comes_back(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[list[str]] = []
    whole: list[httpx.Response] = []

    def read() -> None:
        with server.http.stream("POST", "/v1/completions", json=LONG) as response:
            ends.append([line for line in response.iter_lines() if line])

    threads = [threading.Thread(target=read) for _ in range(8)]
    threads += [
        threading.Thread(target=lambda: whole.append(server.post("/v1/completions", LONG | {"stream": False})))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    until(lambda: server.engine.stats().num_running == 12)
    assert isinstance(server.engine, ProcessEngine)
    start_again, looked = server.engine._start_again, threading.Event()
    monkeypatch.setattr(server.engine, "_start_again", lambda: looked.wait(60) and start_again())
    pid = server.engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join(60)
    for lines in ends:
        assert lines[-1] == "data: [DONE]"
        error = json.loads(lines[-2].removeprefix("data: "))["error"]
        assert error["type"] == "service_unavailable" and error["code"] == "engine_dead"
    assert len(ends) == 8 and len(whole) == 4
    for response in whole:
        assert response.status_code == 503 and response.headers["retry-after"]
        assert response.json()["error"]["code"] in ("engine_dead", "engine_restarting")
    health = server.http.get("/health")
    assert health.status_code == 503 and health.json() == {"status": "restarting"}
    assert server.post("/v1/completions", {"prompt": "x"}).json()["error"]["code"] == "engine_restarting"
    looked.set()
    until(lambda: server.http.get("/health").status_code == 200)
    assert server.http.get("/health_generate").json() == {"status": "ok"}
    assert server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 2}).status_code == 200
    assert 'headstart:engine_restarts_total{model_name="stories"} 1.0' in server.http.get("/metrics").text


class Impatient:
    """Becomes, on its way to the engine's process, a compiler of grammars that waits for a hundredth of a second."""

    def __init__(self, llm: LLM, seconds: float = 0.01) -> None:
        engine = llm.engine
        self._made = (llm.tokenizer.inner, engine.eos_ids, engine.vocab_size, seconds)

    def __reduce__(self) -> tuple[Any, ...]:
        return GrammarCompiler, self._made


def test_a_grammar_that_takes_too_long_is_refused_and_holds_nobody_up(server: Running, llm: LLM) -> None:
    """The limit is per grammar; while it compiles, others are answered."""
    asyncio.run(server.engine.call("preparation.__setattr__", "grammars", Impatient(llm)))
    schema = {"type": "object", "properties": {f"p{i}": {"pattern": f"[a-z{i}]{{1,200}}"} for i in range(3000)}}
    body = {"prompt": "x", "max_tokens": 1, "structured_outputs": {"json": schema}}
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(server.post("/v1/completions", body)))
    thread.start()
    assert server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 2}).status_code == 200
    thread.join(60)
    asyncio.run(server.engine.call("preparation.__setattr__", "grammars", Impatient(llm, COMPILE_SECONDS)))
    assert answers[0].status_code == 400
    assert "takes more than 0.01 seconds to compile" in answers[0].json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_that_ends_nowhere_ends_its_own_request_alone(server: Running, stream: bool) -> None:
    """The engine finds out after the first token, in its own process; who runs beside it does not notice."""
    restarts = server.engine.restarts
    beside = {"prompt": "Once upon a time", "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    alone = server.post("/v1/completions", beside).json()["choices"][0]["text"]
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(server.post("/v1/completions", beside)))
    thread.start()
    dead_end = {"grammar": 'start: "a" /[^\\x00-\\U0010FFFF]/'}
    body = {"prompt": "x", "max_tokens": 9, "structured_outputs": dead_end, "stream": stream}
    answer = server.post("/v1/completions", body)
    told = answer.text if answer.status_code == 400 else answer.text.split("data: ")[-2]
    error = json.loads(told)["error"]
    assert error["param"] == "structured_outputs" and "nothing can complete it" in error["message"]
    thread.join(60)
    assert answers[0].json()["choices"][0]["text"] == alone
    until(lambda: server.engine.stats().num_running == 0)
    stats = server.engine.stats()
    assert stats.pages_free + stats.pages_cached == stats.pages_total
    assert server.engine.restarts == restarts, "the engine has not been started again for it"
