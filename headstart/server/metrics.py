"""Prometheus metrics, with vLLM's names under the prefix `headstart:`."""

from collections.abc import Iterable
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headstart import __version__
from headstart.engine.client import EngineClient
from headstart.engine.outputs import RequestMetrics
from headstart.engine.watch import STEP_TOKENS
from headstart.server.statistics import Recent

SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.02,
    0.04,
    0.08,
    0.15,
    0.3,
    0.6,
    1.2,
    2.5,
    5,
    10,
    20,
    40,
    80,
    160,
    320,
)
TOKENS = tuple(2**power for power in range(18))


class AnswerCounter:
    """ASGI middleware around all others that counts what is answered."""

    def __init__(self, app: ASGIApp, metrics: "Metrics") -> None:
        self.app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        code = 499

        async def noted(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            # The route, not the path: a path is whatever a client writes.
            self._metrics.answered(getattr(scope.get("route"), "path", "other"), code)


class EngineCollector(Collector):
    """Reads the engine's counts when it is scraped."""

    def __init__(self, engine: EngineClient, model_name: str) -> None:
        self._engine, self._model_name = engine, model_name

    def collect(self) -> Iterable[Metric]:
        """Gauges and counters of this moment."""
        stats = self._engine.stats()
        used = stats.pages_total - stats.pages_free - stats.pages_cached
        yield self._gauge("num_requests_running", "Requests in the running batch.", stats.num_running)
        yield self._gauge("num_requests_waiting", "Requests waiting to be scheduled.", stats.num_waiting)
        yield self._gauge(
            "kv_cache_usage_perc",
            "Share of KV cache pages held by requests, 0 to 1.",
            used / stats.pages_total,
        )
        yield self._gauge("kv_cache_pages", "All KV cache pages.", stats.pages_total)
        yield self._gauge("kv_cache_pages_cached", "Pages kept for reuse only.", stats.pages_cached)
        for name, text, value in (
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.queried_tokens),
            ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.cached_tokens),
            ("prompt_tokens", "Prompt tokens processed.", stats.prompt_tokens),
            ("generation_tokens", "Tokens generated.", stats.generation_tokens),
            ("num_preemptions", "Requests set back to make room.", stats.preemptions),
            ("engine_steps", "Steps of the engine.", stats.steps),
            *_draft_counts(stats.drafts),
            ("kv_tier_pages_out", "Cached pages that went to CPU memory or disk.", stats.tier_pages_out),
            ("kv_tier_pages_in", "Cached pages that came back from there.", stats.tier_pages_in),
            ("engine_restarts", "Times that the engine was started again after it died.", self._engine.restarts),
            ("engine_step_seconds", "Time spent in steps.", stats.step_seconds),
            ("engine_prefill_tokens", "Tokens that steps have read, without those found cached.", stats.prefill_tokens),
            ("engine_decode_tokens", "Tokens that steps have run to write the next one.", stats.decode_tokens),
        ):
            yield self._counter(name, text, value)
        yield self._step_tokens(stats.step_sizes, stats.prefill_tokens + stats.decode_tokens)
        finished = CounterMetricFamily(
            "headstart:request_success",
            "Requests ended, by reason.",
            labels=["model_name", "finished_reason"],
        )
        for reason, count in stats.finished.items():
            finished.add_metric([self._model_name, reason], count)
        yield finished
        yield self._of_methods(stats.methods)
        info = GaugeMetricFamily(
            "headstart:engine_info", "Always 1; the labels tell.", labels=["model_name", "version", "exact"]
        )
        info.add_metric([self._model_name, __version__, str(self._engine.exact).lower()], 1)
        yield info

    def _step_tokens(self, sizes: list[int], tokens: int) -> Metric:
        family = HistogramMetricFamily(
            "headstart:iteration_tokens_total", "Tokens of a step, read and written.", labels=["model_name"]
        )
        bounds = [*map(float, STEP_TOKENS), "+Inf"]
        sizes = sizes or [0] * len(bounds)  # an engine that has only begun
        buckets = [(str(bound), count) for bound, count in zip(bounds, accumulate(sizes), strict=True)]
        family.add_metric([self._model_name], buckets, tokens)
        return family

    def _of_methods(self, methods: dict[str, dict[str, int]]) -> Metric:
        family = CounterMetricFamily(
            "headstart:method_counts", "What the methods in force count.", labels=["model_name", "method", "what"]
        )
        for key, counts in methods.items():
            for what, count in counts.items():
                family.add_metric([self._model_name, key, what], count)
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"headstart:{name}", text, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"headstart:{name}", text, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family


