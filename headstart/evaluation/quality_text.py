"""What a model makes of real text: bits per byte by position, and BLiMP's minimal pairs."""

import json
import lzma
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from random import Random

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.engine.llm import LLM
from headstart.engine.params import SamplingParams
from headstart.errors import HeadstartError
from headstart.evaluation.tasks.base import MissingDataError, TooShortError
from headstart.texts import wild_wood

_SMALLEST_BUCKET = 256
_SMALLEST_WINDOW = 4
# Tokens are rarely longer than this on average, so that this much text holds a window.
_CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True)
class Window:
    """Consecutive tokens of one document.

    Attributes:
        token_ids: with the beginning-of-text token in front where the tokenizer sets one.
        sizes: bytes of text per token; 0 for that first one.
    """

    token_ids: list[int]
    sizes: list[int]


def read_documents(path: Path) -> list[str]:
    """Documents of a file: a JSONL file with `text` a line, or a text file, which is one document; plain or xz.

    Raises:
        HeadstartError: the file cannot be read, or a line of it; the sentence has its number.
    """
    suffixes = [suffix for suffix in path.suffixes if suffix != ".xz"]
    number = 0
    try:
        with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8") as file:
            if not suffixes or suffixes[-1] not in (".jsonl", ".json"):
                found = [file.read()]
            else:
                found = []
                for line in file:
                    number += 1
                    if line.strip():
                        found.append(json.loads(line)["text"])
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise HeadstartError(f"{path} cannot be read: {error}") from None
    except (ValueError, KeyError, TypeError):
        raise HeadstartError(f"line {number} of {path} is no JSON object with a field 'text'") from None
    found = [text for text in found if isinstance(text, str) and text.strip()]
    if not found:
        raise HeadstartError(f"{path} holds no text")
    return found


def held_out_documents(path: Path | None, data: Path | None) -> tuple[str, list[str]]:
    """What the text is called, and its documents: a user's file, the held-out books, or the story of the package."""
    books = None if data is None else data / "text" / "books-val.jsonl.xz"
    if path is None and (books is None or not books.is_file()):
        story = wild_wood()
        return f"{story.title} ({story.author}, {story.year})", [story.text]
    chosen = path or books
    assert chosen is not None
    return chosen.name, read_documents(chosen)


def windows(tokenizer: Tokenizer, documents: Sequence[str], length: int, count: int) -> list[Window]:
    """Up to `count` windows of `length` tokens: the first of each document, then the second of each, and so on.

    Documents with less are used whole when no document has a full window.

    Raises:
        TooShortError: no document has four tokens.
    """
    reach = -(-count // len(documents)) * length * _CHARACTERS_PER_TOKEN

    @cache
    def cut(at: int) -> list[Window]:
        return _cut(tokenizer, documents[at][:reach], length)

    def take(full: bool) -> Iterator[Window]:
        place, more = 0, True
        while more:
            more = False
            for at in range(len(documents)):
                found = [window for window in cut(at) if len(window.token_ids) == length or not full]
                more = more or place + 1 < len(found)
                if place < len(found):
                    yield found[place]
            place += 1

    chosen = list(islice(take(full=True), count)) or list(islice(take(full=False), count))
    if not chosen:
        raise TooShortError("the text has not even four tokens: there is nothing to predict")
    return chosen


def random_windows(vocab_size: int, length: int, count: int, seed: int) -> list[Window]:
    """Windows of random tokens, for a model without a tokenizer."""
    random = Random(f"headstart evaluation random tokens {seed}")
    return [Window([random.randrange(vocab_size) for _ in range(length)], [0] * length) for _ in range(count)]


def _cut(tokenizer: Tokenizer, text: str, length: int) -> list[Window]:
    """A text's consecutive windows; the last may be shorter."""
    encoding = tokenizer.inner.encode(text, add_special_tokens=False)
    starts = [0, *(start for start, _ in encoding.offsets[1:]), len(text)]
    sizes = [len(text[a:b].encode()) for a, b in pairwise(starts)]
    opening = [token for token in tokenizer.encode("a")[:1] if token == tokenizer.bos_token_id]
    step = length - len(opening)
    return [
        Window(opening + encoding.ids[at : at + step], [0] * len(opening) + sizes[at : at + step])
        for at in range(0, len(encoding.ids), step)
        if len(encoding.ids) - at >= _SMALLEST_WINDOW
    ]


def token_logprobs(llm: LLM, prompts: Sequence[list[int]]) -> list[list[float]]:
    """Log-probability in nats of each token but the first, given those before it, under the methods in force."""
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    found = []
    for result in llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params):
        assert result.prompt_logprobs is not None
        pairs = zip(result.prompt_token_ids[1:], result.prompt_logprobs[1:], strict=True)
        found.append([entry[token].logprob for token, entry in pairs if entry is not None])
    return found


