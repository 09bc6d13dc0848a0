"""OpenTelemetry spans per request: in line, each chunk read, the first token, the end. Nothing of it runs when off."""

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from importlib import import_module
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from headstart import __version__
from headstart.engine.outputs import RequestMetrics, RequestOutput
from headstart.engine.params import SamplingParams
from headstart.errors import HeadstartError

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
MOST_CHUNKS = 256
"""A prompt that is read in more chunks has spans for the first so many."""

FAREWELL_SECONDS = 3.0
# What a request whose client has left may take to end: it waits for the step that runs.
LAST_WORDS_SECONDS = 60.0

_carrier: ContextVar[dict[str, str] | None] = ContextVar("trace_carrier", default=None)
"""The trace headers of the request that is being answered in this task."""


def tracing_to(endpoint: str | None) -> "Tracing | None":
    """Tracing that sends spans to an OTLP collector over HTTP; None when nobody asks for it.

    Args:
        endpoint: URL for traces, such as `http://127.0.0.1:4318/v1/traces`. None takes what OpenTelemetry's own
            environment variables name (`ENDPOINTS`), unless `OTEL_SDK_DISABLED` is true.

    Raises:
        HeadstartError: the packages for it are not installed, or the endpoint is no URL.
    """
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if disabled or (endpoint is None and not any(os.environ.get(name) for name in ENDPOINTS)):
        return None
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise HeadstartError(
            f"the endpoint for traces must be a URL such as http://HOST:4318/v1/traces, not {endpoint!r}"
        )
    try:
        exporters = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        export = import_module("opentelemetry.sdk.trace.export")
    except ImportError:
        raise HeadstartError(
            "tracing needs OpenTelemetry; get it with: pip install "
            "opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
        ) from None
    return Tracing(export.BatchSpanProcessor(exporters.OTLPSpanExporter(endpoint=endpoint)))


class Tracing:
    """Makes spans of requests when they have ended, with the times that the engine noted.

    The resource and the sampler follow OpenTelemetry's environment variables; the service is `headstart` unless
    `OTEL_SERVICE_NAME` says otherwise. Attributes follow the conventions for generative AI; no prompt is in them.

    Args:
        processor: takes the spans.
    """

    def __init__(self, processor: Any) -> None:
        self._trace: Any = import_module("opentelemetry.trace")
        self._propagator = import_module("opentelemetry.trace.propagation.tracecontext").TraceContextTextMapPropagator()
        resources = import_module("opentelemetry.sdk.resources")
        name = os.environ.get("OTEL_SERVICE_NAME") or "headstart"
        resource = resources.Resource.create({"service.name": name, "service.version": __version__})
        self._provider = import_module("opentelemetry.sdk.trace").TracerProvider(resource=resource)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("headstart", __version__)

    def begin(self, request_id: str, model: str, params: SamplingParams, prompt_tokens: int, arrival: float) -> "Trace":
        """Follow a request, of which `Trace.end` makes the spans.

        Args:
            request_id: its name in the engine.
            model: the name under which it is served.
            params: how it samples.
            prompt_tokens: length of its prompt.
            arrival: when it came, by `time.monotonic()`.
        """
        attributes = {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.request.model": model,
            "gen_ai.response.id": request_id,
            "gen_ai.request.max_tokens": params.max_tokens,
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.top_p": params.top_p,
            "gen_ai.request.choice.count": params.n,
            "gen_ai.usage.input_tokens": prompt_tokens,
        }
        found = {name: value for name, value in attributes.items() if value is not None}
        return Trace(self, found, _carrier.get(), arrival)

    def write(
        self, attributes: dict[str, Any], carrier: dict[str, str] | None, times: RequestMetrics, fault: str
    ) -> None:
        """Make the spans of a request that has ended; `fault` is the type of the error that ended it, or empty."""
        offset = time.time_ns() - time.monotonic_ns()

        def at(seconds: float) -> int:
            return offset + int(seconds * 1e9)

        end = times.finished_time or time.monotonic()
        parent = self._propagator.extract(carrier or {})
        kind = self._trace.SpanKind.SERVER
        root = self._tracer.start_span("llm_request", parent, kind, attributes, start_time=at(times.arrival_time))
        inside = self._trace.set_span_in_context(root, parent)

        def span(name: str, began: float, ended: float, **more: Any) -> None:
            child = self._tracer.start_span(name, inside, attributes=more, start_time=at(began))
            child.end(at(ended))

        span("queued", times.arrival_time, times.first_scheduled_time or end)
        for began, ended, tokens in times.chunks[:MOST_CHUNKS]:
            span("prefill", began, ended, **{"headstart.chunk.tokens": tokens})
        if times.first_token_time is not None:
            root.add_event("first token", timestamp=at(times.first_token_time))
            span("decode", times.first_token_time, times.last_token_time or times.first_token_time)
        root.add_event("done", timestamp=at(end))
        if fault:
            root.set_status(self._trace.Status(self._trace.StatusCode.ERROR, fault))
        root.end(at(end))

    def shutdown(self) -> None:
        """Send what is left, if the collector takes it within `FAREWELL_SECONDS`."""
        last = threading.Thread(target=self._provider.shutdown, name="headstart-traces", daemon=True)
        last.start()
        last.join(FAREWELL_SECONDS)


