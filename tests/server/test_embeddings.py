"""`/v1/embeddings` through the openai client, against the model in process."""

import base64
import math
from typing import Any

import numpy as np
import pytest

from headstart import LLM
from tests.server.harness import Running

TEXTS = ["Once upon a time", "Lily and the cat", "é☃"]


def create(server: Running, **body: Any) -> Any:
    return server.openai.embeddings.create(**({"model": "stories", "input": TEXTS} | body))


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_embeddings_of_the_model_in_process(server: Running, llm: LLM, pooling: Any) -> None:
    expected = llm.embed(TEXTS, pooling)
    found = create(server, extra_body={"pooling": pooling, "cache_salt": pooling})
    assert [item.index for item in found.data] == [0, 1, 2]
    for item, vector in zip(found.data, expected, strict=True):
        np.testing.assert_allclose(item.embedding, vector, atol=1e-5)
        assert math.isclose(math.hypot(*item.embedding), 1, rel_tol=1e-5)
    ids = [llm.encode(text) for text in TEXTS]
    assert found.usage.prompt_tokens == found.usage.total_tokens == sum(map(len, ids))
    again = create(server, input=ids, encoding_format="float", extra_body={"pooling": pooling, "cache_salt": "other"})
    np.testing.assert_allclose([item.embedding for item in again.data], expected, atol=1e-5)
    one = create(server, input=ids[0], extra_body={"pooling": pooling, "normalize": False})
    np.testing.assert_allclose(one.data[0].embedding, llm.embed(TEXTS[0], pooling, normalize=False)[0], rtol=1e-4)


def test_formats_and_dimensions(server: Running) -> None:
    whole = server.post("/v1/embeddings", {"input": "x", "user": "me"}).json()
    vector = whole["data"][0]["embedding"]
    packed = server.post("/v1/embeddings", {"input": "x", "encoding_format": "base64"}).json()["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(packed), "<f4"), vector, rtol=1e-6)
    short = server.post("/v1/embeddings", {"input": "x", "dimensions": 5}).json()["data"][0]["embedding"]
    np.testing.assert_allclose(short, np.array(vector[:5]) / np.linalg.norm(vector[:5]), rtol=1e-5)


def test_more_dimensions_than_there_are_cost_nothing(server: Running) -> None:
    steps = server.stats().steps
    body = {"input": ["x", "y" * 300], "dimensions": 65, "cache_salt": "unread"}
    refused = server.post("/v1/embeddings", body)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "dimensions"
    assert "have 64 dimensions, not 65" in refused.json()["error"]["message"]
    assert server.stats().steps == steps
    assert server.post("/v1/embeddings", body | {"dimensions": 64}).status_code == 200


def test_usage_tells_of_the_cache(server: Running) -> None:
    body = {"input": "A story that is read twice, " + "word by word, " * 9, "cache_salt": "twice"}
    first, second = (server.post("/v1/embeddings", body).json() for _ in range(2))
    np.testing.assert_allclose(first["data"][0]["embedding"], second["data"][0]["embedding"], atol=1e-5)
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= 16
    assert second["usage"]["prefill_time"] > 0
    assert second["usage"]["exact"] is True
    assert "decode_time" not in second["usage"]


@pytest.mark.parametrize(
    ("body", "param", "phrase"),
    [
        ({}, "input", "required"),
        ({"input": []}, "input", "a list of token ids"),
        ({"input": ["a", 1]}, "input", "a list of token ids"),
        ({"input": [[1], [512]]}, "input", "512"),
        ({"input": "x " * 600}, "input", "512"),
        ({"input": "x" * 4_000_000}, "input", "4000000 characters"),
        ({"input": ["x"] * 2000}, "input", "at most 1024"),
        ({"input": "x", "dimensions": 0}, "dimensions", "at least 1"),
        ({"input": "x", "dimensions": 5000}, "dimensions", "not 5000"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format", "'int8'"),
        ({"input": "x", "pooling": "cls"}, "pooling", "'cls'"),
        ({"input": "x", "priority": 3}, "priority", "scheduling-policy"),
        ({"input": "x", "truncate_prompt_tokens": 3}, "truncate_prompt_tokens", "no field"),
        ({"input": "x", "model": "ada"}, "model", "'stories'"),
    ],
)
def test_refusals_name_the_field(server: Running, body: Any, param: str, phrase: str) -> None:
    response = server.post("/v1/embeddings", body)
    assert response.status_code == (404 if param == "model" else 400), response.text[:300]
    assert response.json()["error"]["param"] == param
    assert phrase in response.json()["error"]["message"]
