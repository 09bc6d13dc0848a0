"""Prompts in the forms that users give them, read into token ids."""

from collections.abc import Mapping
from typing import Any

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.engine.seams import Tokenization
from headstart.errors import InvalidRequestError

Prompt = str | list[int] | Mapping[str, Any]


def read_prompt(
    prompt: Prompt, tokenizer: Tokenizer | None, tokenization: Tokenization, vocab_size: int
) -> tuple[str | None, list[int]]:
    """A string, a list of token ids, `{"prompt": ...}` or `{"prompt_token_ids": ...}` → (text or None, ids).

    Raises:
        InvalidRequestError: another form, an empty prompt, ids outside the vocabulary, or text without a tokenizer.
    """
    if isinstance(prompt, Mapping):
        if "prompt_token_ids" in prompt:
            prompt = prompt["prompt_token_ids"]
        elif "prompt" in prompt:
            prompt = prompt["prompt"]
        else:
            raise InvalidRequestError("a prompt given as a dict needs 'prompt' or 'prompt_token_ids'", "prompt")
    text = prompt if isinstance(prompt, str) else None
    if text is not None:
        if tokenizer is None:
            raise InvalidRequestError(
                "a text prompt needs a tokenizer, and this engine runs without one: give token ids", "prompt"
            )
        prompt = tokenization.encode(text, tokenizer, True)
    if not isinstance(prompt, list | tuple) or set(map(type, prompt)) - {int}:
        raise InvalidRequestError(f"a prompt is text or a list of token ids, not {type(prompt).__name__}", "prompt")
    if not prompt:
        raise InvalidRequestError("the prompt is empty: there is nothing to continue", "prompt")
    # A long prompt is looked at by loops of the interpreter's own, since nothing is on the device yet meanwhile.
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        beyond = next(token for token in prompt if not 0 <= token < vocab_size)
        raise InvalidRequestError(
            f"the prompt has token id {beyond}, but the vocabulary ends at {vocab_size - 1}", "prompt"
        )
    return text, list(prompt)
