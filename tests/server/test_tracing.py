"""Spans of requests, taken by OpenTelemetry's in-memory exporter."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from headstart import AsyncEngine, HeadstartError
from headstart.server.tracing import ENDPOINTS, MOST_CHUNKS, Tracing, tracing_to
from tests.server.harness import Running, running

pytest.importorskip("opentelemetry.sdk", reason="tracing needs OpenTelemetry: pip install opentelemetry-sdk")

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

PROMPT = [1, *range(300, 399)]


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def traced(checkpoint: Path, exporter: InMemorySpanExporter) -> Iterator[Running]:
    engine = AsyncEngine.from_model(str(checkpoint), max_num_batched_tokens=32, num_pages=64, max_model_len=512)
    with running(engine, tracing=Tracing(SimpleSpanProcessor(exporter))) as server:
        yield server


def spans(exporter: InMemorySpanExporter, requests: int = 1) -> dict[str, list[Any]]:
    """The spans of so many requests by name, the roots last to come."""
    deadline = time.monotonic() + 10
    while sum(span.name == "llm_request" for span in exporter.get_finished_spans()) < requests:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    found: dict[str, list[Any]] = {}
    for span in exporter.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    exporter.clear()
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_a_span_with_its_parts_inside(
    traced: Running, exporter: InMemorySpanExporter, stream: bool
) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    asked = {"prompt": PROMPT, "max_tokens": 5, "ignore_eos": True, "stream": stream, "cache_salt": str(stream)}
    began = time.time_ns()
    answer = traced.http.post("/v1/completions", json=asked, headers={"traceparent": f"00-{trace}-{parent}-01"})
    assert answer.status_code == 200
    found = spans(exporter)
    (root,), (queued,), (decode,) = found["llm_request"], found["queued"], found["decode"]
    assert f"{root.context.trace_id:032x}" == trace and f"{root.parent.span_id:016x}" == parent
    chunks = found["prefill"]
    assert [chunk.attributes["headstart.chunk.tokens"] for chunk in chunks] == [32, 32, 32, 4]
    for span in (queued, decode, *chunks):
        assert span.parent.span_id == root.context.span_id
        assert root.start_time <= span.start_time <= span.end_time <= root.end_time
    order = [queued, *chunks, decode]
    # The last chunk's step also draws the first token.
    assert all(a.start_time <= b.start_time for a, b in pairwise(order))
    assert began - 10**6 <= root.start_time and root.end_time <= time.time_ns()
    assert [event.name for event in root.events] == ["first token", "done"]
    assert root.events[0].timestamp == decode.start_time
    attributes = dict(root.attributes)
    assert attributes["gen_ai.usage.input_tokens"] == 100
    assert attributes["gen_ai.usage.output_tokens"] == 5
    assert attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert attributes["gen_ai.request.model"] == "stories"
    assert attributes["headstart.exact"] is True
    assert root.status.is_ok is not False and not root.status.description
    assert root.resource.attributes["service.name"] == "headstart"


def test_what_is_found_in_the_cache_has_no_span(traced: Running, exporter: InMemorySpanExporter) -> None:
    for _ in range(2):
        traced.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 1, "cache_salt": "twice"})
    first, second = spans(exporter, 2)["llm_request"]
    assert first.attributes["headstart.chunks"] == 4
    assert second.attributes["headstart.chunks"] == 1
    assert second.attributes["gen_ai.usage.cache_read.input_tokens"] == 96


def test_no_prompt_and_no_answer_is_in_a_span(traced: Running, exporter: InMemorySpanExporter) -> None:
    answer = traced.post("/v1/completions", {"prompt": "The secret garden", "max_tokens": 8}).json()
    found = spans(exporter)
    text = " ".join(span.to_json() for group in found.values() for span in group)
    assert "secret" not in text and answer["choices"][0]["text"].strip() not in text


def test_several_prompts_are_several_spans(traced: Running, exporter: InMemorySpanExporter) -> None:
    traced.post("/v1/completions", {"prompt": ["One", "Two", "Three"], "max_tokens": 2, "n": 2})
    roots = spans(exporter, 3)["llm_request"]
    assert len({root.context.trace_id for root in roots}) == 3
    assert all(root.attributes["gen_ai.usage.output_tokens"] == 4 for root in roots)


def test_a_client_that_leaves_ends_its_span(traced: Running, exporter: InMemorySpanExporter) -> None:
    asked = {"prompt": PROMPT, "max_tokens": 300, "ignore_eos": True, "stream": True}
    with traced.http.stream("POST", "/v1/completions", json=asked) as response:
        next(response.iter_lines())
    (root,) = spans(exporter)["llm_request"]
    assert root.attributes["gen_ai.response.finish_reasons"] == ("abort",)
    assert not root.status.description
    traced.wait_until_idle()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_its_prompt_is_read_leaves_spans_of_the_chunks(
    traced: Running, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    runner = traced.engine.engine.runner
    run = runner.run
    monkeypatch.setattr(runner, "run", lambda batch: (time.sleep(0.1), run(batch))[1])
    asked = {"prompt": [*range(300, 500)] * 2, "max_tokens": 20, "cache_salt": f"left {stream}", "stream": stream}
    with pytest.raises(httpx.ReadTimeout):
        traced.http.post("/v1/completions", json=asked, timeout=0.5)
    found = spans(exporter)
    (root,) = found["llm_request"]
    assert root.attributes["gen_ai.response.finish_reasons"] == ("abort",)
    assert 1 <= len(found["prefill"]) < 400 // 32 and "decode" not in found
    assert all(chunk.attributes["headstart.chunk.tokens"] == 32 for chunk in found["prefill"])
    assert root.attributes["headstart.chunks"] == len(found["prefill"])
    assert not root.status.description
    traced.wait_until_idle()


def test_a_refusal_of_the_engine_is_an_error(traced: Running, exporter: InMemorySpanExporter) -> None:
    refused = traced.post("/v1/completions", {"prompt": [1, 2], "max_tokens": 2, "logit_bias": {"99999": 1}})
    assert refused.status_code == 400
    found = exporter.get_finished_spans()
    exporter.clear()
    # Refused before the engine was asked, it leaves no trace; refused by the engine, its span says so.
    assert all(span.status.description for span in found if span.name == "llm_request")


def test_a_very_long_prompt_does_not_flood_the_collector(exporter: InMemorySpanExporter) -> None:
    from headstart.engine.outputs import RequestMetrics

    now = time.monotonic()
    chunks = tuple((now, now, 1) for _ in range(5 * MOST_CHUNKS))
    times = RequestMetrics(now, now, now, now, now, chunks=chunks)
    Tracing(SimpleSpanProcessor(exporter)).write({}, None, times, "")
    assert len(spans(exporter)["prefill"]) == MOST_CHUNKS


def test_spans_reach_a_collector(checkpoint: Path) -> None:
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    tracing = tracing_to(f"http://127.0.0.1:{collector.server_port}/v1/traces")
    assert tracing is not None
    engine = AsyncEngine.from_model(str(checkpoint), num_pages=64, max_model_len=512)
    with running(engine, tracing=tracing) as server:
        server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 2})
    collector.shutdown()
    collector.server_close()
    assert b"llm_request" in b"".join(bodies), "what is left is sent at the end"


def test_nothing_is_traced_unless_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    assert tracing_to(None) is None
    monkeypatch.setenv(ENDPOINTS[1], "http://127.0.0.1:9")
    tracing = tracing_to(None)
    assert tracing is not None
    tracing.shutdown()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert tracing_to("http://127.0.0.1:9/v1/traces") is None


def test_without_tracing_opentelemetry_is_not_even_imported() -> None:
    code = "import sys, headstart.server.app; print(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_what_is_missing_or_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HeadstartError, match="must be a URL"):
        tracing_to("localhost:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(HeadstartError, match="pip install opentelemetry-sdk"):
        tracing_to("http://127.0.0.1:4318/v1/traces")


def test_a_collector_that_is_not_there_disturbs_nobody(checkpoint: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        tracing = tracing_to(f"http://127.0.0.1:{taken.getsockname()[1]}/v1/traces")
        assert tracing is not None
        engine = AsyncEngine.from_model(str(checkpoint), num_pages=64, max_model_len=512)
        with running(engine, tracing=tracing) as server:
            assert server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 2}).status_code == 200
