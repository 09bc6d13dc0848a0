"""Back-pressure, slow and silent clients, browsers from elsewhere, errors nobody expected, and what the log says."""

import json
import logging
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from headstart import AsyncEngine
from tests.server.harness import Running, running

LONG: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True}


def test_a_full_line_answers_503_until_it_is_shorter(checkpoint: Path) -> None:
    engine = AsyncEngine.from_model(str(checkpoint), dtype="float32", max_num_seqs=2)
    with running(engine, max_queued_requests=3) as server:
        answers: list[httpx.Response] = []
        threads = [
            threading.Thread(target=lambda: answers.append(server.post("/v1/completions", LONG))) for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses = sorted(answer.status_code for answer in answers)
        assert set(statuses) == {200, 503} and statuses.count(200) >= 5
        for answer in answers:
            if answer.status_code == 503:
                assert answer.json()["error"]["code"] == "queue_full" and int(answer.headers["retry-after"]) >= 1
        server.wait_until_idle()
        assert server.post("/v1/completions", LONG).status_code == 200
        refused = f'headstart:request_refused_total{{model_name="stories",reason="queue_full"}} {statuses.count(503)}.0'
        assert refused in server.http.get("/metrics").text


def test_a_request_stands_in_line_with_all_its_outputs(checkpoint: Path) -> None:
    engine = AsyncEngine.from_model(str(checkpoint), dtype="float32", max_num_seqs=2)
    with running(engine, max_queued_requests=4) as server:
        six: dict[str, Any] = {"prompt": ["a", "b", "c"], "n": 2, "max_tokens": 2}
        answer = server.post("/v1/completions", six)
        assert answer.status_code == 200 and len(answer.json()["choices"]) == 6
        answer = server.post("/v1/completions", six | {"n": 3})
        assert answer.status_code == 400 and "9 outputs" in answer.json()["error"]["message"]
        body = LONG | {"stream": True, "n": 4}
        with server.http.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            assert response.status_code == 200 and next(lines)
            assert server.service.open_outputs == 4
            answer = server.post("/v1/completions", six)
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "queue_full"
        server.wait_until_idle()
        assert server.service.open_outputs == 0
        assert server.post("/v1/completions", six).status_code == 200


def test_many_short_prompts_are_tokenized_off_the_event_loop(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = AsyncEngine.from_model(str(checkpoint), dtype="float32")
    with running(engine) as server:
        encode, threads = engine.encode, []

        def seen(*arguments: Any) -> Any:
            threads.append(threading.current_thread().name)
            return encode(*arguments)

        monkeypatch.setattr(engine, "encode", seen)
        for path, field in (("/v1/completions", "prompt"), ("/v1/embeddings", "input")):
            threads.clear()
            assert server.post(path, {field: ["one"]}).status_code == 200
            loop = threads.pop()
            assert server.post(path, {field: ["word " * 30] * 40}).status_code == 200
            assert len(threads) == 40 and loop not in threads
            threads.clear()
            answer = server.post(path, {field: ["fits", "x" * 1_000_000]})
            assert answer.status_code == 400 and answer.json()["error"]["param"] == field
            assert not threads


def connect(server: Running, body: Any, *, whole: bool = True) -> socket.socket:
    data = json.dumps(body).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    connection.sendall(head + (data if whole else data[:10]))
    return connection


def test_a_client_that_reads_nothing_is_given_up(checkpoint: Path) -> None:
    """With more to say than the network takes in, the request ends after the client's time, and others go on."""
    engine = AsyncEngine.from_model(str(checkpoint), dtype="float32")
    with running(engine, client_timeout=0.5) as server:
        chatty = LONG | {"stream": True, "n": 24, "logprobs": 20, "max_tokens": 500}
        with connect(server, chatty) as connection:
            assert server.post("/v1/completions", LONG).status_code == 200
            deadline = time.monotonic() + 60
            while not server.service.lifecycle.idle.is_set():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            server.wait_until_idle()
            connection.recv(1)


def test_a_client_that_never_ends_its_body_is_given_up(checkpoint: Path) -> None:
    with running(AsyncEngine.from_model(str(checkpoint)), client_timeout=0.3) as server:
        with connect(server, LONG, whole=False) as connection:
            connection.settimeout(30)
            assert connection.recv(1000).startswith(b"HTTP/1.1 408")
        assert server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 1}).status_code == 200


