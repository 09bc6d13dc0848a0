"""What a load is: when requests arrive, how long they are, and when their answers count as good."""

import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np

from headstart.errors import HeadstartError, did_you_mean

DEFAULT_REQUESTS = 100
# Arrivals end after so many seconds when neither a number nor a duration is given.
DEFAULT_SECONDS = 120.0
DEFAULT_TRACE_SECONDS = 60.0


class LoadError(HeadstartError):
    """A load that cannot be put on a server: settings out of range, a broken trace, nobody at the address."""


@dataclass(frozen=True)
class Lengths:
    """Token counts drawn evenly from `low` to `high`, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise LoadError(f"a length must be at least 1 and a range must go up, unlike {self}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """`"256"` or `"64..512"`.

        Raises:
            LoadError: it is neither.
        """
        match = re.fullmatch(r"\s*(\d+)\s*(?:\.\.\s*(\d+)\s*)?", text)
        if match is None:
            raise LoadError(f"{text!r} is no length; write a number of tokens such as 256, or a range such as 64..512")
        return cls(int(match[1]), int(match[2] or match[1]))

    def draw(self, rng: np.random.Generator) -> int:
        """One length."""
        return int(rng.integers(self.low, self.high, endpoint=True))

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}..{self.high}"


@dataclass(frozen=True)
class Slo:
    """A service level objective: a request is good if it meets every bound. All in seconds.

    Args:
        ttft: intended arrival to first token.
        tpot: mean time per token after the first.
        itl: the 99th percentile of the request's own gaps between tokens.
        e2e: intended arrival to last token.
    """

    ttft: float | None = None
    tpot: float | None = None
    itl: float | None = None
    e2e: float | None = None

    def __post_init__(self) -> None:
        if not self.bounds:
            raise LoadError("an SLO needs at least one bound, such as ttft=0.5,itl=0.1")
        for name, bound in self.bounds.items():
            if not 0 < bound < float("inf"):
                raise LoadError(f"the SLO bound {name} must be a number of seconds above 0, not {bound}")

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are set, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def parse(cls, text: str) -> Self:
        """`"ttft=0.5,itl=100ms"`: seconds, or with the unit `ms` or `s`.

        Raises:
            LoadError: an unknown name, or no number.
        """
        found: dict[str, float] = {}
        known = [field.name for field in fields(cls)]
        for part in text.split(","):
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name not in known:
                raise LoadError(f"an SLO has no bound {name!r}; it takes {', '.join(known)}{did_you_mean(name, known)}")
            match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(ms|s)?", value)
            if match is None:
                raise LoadError(f"the SLO bound {name} must be a time such as 0.5 or 500ms, not {value!r}")
            found[name] = float(match[1]) / (1000 if match[2] == "ms" else 1)
        return cls(**found)

    def __str__(self) -> str:
        return ",".join(f"{name}={value:g}" for name, value in self.bounds.items())


@dataclass(frozen=True)
class LoadSettings:
    """A load. At most one of `rate`, `users` and `trace`; without any, the rate is that at which a request alone on
    the server would just be answered before the next one comes.

    Args:
        rate: requests per second, whatever the server does (open loop).
        cv: coefficient of variation of the times between arrivals: 1 is a Poisson process, 0 a constant pace, other
            values draw from a gamma distribution, burstier above 1.
        users: so many requests at all times: each user asks again when the answer is complete (closed loop).
        trace: path of a trace to replay (see `traces`).
        fast_forward: the trace's times are divided by it.
        length_scale: the trace's lengths, and the blocks of its shared prefixes, are multiplied by it.
        max_input: longer prompts of a trace are cut to so many tokens, at the end.
        max_output: longer outputs of a trace are cut to so many tokens.
        input_tokens: prompt lengths, without a trace.
        output_tokens: output lengths, without a trace.
        num_requests: at most so many requests (default: 100, or what the duration holds).
        duration: no request begins after so many seconds (default: 120, of a trace 60, unless `num_requests` is set).
        slos: objectives whose goodput is reported.
        probe: hold one long decode from before the load to its end, and report its gaps.
        warmup: requests that run alone first and are not counted.
        seed: of arrivals, lengths and prompts.
        text: send prompts as text rather than as token ids.
        vocab: ids below it are used for prompts, for servers that have no `/tokenize`.
        model: name of the model, for servers that have several (default: the first).
        request_timeout: seconds after which a request is given up.
        silence: seconds without a byte from the server after which it is asked whether it is alive, and again so many
            until it is given up.
        drain: seconds that the last answers may take after the last arrival.
    """

    rate: float | None = None
    cv: float = 1.0
    users: int | None = None
    trace: str | None = None
    fast_forward: float = 1.0
    length_scale: float = 1.0
    max_input: int | None = None
    max_output: int | None = None
    input_tokens: Lengths = Lengths(256, 256)
    output_tokens: Lengths = Lengths(64, 64)
    num_requests: int | None = None
    duration: float | None = None
    slos: tuple[Slo, ...] = ()
    probe: bool = False
    warmup: int = 2
    seed: int = 0
    text: bool = False
    vocab: int | None = None
    model: str | None = None
    request_timeout: float = 300.0
    silence: float = 10.0
    drain: float = 120.0

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.rate, self.users, self.trace)) > 1:
            raise LoadError("a load has a rate, a number of users or a trace, and only one of them")
        above_zero = ("rate", "fast_forward", "length_scale", "duration", "request_timeout", "silence", "drain")
        for name in above_zero:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise LoadError(f"{name} must be a number above 0, not {value}")
        for name in ("users", "max_input", "max_output", "num_requests", "vocab", "warmup"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise LoadError(f"{name} must be at least 1, not {value}")
        if not 0 <= self.cv <= 100:
            raise LoadError(f"cv must be 0 (constant) to 100, not {self.cv}")
        if self.seed < 0:
            raise LoadError(f"seed must be at least 0, not {self.seed}")
        if self.text and self.vocab is not None:
            raise LoadError("vocab is for prompts of token ids; leave out one of text and vocab")

    @property
    def most_requests(self) -> int | None:
        """Upper bound on the number of requests; None if only the duration ends the load."""
        if self.num_requests is None and self.duration is None and self.trace is None:
            return DEFAULT_REQUESTS
        return self.num_requests

    @property
    def last_arrival(self) -> float | None:
        """No request begins after so many seconds; None if only the number ends the load."""
        if self.duration is not None or self.num_requests is not None:
            return self.duration
        return DEFAULT_TRACE_SECONDS if self.trace is not None else DEFAULT_SECONDS

    def to_json(self) -> dict[str, Any]:
        """For a header or a ledger."""
        return asdict(self) | {"slos": [slo.bounds for slo in self.slos]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The settings that `to_json` has written."""
        lengths = {name: Lengths(**data[name]) for name in ("input_tokens", "output_tokens")}
        return cls(**{**data, **lengths, "slos": tuple(Slo(**bounds) for bounds in data["slos"])})
