"""What a request returns, with the field names of vLLM's offline API."""

from dataclasses import dataclass, field

Chunk = tuple[float, float, int]
"""A step in which a part of a prompt was read: when it began and ended, and the tokens read."""


@dataclass
class Logprob:
    """One token's log-probability (natural log, before temperature and filters) and its rank (1 = likeliest)."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass
class RequestMetrics:
    """When things happened to a request, in seconds of `time.monotonic()`; None until they did.

    `chunks` are told when it has finished.
    """

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None
    finished_time: float | None = None
    preemptions: int = 0
    chunks: tuple[Chunk, ...] = ()

    @property
    def time_to_first_token(self) -> float | None:
        """TTFT in seconds, from arrival."""
        return None if self.first_token_time is None else self.first_token_time - self.arrival_time

    @property
    def time_in_queue(self) -> float | None:
        """Seconds from arrival until its first tokens ran."""
        return None if self.first_scheduled_time is None else self.first_scheduled_time - self.arrival_time


@dataclass
class CompletionOutput:
    """One output of a request.

    `finish_reason` is "stop" (end of sequence, stop string or id), "length", "abort", or None while running;
    `stop_reason` is the stop string or id that ended it, None for the end-of-sequence token.
    `logprobs[i]` maps token id to `Logprob` for output token i.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


@dataclass
class RequestOutput:
    """A request with what it has produced. With `output_kind="delta"` the outputs hold only what is new.

    `num_cached_tokens` counts prompt tokens whose KV cache was found rather than computed.
    `exact` says whether the methods that ran it, and the engine's settings, leave the model's distribution unchanged.
    `embedding` is the pooled prompt `[hidden]`, for requests with `pooling`; those generate nothing.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    num_cached_tokens: int = 0
    exact: bool = field(default=True)
    embedding: list[float] | None = None
