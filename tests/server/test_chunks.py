"""Chunks over HTTP: in completions, chats and responses, whole or streamed, and refused where they are not there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headstart import AsyncEngine
from tests.server.harness import Running, running

ONE, TWO = "Once upon a time there was a fox. " * 3, "The owl sat in a tree and saw it all. " * 3


@pytest.fixture(scope="module")
def blending(checkpoint: Path) -> Iterator[Running]:
    with running(AsyncEngine.from_model(str(checkpoint), dtype="float32", use=["cacheblend:ratio=0.5"])) as server:
        yield server
        server.wait_until_idle()


def counts(server: Running) -> dict[str, int]:
    return server.engine.stats().methods.get("cacheblend", {})


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
def test_chunks_are_reused_wherever_they_stand(blending: Running, path: str) -> None:
    found = []
    for order in ((ONE, TWO), (TWO, ONE)):
        text = f"{order[0]}\n{order[1]}\nThen"
        field = {"completions": "prompt", "responses": "input"}.get(path.split("/")[-1], "messages")
        if "chat" in path:
            field = "messages"
        content: Any = [{"role": "user", "content": text}] if field == "messages" else text
        limit = {"max_output_tokens": 16} if field == "input" else {"max_tokens": 4}
        body = {field: content, "temperature": 0, "chunks": [ONE, TWO], "cache_salt": path, **limit}
        answer = blending.post(path, body)
        assert answer.status_code == 200, answer.text
        found.append(counts(blending).get("chunks reused", 0))
    assert found[1] - found[0] == 2


def test_what_is_wrong_is_said(blending: Running) -> None:
    for body, said in (
        ({"prompt": "one", "chunks": ["two"]}, "chunks[0] does not stand in the prompt"),
        ({"prompt": ["one", "two"], "chunks": ["one"]}, "chunks is for requests whose prompt is one text"),
        ({"prompt": "one", "chunks": "one"}, "chunks must be a list"),
        ({"prompt": "one", "chunks": ["x"] * 1025}, "chunks must be at most 1024 long"),
    ):
        answer = blending.post("/v1/completions", body)
        assert answer.status_code == 400 and said in answer.json()["error"]["message"], answer.text
        assert answer.json()["error"]["param"] == "chunks"
