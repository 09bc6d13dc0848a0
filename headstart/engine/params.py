"""How one request wants its tokens chosen: `SamplingParams`, with the names vLLM's users know."""

import math
import sys
from dataclasses import dataclass, field
from typing import Any, Literal

from headstart.engine.pooling import Pooling
from headstart.errors import InvalidRequestError


@dataclass(frozen=True)
class StructuredOutputs:
    """A grammar that the output must follow. Set exactly one field.

    Args:
        json: a JSON schema, as a dict or its JSON text.
        json_object: any JSON object.
        regex: a regular expression.
        grammar: a Lark grammar in llguidance's dialect.
        param: what errors are to call it, where a request has another name for it.
    """

    json: dict[str, Any] | str | None = None
    json_object: bool = False
    regex: str | None = None
    grammar: str | None = None
    param: str = "structured_outputs"

    def __post_init__(self) -> None:
        given = [self.json is not None, self.json_object, self.regex is not None, self.grammar is not None]
        if sum(given) != 1:
            raise InvalidRequestError(
                f"{self.param} takes exactly one of json, json_object, regex, grammar", self.param
            )


@dataclass
class SamplingParams:
    """How the tokens of one request are chosen and when it ends.

    Args:
        n: number of outputs returned.
        best_of: number of outputs generated, of which the `n` likeliest per token are returned (default: `n`).
        temperature: 0 is greedy.
        top_p: keep the smallest set of tokens whose probability reaches this, in (0, 1].
        top_k: keep this many likeliest tokens; 0 or -1 keeps all.
        min_p: drop tokens below this fraction of the likeliest token's probability, in [0, 1].
        repetition_penalty: divides (positive) or multiplies (negative) logits of tokens in prompt or output;
            in [0.01, 100].
        presence_penalty: subtracted once from tokens that stand in the output, in [-2, 2].
        frequency_penalty: subtracted per occurrence in the output, in [-2, 2].
        logit_bias: token id to addend, each in [-100, 100].
        seed: makes the draw a function of the seed and the position alone, whoever shares the batch.
        stop: strings that end the output; the text before them is returned.
        stop_token_ids: ids that end the output.
        include_stop_str_in_output: keep the stop string in the text.
        ignore_eos: go on past the end-of-sequence token.
        max_tokens: at most this many output tokens; None means up to the model's length.
        min_tokens: no end-of-sequence or stop before this many output tokens.
        logprobs: return this many alternatives beside each output token (0: the token's own only).
        prompt_logprobs: the same for prompt tokens (the first has none).
        detokenize: False returns ids only.
        skip_special_tokens: leave special tokens out of the text.
        structured_outputs: a grammar for the output.
        pooling: return an embedding of the prompt instead of generating: "last", "mean", or "auto" for what the
            checkpoint says.
        dimensions: cut the embedding to so many numbers (default: all).
        priority: with the priority scheduling policy, requests of a lower number go first.
        output_kind: what a stream yields: all so far, only what is new, or only the end.

    Raises:
        InvalidRequestError: a value of the wrong type or out of range; `.param` names it.
    """

    n: int = 1
    best_of: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputs | None = None
    pooling: Pooling | None = None
    dimensions: int | None = None
    priority: int = 0
    output_kind: Literal["cumulative", "delta", "final"] = field(default="cumulative")

    def __post_init__(self) -> None:
        _integer("n", self.n, 1, 128)
        if self.best_of is not None:
            _integer("best_of", self.best_of, 1, 128)
            if self.best_of < self.n:
                raise InvalidRequestError(f"best_of ({self.best_of}) must be at least n ({self.n})", "best_of")
        _number("temperature", self.temperature, 0.0, math.inf)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _integer("top_k", self.top_k, -1, 2**31)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.seed is not None:
            _integer("seed", self.seed, -(2**63), 2**64 - 1)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, 2**31)
        _integer("min_tokens", self.min_tokens, 0, 2**31)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})", "min_tokens"
            )
        _integer("priority", self.priority, -(2**31), 2**31)
        if self.pooling not in (None, "auto", "last", "mean"):
            raise InvalidRequestError(f"pooling must be 'auto', 'last' or 'mean', not {self.pooling!r}", "pooling")
        if self.pooling is not None and (self.generated > 1 or self.prompt_logprobs is not None):
            raise InvalidRequestError("pooling gives one embedding and nothing beside it", "pooling")
        if self.dimensions is not None:
            _integer("dimensions", self.dimensions, 1, 2**31)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), 0, 2**31)
        self.stop = self._checked_stop()
        ids = self.stop_token_ids or []
        if not isinstance(ids, list | tuple):
            raise InvalidRequestError(f"stop_token_ids must be a list of token ids, not {ids!r}", "stop_token_ids")
        self.stop_token_ids = [_integer("stop_token_ids", i, 0, 2**31) for i in ids]
        if self.structured_outputs is not None and not isinstance(self.structured_outputs, StructuredOutputs):
            raise InvalidRequestError("structured_outputs must be a StructuredOutputs", "structured_outputs")
        if self.logit_bias is not None:
            self.logit_bias = self._checked_bias()
        if self.output_kind not in ("cumulative", "delta", "final"):
            raise InvalidRequestError(
                f"output_kind must be 'cumulative', 'delta' or 'final', not {self.output_kind!r}",
                "output_kind",
            )

    def _checked_stop(self) -> list[str]:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if not isinstance(stop, list | tuple) or not all(isinstance(s, str) and s for s in stop):
            raise InvalidRequestError("stop must be one or several strings that are not empty", "stop")
        return list(stop)

    def _checked_bias(self) -> dict[int, float]:
        if not isinstance(self.logit_bias, dict):
            raise InvalidRequestError("logit_bias must map token ids to numbers", "logit_bias")
        bias: dict[int, float] = {}
        for token, value in self.logit_bias.items():
            try:
                token_id = int(token)
            except (TypeError, ValueError):
                raise InvalidRequestError(
                    f"logit_bias maps token ids to numbers, but {token!r} is no token id", "logit_bias"
                ) from None
            bias[token_id] = _number("logit_bias", value, -100.0, 100.0)
        return bias

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken without a draw."""
        return self.temperature == 0

    @property
    def has_penalties(self) -> bool:
        """Whether logits depend on which tokens came before."""
        return bool(self.repetition_penalty != 1.0 or self.presence_penalty or self.frequency_penalty)

    @property
    def generated(self) -> int:
        """How many outputs are generated, of which `n` are returned."""
        return self.best_of or self.n


def _number(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> float:
    """`value` as a float, or a sentence that names the field, the value and the range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequestError(f"{name} must be a number, not {value!r}", name)
    number = float(max(-sys.float_info.max, min(value, sys.float_info.max)))
    if not (low < number if open_low else low <= number) or not number <= high or value != value:
        bounds = f"{'above' if open_low else 'at least'} {low:g}"
        bounds += f" and at most {high:g}" if high != math.inf else ""
        raise InvalidRequestError(f"{name} must be {bounds}, not {value}", name)
    return number


def _integer(name: str, value: Any, low: int, high: int) -> int:
    """`value` if it is an integer in range, or a sentence that names the field, the value and the range."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(f"{name} must be an integer, not {value!r}", name)
    if not low <= value <= high:
        raise InvalidRequestError(f"{name} must be at least {low} and at most {high}, not {value}", name)
    return value
