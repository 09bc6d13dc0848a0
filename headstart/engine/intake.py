"""Prompts in the forms that users give them, read into token ids."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.engine.seams import Tokenization
from headstart.errors import InvalidRequestError

Prompt = str | list[int] | Mapping[str, Any]


Span = tuple[int, int]
"""Where a part of a prompt begins, and where it ends."""


def read_prompt(
    prompt: Prompt, tokenizer: Tokenizer | None, tokenization: Tokenization, vocab_size: int
) -> tuple[str | None, list[int], list[Span] | None]:
    """A string, a list of token ids, `{"prompt": ...}` or `{"prompt_token_ids": ...}` → (text or None, ids, chunks).

    A dict may bring `chunks`: texts that stand in the prompt, or with token ids where they begin and end. They come
    back as ids' places, ascending; None where nothing is said of them.

    Raises:
        InvalidRequestError: another form, an empty prompt, ids outside the vocabulary, text without a tokenizer, or
            chunks that are not there.
    """
    chunks = prompt.get("chunks") if isinstance(prompt, Mapping) else None
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
        encode = tokenization.encode
        if chunks is None:
            prompt = encode(text, tokenizer, True)
        else:
            prompt, chunks = encode_parts(text, chunks, lambda part, special: encode(part, tokenizer, special))
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
    return text, list(prompt), None if chunks is None else _checked(chunks, len(prompt))


def encode_parts(
    text: str, chunks: Sequence[str], encode: Callable[[str, bool], list[int]], add_special_tokens: bool = True
) -> tuple[list[int], list[Span]]:
    """A text's ids, each chunk tokenized by itself, so that it has the same ids wherever it stands; and their places.

    Args:
        text: the prompt.
        chunks: texts that stand in it, in any order.
        encode: a text to ids, with special tokens or without.
        add_special_tokens: whether the first ids are those.

    Raises:
        InvalidRequestError: a chunk that is empty, or does not stand there beside the others.
    """
    ids: list[int] = []
    spans: list[Span] = []
    at = 0
    for start, end in _places(text, chunks):
        ids += encode(text[at:start], add_special_tokens and at == 0) if start > at or at == 0 else []
        first = len(ids)
        ids += encode(text[start:end], False)
        spans.append((first, len(ids)))
        at = end
    if at < len(text) or at == 0:
        ids += encode(text[at:], add_special_tokens and at == 0)
    return ids, spans


def _places(text: str, chunks: Sequence[str]) -> list[Span]:
    """Where the chunks stand in the text, ascending."""
    if not isinstance(chunks, list | tuple) or not all(isinstance(chunk, str) for chunk in chunks):
        raise InvalidRequestError("chunks is a list of texts that stand in the prompt", "chunks")
    taken: list[Span] = []
    for number, chunk in enumerate(chunks):
        start = text.find(chunk) if chunk else -1
        while start >= 0 and any(start < end and first < start + len(chunk) for first, end in taken):
            start = text.find(chunk, start + 1)
        if start < 0:
            raise InvalidRequestError(
                f"chunks[{number}] does not stand in the prompt: give the very text, and no part of it twice", "chunks"
            )
        taken.append((start, start + len(chunk)))
    return sorted(taken)


def _checked(chunks: Any, length: int) -> list[Span]:
    """Places of chunks in so many token ids."""
    whole = isinstance(chunks, list | tuple) and all(
        isinstance(each, list | tuple) and len(each) == 2 and {*map(type, each)} == {int} for each in chunks
    )
    spans = [(each[0], each[1]) for each in chunks] if whole else []
    apart = all(before[1] <= after[0] for before, after in pairwise(spans))
    if not whole or not apart or not all(0 <= start < end <= length for start, end in spans):
        raise InvalidRequestError(
            f"chunks of token ids are pairs of start and end within the {length} of the prompt, ascending and apart",
            "chunks",
        )
    return spans
