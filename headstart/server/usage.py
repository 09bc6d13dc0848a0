"""Token counts of a response."""

from typing import Any

from headstart.engine.outputs import RequestMetrics, RequestOutput


class Usage:
    """Counts tokens over the outputs of a response, be they whole or only what is new.

    Attributes:
        hide_completion: report no generated tokens.
    """

    def __init__(self) -> None:
        self.hide_completion = False
        self._prompts: dict[int, tuple[int, int]] = {}
        self._completion = 0
        self._exact = True
        self._times = {"queue_time": 0.0, "prefill_time": 0.0, "decode_time": 0.0}

    def add(self, job: int, output: RequestOutput) -> None:
        """Count an output of the `job`-th prompt."""
        self._prompts[job] = (len(output.prompt_token_ids), output.num_cached_tokens)
        self._completion += sum(len(choice.token_ids) for choice in output.outputs)
        self._exact &= output.exact
        for name, seconds in _times(output.metrics).items():
            self._times[name] = max(self._times[name], seconds)

    def body(self) -> dict[str, Any]:
        """OpenAI's usage object, with what `_own` adds."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            **self._own(),
        }

    def responses_body(self) -> dict[str, Any]:
        """The same under the names of `/v1/responses`."""
        return {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens},
            "output_tokens": self.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            **self._own(),
        }

    def embeddings_body(self) -> dict[str, Any]:
        """The same where nothing is generated."""
        own = self._own()
        del own["decode_time"]
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            **own,
        }

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(tokens for tokens, _ in self._prompts.values())

    @property
    def cached_tokens(self) -> int:
        """Those of them whose keys were found rather than computed."""
        return sum(cached for _, cached in self._prompts.values())

    @property
    def completion_tokens(self) -> int:
        """Generated tokens of all outputs."""
        return 0 if self.hide_completion else self._completion

    def _own(self) -> dict[str, Any]:
        """`exact`: whether the methods in force keep the model's distribution; and in seconds, each of the prompt that
        took longest: `queue_time` from arrival to the first step, `prefill_time` from there to the first token,
        `decode_time` from there to the last."""
        return {"exact": self._exact} | {name: round(seconds, 6) for name, seconds in self._times.items()}


def _times(metrics: RequestMetrics) -> dict[str, float]:
    started, first = metrics.first_scheduled_time, metrics.first_token_time
    times = {"queue_time": metrics.time_in_queue or 0.0}
    # Where nothing is generated, the prompt is all there is to finish.
    read = first if first is not None else metrics.finished_time
    if started is not None and read is not None:
        times["prefill_time"] = max(0.0, read - started)
    if first is not None and metrics.last_token_time is not None:
        times["decode_time"] = max(0.0, metrics.last_token_time - first)
    return times