def test_browsers_from_elsewhere_are_kept_out_unless_allowed(checkpoint: Path, server: Running) -> None:
    preflight = {
        "Origin": "https://page.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    answer = server.http.options("/v1/completions", headers=preflight)
    assert "access-control-allow-origin" not in answer.headers
    assert "access-control-allow-origin" not in server.http.get("/v1/models", headers=preflight).headers
    engine = AsyncEngine.from_model(str(checkpoint))
    with running(engine, allowed_origins=["https://page.example"], api_keys=["secret"]) as open_server:
        answer = httpx.options(f"{open_server.url}/v1/completions", headers=preflight)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        other = httpx.options(
            f"{open_server.url}/v1/completions", headers=preflight | {"Origin": "https://evil.example"}
        )
        assert "access-control-allow-origin" not in other.headers
        refused = httpx.get(f"{open_server.url}/v1/models", headers={"Origin": "https://page.example"})
        assert refused.status_code == 401, "CORS opens nothing by itself"
        assert refused.headers["access-control-allow-origin"] == "https://page.example"


def test_the_log_does_not_quote_prompts(
    checkpoint: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a refusal, nor an error in the server or in the engine that itself quotes the prompt."""
    secret = "the treasure lies under the oak"
    engine = AsyncEngine.from_model(str(checkpoint), dtype="float32")
    with running(engine) as server, caplog.at_level(logging.DEBUG):
        assert server.post("/v1/completions", {"prompt": secret, "max_tokens": 3}).status_code == 200
        assert server.post("/v1/completions", {"prompt": secret, "temperature": secret}).status_code == 400

        def leak(*_: Any, **__: Any) -> Any:
            raise KeyError(secret)

        with monkeypatch.context() as patched:
            patched.setattr(engine, "encode", leak)
            answer = server.post("/v1/completions", {"prompt": secret, "max_tokens": 3})
            assert answer.status_code == 500 and secret not in answer.text
        with monkeypatch.context() as patched:
            patched.setattr(engine.engine.answers, "append", leak)
            answer = server.post("/v1/completions", {"prompt": secret, "max_tokens": 3})
            assert answer.status_code == 500 and secret not in answer.text
        assert server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 3}).status_code == 200
    logged = caplog.text
    assert "KeyError" in logged, "the log still says what went wrong and where"
    # The tests' own client logs what it sends.
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore", "openai"))]
    assert ours and all(secret not in record.getMessage() and not record.exc_info for record in ours)


def test_an_error_in_one_request_leaves_the_others_alone(checkpoint: Path) -> None:
    engine = AsyncEngine.from_model(str(checkpoint), dtype="float32")
    with running(engine) as server:
        want = server.post("/v1/completions", LONG | {"temperature": 0}).json()["choices"][0]["text"]
        run = engine.engine.runner.run

        def broken(batch: Any) -> Any:
            assert 77 not in batch.token_ids.tolist()
            return run(batch)

        engine.engine.runner.run = broken  # type: ignore[method-assign]
        answers: dict[int, httpx.Response] = {}

        def ask(number: int) -> None:
            body = LONG | {"temperature": 0} | ({"prompt": [1, 77]} if number % 4 == 0 else {})
            answers[number] = server.post("/v1/completions", body)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, answer in answers.items():
            assert answer.status_code == (500 if number % 4 == 0 else 200)
            if answer.status_code == 200:
                assert answer.json()["choices"][0]["text"] == want
        server.wait_until_idle()
        assert server.http.get("/health").json() == {"status": "ok"}


def test_health_generate_asks_for_a_token(checkpoint: Path) -> None:
    engine = AsyncEngine.from_model(str(checkpoint), dtype="float32")
    with running(engine, api_keys=["secret"]) as server:
        before = engine.stats().generation_tokens
        assert httpx.get(f"{server.url}/health_generate").json() == {"status": "ok"}
        assert engine.stats().generation_tokens == before + 1

        def broken() -> None:
            raise RuntimeError("the device is gone")

        engine.engine.step = broken  # type: ignore[method-assign, assignment]
        answer = httpx.get(f"{server.url}/health_generate", timeout=60)
        assert answer.status_code == 503
        assert httpx.get(f"{server.url}/health").status_code == 503
