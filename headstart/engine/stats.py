"""What an engine has counted."""

from dataclasses import dataclass, field


@dataclass
class EngineStats:
    """Counters since the start, and where pages and requests are now; `drafts` are those of `Speculation.counts`,
    `methods` what each method counts."""

    num_running: int
    num_waiting: int
    pages_total: int
    pages_free: int
    pages_cached: int
    prompt_tokens: int
    generation_tokens: int
    queried_tokens: int
    cached_tokens: int
    preemptions: int
    steps: int
    finished: dict[str, int] = field(default_factory=dict)
    drafts: dict[str, int] = field(default_factory=dict)
    methods: dict[str, dict[str, int]] = field(default_factory=dict)
    prefill_tokens: int = 0
    decode_tokens: int = 0
    step_seconds: float = 0.0
    step_sizes: list[int] = field(default_factory=list)
    swaps: int = 0
    tier_pages_out: int = 0
    tier_pages_in: int = 0
