"""What a run cost: time to first token, tokens per second, cached tokens, peak memory."""

import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headstart.engine.outputs import RequestOutput


@dataclass(frozen=True)
class Report:
    """The cost of some finished requests. Times in seconds, memory in bytes; None where nothing was measured.

    Attributes:
        requests: how many requests ran.
        prompt_tokens: tokens of all prompts, `cached_tokens` of which were found in the cache.
        output_tokens: tokens of all outputs.
        time_to_first_token: from a request's arrival to its first token, the median over the requests.
        prefill_tokens_per_second: prompt tokens computed, over the time from the first arrival to the last
            first token.
        decode_tokens_per_second: output tokens after each output's first, over the time from the earliest
            first token to the last token.
        output_tokens_per_second: all output tokens over the time from the first arrival to the last token.
        peak_memory: the most memory this process has held so far.
        exact: whether the methods in force leave the model's distribution unchanged.
    """

    requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    time_to_first_token: float | None
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    output_tokens_per_second: float | None
    peak_memory: int
    exact: bool

    @classmethod
    def of(cls, results: Sequence["RequestOutput"]) -> "Report":
        """Measure finished requests; with streams, the merged deltas."""
        outputs = [output for result in results for output in result.outputs]
        prompt_tokens = sum(len(result.prompt_token_ids) for result in results)
        cached_tokens = sum(result.num_cached_tokens for result in results)
        output_tokens = sum(len(output.token_ids) for output in outputs)
        metrics = [result.metrics for result in results]
        arrival = min((m.arrival_time for m in metrics), default=None)
        first_tokens = _present(m.first_token_time for m in metrics)
        last_token = max(_present(m.last_token_time for m in metrics), default=None)
        after_first = sum(max(0, len(output.token_ids) - 1) for output in outputs)
        return cls(
            requests=len(results),
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            output_tokens=output_tokens,
            time_to_first_token=_median(_present(m.time_to_first_token for m in metrics)),
            prefill_tokens_per_second=_rate(prompt_tokens - cached_tokens, arrival, max(first_tokens, default=None)),
            decode_tokens_per_second=_rate(after_first, min(first_tokens, default=None), last_token),
            output_tokens_per_second=_rate(output_tokens, arrival, last_token),
            peak_memory=peak_memory(),
            exact=all(result.exact for result in results),
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def line(self) -> str:
        """For people, in one line."""
        parts = [f"{self.prompt_tokens} prompt tokens"]
        if self.requests > 1:
            parts.insert(0, f"{self.requests} requests")
        if self.cached_tokens:
            parts[-1] += f" ({self.cached_tokens} cached)"
        parts.append(f"{self.output_tokens} generated")
        if self.time_to_first_token is not None:
            median = "median " if self.requests > 1 else ""
            parts.append(f"{median}TTFT {seconds(self.time_to_first_token)}")
        if self.prefill_tokens_per_second is not None:
            parts.append(f"prefill {self.prefill_tokens_per_second:,.0f} tokens/s")
        if self.decode_tokens_per_second is not None:
            parts.append(f"decode {self.decode_tokens_per_second:,.0f} tokens/s")
        parts.append(f"peak memory {self.peak_memory / 2**20:,.0f} MiB")
        if not self.exact:
            parts.append("approximate methods in force")
        return " · ".join(parts)


def peak_memory() -> int:
    """The most memory this process has held, in bytes."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024


def seconds(value: float) -> str:
    """A duration as people read it: `0.8 ms`, `35 ms`, `1.24 s`."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1000:.1f} ms" if value < 0.01 else f"{value * 1000:.0f} ms"


def _present(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _rate(count: int, start: float | None, end: float | None) -> float | None:
    """`count` per second, or None where nothing was counted or timed."""
    if count <= 0 or start is None or end is None or end <= start:
        return None
    return count / (end - start)
