"""Clients that leave: their requests end in the engine and every page comes back."""

import json
import random
import socket
import threading
import time
from typing import Any

import pytest

from tests.server.harness import Running

LONG: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 500, "ignore_eos": True}
MESSAGES = [{"role": "user", "content": "Hi"}]


def connect(server: Running, path: str, body: Any) -> socket.socket:
    """A connection on which a request has been sent and nothing has been read."""
    data = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


def wait_until_running(server: Running, requests: int = 1) -> None:
    deadline = time.monotonic() + 20
    while server.stats().num_running < requests:
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_hanging_up_ends_the_request(server: Running, path: str, stream: bool) -> None:
    before = server.wait_until_idle()
    prompt = {"messages": MESSAGES} if "chat" in path else {"prompt": ["One", "Two", "Three"]}
    body = {key: value for key, value in LONG.items() if key != "prompt"} | {"max_tokens": 480, "stream": stream}
    connection = connect(server, path, body | prompt)
    wait_until_running(server)
    connection.close()
    after = server.wait_until_idle()
    requests = 1 if "chat" in path else 3
    assert after.finished.get("abort", 0) - before.finished.get("abort", 0) == requests
    assert after.generation_tokens - before.generation_tokens < 480 * requests


def test_leaving_a_stream_half_way(server: Running) -> None:
    before = server.wait_until_idle()
    stream = server.openai.completions.create(
        model="stories", prompt="Once", max_tokens=500, stream=True, extra_body={"ignore_eos": True}
    )
    for _ in range(5):
        next(stream)
    stream.close()
    after = server.wait_until_idle()
    assert after.finished.get("abort", 0) - before.finished.get("abort", 0) == 1
    assert after.generation_tokens - before.generation_tokens < 500


def test_random_comings_and_goings_leave_nothing_behind(server: Running) -> None:
    rng = random.Random(0)

    def visit(seed: int) -> None:
        mine = random.Random(seed)
        body = LONG | {"n": mine.randint(1, 3), "stream": mine.random() < 0.5, "prompt": "x" * mine.randint(1, 200)}
        body["max_tokens"] = mine.randint(1, 200)
        connection = connect(server, "/v1/completions", body)
        time.sleep(mine.random() * 0.2)
        connection.close()

    visitors = [threading.Thread(target=visit, args=(rng.random(),)) for _ in range(24)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    server.wait_until_idle()
    lifecycle = server.service.lifecycle
    assert lifecycle.idle.is_set()


def test_a_client_that_never_finishes_its_request_holds_nobody_up(server: Running) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"prompt"')
        assert server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 2}).status_code == 200
    server.wait_until_idle()