class Trace:
    """One request that is being answered. See `Tracing.begin`."""

    def __init__(
        self, tracing: Tracing, attributes: dict[str, Any], carrier: dict[str, str] | None, arrival: float
    ) -> None:
        self._tracing, self._attributes, self._carrier = tracing, attributes, carrier
        self._times = RequestMetrics(arrival_time=arrival)
        self._written = self._cached = 0
        self._reasons: dict[int, str] = {}
        self._finished = False
        self._last_words: asyncio.Task[None] | None = None

    async def follow(
        self, source: AsyncGenerator[RequestOutput, None], abort: Callable[[], Awaitable[None]]
    ) -> AsyncGenerator[RequestOutput, None]:
        """The outputs of `source`, taken note of. Whoever leaves early does not wait for the request's last words,
        which tell of the chunks that were read: `abort` asks for them."""
        step: asyncio.Future[RequestOutput | None] | None = None
        try:
            while (output := await asyncio.shield(step := asyncio.ensure_future(_next(source)))) is not None:
                step = None
                self.saw(output)
                yield output
        except (GeneratorExit, asyncio.CancelledError):
            if not self._finished:
                self._last_words = asyncio.ensure_future(self._hear_out(step, source, abort))
            raise

    async def _hear_out(
        self,
        step: asyncio.Future[RequestOutput | None] | None,
        source: AsyncGenerator[RequestOutput, None],
        abort: Callable[[], Awaitable[None]],
    ) -> None:
        """End a request that nobody reads any more, and its spans."""
        with contextlib.suppress(Exception):
            async with aclosing(source), asyncio.timeout(LAST_WORDS_SECONDS):
                await abort()
                while (output := await (step or _next(source))) is not None:
                    step = None
                    self.saw(output)
        self._write(None, left=True)

    def saw(self, output: RequestOutput) -> None:
        """Take note of an output that came, whole or a delta."""
        self._times, self._cached = output.metrics, output.num_cached_tokens
        self._finished = output.finished
        self._attributes["headstart.exact"] = output.exact
        for choice in output.outputs:
            self._written += len(choice.token_ids)
            if choice.finish_reason is not None:
                self._reasons[choice.index] = choice.finish_reason

    def end(self) -> None:
        """The request is over. Called in a `finally`: what is being raised there is its fault, save that nobody
        listens any more."""
        error = sys.exception()
        if self._last_words is None:
            self._write(error, left=isinstance(error, GeneratorExit | asyncio.CancelledError))

    def _write(self, error: BaseException | None, *, left: bool) -> None:
        reasons = [reason for _, reason in sorted(self._reasons.items())] or (["abort"] if left else [])
        chunks, times = len(self._times.chunks), self._times
        more = {
            "gen_ai.usage.output_tokens": self._written,
            "gen_ai.usage.cache_read.input_tokens": self._cached,
            "gen_ai.response.finish_reasons": reasons,
            "gen_ai.latency.time_to_first_token": times.time_to_first_token,
            "gen_ai.latency.time_in_queue": times.time_in_queue,
            "headstart.preemptions": times.preemptions,
            "headstart.chunks": chunks or None,
        }
        self._attributes |= {name: value for name, value in more.items() if value is not None}
        self._tracing.write(
            self._attributes, self._carrier, times, "" if error is None or left else type(error).__name__
        )


async def _next(source: AsyncGenerator[RequestOutput, None]) -> RequestOutput | None:
    return await anext(source, None)


class TraceHeaders:
    """ASGI middleware that keeps a request's `traceparent` for the spans made of it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            _carrier.set({name: headers[name] for name in ("traceparent", "tracestate") if name in headers})
        await self.app(scope, receive, send)
