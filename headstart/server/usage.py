"""Token counts of a response."""

from typing import Any

from headstart.engine.outputs import RequestOutput


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
        self._queue = 0.0

    def add(self, job: int, output: RequestOutput) -> None:
        """Count an output of the `job`-th prompt."""
        self._prompts[job] = (len(output.prompt_token_ids), output.num_cached_tokens)
        self._completion += sum(len(choice.token_ids) for choice in output.outputs)
        self._exact &= output.exact
        self._queue = max(self._queue, output.metrics.time_in_queue or 0.0)

    def body(self) -> dict[str, Any]:
        """OpenAI's usage object, with `exact`: whether the methods in force keep the model's distribution, and
        `queue_time`: seconds from arrival to the first step, of the prompt that waited longest."""
        prompt = sum(tokens for tokens, _ in self._prompts.values())
        completion = 0 if self.hide_completion else self._completion
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(cached for _, cached in self._prompts.values())},
            "exact": self._exact,
            "queue_time": round(self._queue, 6),
        }
