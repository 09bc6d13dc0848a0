"""Log-probabilities in the two shapes of OpenAI's API, and vLLM's for prompts."""

from collections.abc import Sequence
from typing import Any

from headstart.checkpoints.token_texts import TokenTexts
from headstart.engine.outputs import Logprob

Choices = dict[int, Logprob]

# JSON has no minus infinity; OpenAI's API uses this for what is all but impossible.
LEAST = -9999.0


class CompletionLogprobs:
    """Builds the `logprobs` of `/v1/completions`; text offsets go on from call to call of a stream.

    Args:
        texts: of the model's tokens.
        alternatives: how many of the likeliest tokens to list beside each token.
    """

    def __init__(self, texts: TokenTexts, alternatives: int) -> None:
        self._texts, self._alternatives = texts, alternatives
        self._offset = 0

    def body(self, token_ids: Sequence[int], logprobs: Sequence[Choices | None]) -> dict[str, Any]:
        """`tokens`, `token_logprobs`, `top_logprobs` and `text_offset`, one entry per token.

        A prompt's first token has no log-probability: `logprobs[0]` is None.
        """
        body: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token_id, choices in zip(token_ids, logprobs, strict=True):
            text = self._texts.text(token_id)
            body["tokens"].append(text)
            body["token_logprobs"].append(_value(choices[token_id]) if choices else None)
            body["top_logprobs"].append(self._top(choices, token_id) if choices else None)
            body["text_offset"].append(self._offset)
            self._offset += len(text)
        return body

    def _top(self, choices: Choices, token_id: int) -> dict[str, float]:
        top: dict[str, float] = {}
        for choice_id, choice in _ranked(choices):
            if choice.rank <= self._alternatives or choice_id == token_id:
                # Several tokens can show as the same text, such as parts of characters: the likeliest stands.
                top.setdefault(self._texts.text(choice_id), _value(choice))
        return top


def chat_logprobs(
    texts: TokenTexts, token_ids: Sequence[int], logprobs: Sequence[Choices], alternatives: int
) -> list[dict[str, Any]]:
    """The `logprobs.content` of a chat choice, one entry per token."""

    def entry(token_id: int, choice: Logprob) -> dict[str, Any]:
        return {
            "token": texts.text(token_id),
            "logprob": _value(choice),
            "bytes": list(texts.data(token_id)),
        }

    return [
        {
            **entry(token_id, choices[token_id]),
            "top_logprobs": [entry(i, choice) for i, choice in _ranked(choices) if choice.rank <= alternatives],
        }
        for token_id, choices in zip(token_ids, logprobs, strict=True)
    ]


def prompt_logprobs(texts: TokenTexts, logprobs: Sequence[Choices | None] | None) -> list[dict[str, Any] | None] | None:
    """vLLM's `prompt_logprobs`: per prompt token its alternatives by token id; None for the first."""
    if logprobs is None:
        return None
    return [
        None
        if choices is None
        else {
            str(token_id): {"logprob": _value(c), "rank": c.rank, "decoded_token": texts.text(token_id)}
            for token_id, c in choices.items()
        }
        for choices in logprobs
    ]


def _ranked(choices: Choices) -> list[tuple[int, Logprob]]:
    return sorted(choices.items(), key=lambda item: item[1].rank)


def _value(choice: Logprob) -> float:
    return max(choice.logprob, LEAST)
