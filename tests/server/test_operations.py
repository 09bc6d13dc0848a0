"""Keys, health, metrics, and an engine that dies."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
from openai import AuthenticationError
from prometheus_client.parser import text_string_to_metric_families

from headstart import AsyncEngine, HeadstartError, __version__
from headstart.server.app import create_app
from tests.server.harness import Running, running


def samples(server: Running) -> dict[str, float]:
    """Metric values by name, added up over labels; every one of ours names the model."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(server.http.get("/metrics").text):
        for sample in family.samples:
            if sample.name.startswith("headstart:"):
                assert sample.labels["model_name"] == "stories"
            if not sample.name.endswith(("_bucket", "_created")):
                found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def test_metrics_count_what_happened(server: Running) -> None:
    server.wait_until_idle()
    before = samples(server)
    prompt = [1, *range(300, 340)]
    asked = {"prompt": prompt, "max_tokens": 7, "ignore_eos": True}
    whole = server.post("/v1/completions", asked).json()["usage"]
    with server.http.stream("POST", "/v1/completions", json=asked | {"stream": True, "n": 2}) as response:
        response.read()
    assert server.post("/v1/completions", {"prompt": "x", "n": 0}).status_code == 400
    server.wait_until_idle()
    after = samples(server)

    def grown(name: str) -> float:
        return after[f"headstart:{name}"] - before.get(f"headstart:{name}", 0)

    assert grown("request_success_total") == 3
    assert grown("generation_tokens_total") == 21
    assert grown("request_generation_tokens_sum") == 21
    assert grown("request_prompt_tokens_sum") == 2 * whole["prompt_tokens"]
    assert grown("prefix_cache_queries_total") >= grown("prefix_cache_hits_total") >= 32
    for histogram in ("time_to_first_token", "e2e_request_latency", "request_queue_time"):
        assert grown(f"{histogram}_seconds_count") == 2
    assert grown("inter_token_latency_seconds_count") == 12
    assert grown("e2e_request_latency_seconds_sum") >= grown("time_to_first_token_seconds_sum") > 0
    assert after["headstart:num_requests_running"] == after["headstart:num_requests_waiting"] == 0
    assert after["headstart:kv_cache_usage_perc"] == 0
    assert after["headstart:num_preemptions_total"] == 0
    assert re.search(r'headstart:engine_info\{[^}]*exact="true"', server.http.get("/metrics").text)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_times_begin_before_the_prompt_is_tokenized(
    server: Running, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    spent = 0.0
    encode = server.engine.encode

    def slow(*arguments: Any, **options: Any) -> list[int]:
        nonlocal spent
        began = time.monotonic()
        time.sleep(0.1)
        ids = encode(*arguments, **options)
        spent += time.monotonic() - began
        return ids

    monkeypatch.setattr(server.engine, "encode", slow)
    before = samples(server)
    prompt = {"prompt": "Once"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "Once"}]}
    assert server.post(path, prompt | {"max_tokens": 2}).status_code == 200
    server.wait_until_idle()
    after = samples(server)
    assert spent > 0
    for histogram in ("time_to_first_token", "e2e_request_latency", "request_queue_time"):
        name = f"headstart:{histogram}_seconds_sum"
        assert after[name] - before.get(name, 0) >= spent, histogram


def test_health_and_version(server: Running) -> None:
    assert server.http.get("/health").json() == {"status": "ok"}
    assert server.http.get("/version").json() == {"version": __version__}


def test_keys_open_all_but_health_and_metrics(checkpoint: Path) -> None:
    keys = ["sésame", "second"]
    with running(AsyncEngine.from_model(str(checkpoint)), api_keys=keys, served_model_name="tales") as server:
        for given in ("Bearer wrong", "Bearer", "Basic second", "second", "", "Bearer \xff\xfe"):
            headers = {"Authorization": given.encode("latin-1")}
            for path in ("/v1/models", "/version", "/tokenize", "/nowhere"):
                response = server.http.get(path, headers=headers)
                assert response.status_code == 401
                assert response.json()["error"]["code"] == "invalid_api_key"
            assert server.http.get("/health", headers=headers).status_code == 200
            assert server.http.get("/metrics", headers=headers).status_code == 200
        for key in keys:
            headers = {"Authorization": b"Bearer " + key.encode()}
            assert server.http.get("/v1/models", headers=headers).json()["data"][0]["id"] == "tales"
        with pytest.raises(AuthenticationError):
            server.openai.with_options(api_key="wrong").models.list()
        client = server.openai.with_options(api_key="second")
        assert client.completions.create(model="tales", prompt="Hi", max_tokens=1).usage


@pytest.mark.parametrize("keys", [[""], ["  "], ["secret", ""], ["\t", "secret"]])
def test_an_empty_key_is_refused_at_the_start(server: Running, keys: list[str]) -> None:
    with pytest.raises(HeadstartError, match="key is empty"):
        create_app(server.engine, api_keys=keys)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_dies_is_seen_from_outside(checkpoint: Path) -> None:
    engine = AsyncEngine.from_model(str(checkpoint))
    with running(engine) as server:
        asked = {"prompt": "Hi", "max_tokens": 400, "ignore_eos": True, "stream": True}
        with server.http.stream("POST", "/v1/completions", json=asked) as response:
            lines = response.iter_lines()
            next(lines)

            def broken() -> None:
                raise RuntimeError("the device is gone")

            engine.engine.step = broken  # type: ignore[method-assign, assignment]
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"error"' in rest[-2]
        assert server.http.get("/health").status_code == 503
        refused = server.post("/v1/completions", {"prompt": "Hi"})
        assert refused.status_code == 503
        assert "restarted" in refused.json()["error"]["message"]
        assert server.http.get("/metrics").status_code == 200