def _draft_counts(counts: dict[str, int]) -> Iterable[tuple[str, str, int]]:
    """Counters of speculative decoding; none where nothing drafts."""
    if counts:
        yield "spec_decode_num_drafts", "Drafts verified.", counts.get("drafts", 0)
        yield "spec_decode_num_draft_tokens", "Drafted tokens.", counts.get("drafted", 0)
        yield "spec_decode_num_accepted_tokens", "Drafted tokens that stood.", counts.get("accepted", 0)
        for why in ("load", "request"):
            text = f"Drafts left out since they lose for the {why}."
            yield f"spec_decode_left_out_{why}", text, counts.get(f"left out for the {why}", 0)


class Metrics:
    """The registry of one server, and the histograms that its requests fill.

    Attributes:
        first_tokens: the last requests' times to first token.
        gaps: the last times between tokens, in streams.
    """

    def __init__(self, engine: EngineClient, model_name: str) -> None:
        self.first_tokens, self.gaps = Recent(), Recent()
        self._registry = CollectorRegistry()
        self._registry.register(EngineCollector(engine, model_name))
        ProcessCollector(registry=self._registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            family = Histogram(f"headstart:{name}", text, ["model_name"], buckets=buckets, registry=self._registry)
            return family.labels(model_name=model_name)

        self._first_token = histogram("time_to_first_token_seconds", "Arrival to first token.", SECONDS)
        self._inter_token = histogram(
            "inter_token_latency_seconds", "Time between the tokens of an output, in streams.", SECONDS
        )
        self._per_token = histogram(
            "request_time_per_output_token_seconds",
            "A request's mean time per token after the first.",
            SECONDS,
        )
        self._end_to_end = histogram("e2e_request_latency_seconds", "Arrival to last token.", SECONDS)
        self._queue = histogram("request_queue_time_seconds", "Arrival to first step.", SECONDS)
        self._inference = histogram("request_inference_time_seconds", "First step to last token.", SECONDS)
        self._prefill = histogram("request_prefill_time_seconds", "First step to first token.", SECONDS)
        self._decode = histogram("request_decode_time_seconds", "First token to last token.", SECONDS)
        self._prompt = histogram("request_prompt_tokens", "Prompt tokens of a request.", TOKENS)
        self._generated = histogram("request_generation_tokens", "Generated tokens of a request.", TOKENS)

        self._model_name = model_name
        self._refused = Counter(
            "headstart:request_refused",
            "Requests refused before the engine saw them, by reason.",
            ["model_name", "reason"],
            registry=self._registry,
        )

        self._answers = Counter(
            "headstart:http_requests",
            "Answers to HTTP requests, by route and status; 499 are clients that left before theirs.",
            ["model_name", "path", "code"],
            registry=self._registry,
        )

    def answered(self, path: str, code: int) -> None:
        """Record an answer to a request of whatever kind; `path` is a route's, of which there are few."""
        self._answers.labels(model_name=self._model_name, path=path, code=code).inc()

    def refused(self, reason: str) -> None:
        """Record a request that a limit turned away."""
        self._refused.labels(model_name=self._model_name, reason=reason).inc()

    def request_finished(self, times: RequestMetrics, prompt_tokens: int, longest_output: int, generated: int) -> None:
        """Record a finished request.

        Args:
            times: when things happened to it.
            prompt_tokens: length of its prompt.
            longest_output: tokens of its longest output, which took its time.
            generated: tokens of all its outputs.
        """
        self._prompt.observe(prompt_tokens)
        self._generated.observe(generated)
        if times.time_to_first_token is not None:
            self._first_token.observe(times.time_to_first_token)
            self.first_tokens.add(times.time_to_first_token)
        if times.time_in_queue is not None:
            self._queue.observe(times.time_in_queue)
        if times.first_scheduled_time is not None and times.first_token_time is not None:
            self._prefill.observe(times.first_token_time - times.first_scheduled_time)
            self._inference.observe((times.last_token_time or times.first_token_time) - times.first_scheduled_time)
        if times.finished_time is not None:
            self._end_to_end.observe(times.finished_time - times.arrival_time)
        if times.first_token_time is not None and times.last_token_time is not None and longest_output > 1:
            decoding = times.last_token_time - times.first_token_time
            self._decode.observe(decoding)
            self._per_token.observe(decoding / (longest_output - 1))

    def inter_token(self, seconds: float, tokens: int) -> None:
        """Record `tokens` tokens that came together, `seconds` after those before them."""
        self.gaps.add(seconds / tokens, tokens)
        for _ in range(tokens):
            self._inter_token.observe(seconds / tokens)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)