def tail_bits(llm: LLM, window: Window, length: int, count: int) -> float:
    """Bits per byte of a window's last `count` tokens, of which the model reads only the last `length`."""
    (logprobs,) = token_logprobs(llm, [window.token_ids[-length:]])
    return -sum(logprobs[-count:]) / math.log(2) / max(1, sum(window.sizes[-count:]))


def bucket_edges(length: int) -> list[int]:
    """Positions 0, 256, 512, 1024, ... up to `length`."""
    edges = [0]
    step = _SMALLEST_BUCKET
    while step < length:
        edges.append(step)
        step *= 2
    return [*edges, length]


def bits_and_bytes(window: Window, logprobs: Sequence[float], length: int) -> list[tuple[float, int]]:
    """Bits and bytes of a window's predicted tokens in each position bucket."""
    edges = bucket_edges(length)
    found = []
    for low, high in pairwise(edges):
        places = range(max(1, low), min(high, len(window.token_ids)))
        bits = -sum(logprobs[place - 1] for place in places) / math.log(2)
        found.append((bits, sum(window.sizes[place] for place in places)))
    return found


@dataclass(frozen=True)
class MinimalPair:
    """A sentence, and the same with one thing wrong.

    Attributes:
        paradigm: what is wrong, one of BLiMP's 67.
        field: the part of grammar that it belongs to.
    """

    good: str
    bad: str
    paradigm: str
    field: str


def blimp_pairs(data: Path | None, per_paradigm: int, seed: int) -> list[MinimalPair]:
    """BLiMP (arXiv 1912.00582): so many pairs of each of the 67 paradigms.

    Raises:
        MissingDataError: the data is not there.
    """
    path = None if data is None else data / "eval" / "blimp.jsonl.xz"
    if path is None or not path.is_file():
        raise MissingDataError(
            f"BLiMP is not here: {path or 'no data directory is known'}; give the directory that holds "
            "eval/blimp.jsonl.xz with --data or HEADSTART_DATA"
        )
    paradigms: dict[str, list[MinimalPair]] = {}
    for entry in _entries(path):
        pair = MinimalPair(entry["sentence_good"], entry["sentence_bad"], entry["UID"], entry["field"])
        paradigms.setdefault(pair.paradigm, []).append(pair)
    for name, found in paradigms.items():
        Random(f"headstart evaluation blimp {name} {seed}").shuffle(found)
    # Whatever the number, the first pairs are the same ones.
    return [
        paradigms[name][place]
        for place in range(per_paradigm)
        for name in sorted(paradigms)
        if place < len(paradigms[name])
    ]


def _entries(path: Path) -> Iterator[dict[str, str]]:
    with lzma.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def prefers_good(llm: LLM, pairs: Sequence[MinimalPair]) -> list[bool]:
    """For each pair, whether the model gives the good sentence the higher summed log-probability.

    Sentences follow the beginning-of-text token, or the end-of-text token where a tokenizer sets none.
    """
    tokenizer = llm.tokenizer
    opening = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    prompts = []
    for pair in pairs:
        for sentence in (pair.good, pair.bad):
            ids = tokenizer.encode(sentence, add_special_tokens=False)
            prompts.append(ids if opening is None else [opening, *ids])
    sums = [sum(values) for values in token_logprobs(llm, prompts)]
    return [good > bad for good, bad in zip(sums[::2], sums[1::2], strict=True)]
