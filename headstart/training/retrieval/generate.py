"""Retrieval documents by number: the same seed and index give the same document, in any process and order."""

import dataclasses
import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.errors import HeadstartError, did_you_mean
from headstart.training.data.bpe import DocumentEncoder
from headstart.training.documents import Span, TextDocument
from headstart.training.retrieval.assemble import write
from headstart.training.retrieval.chat import chat_document
from headstart.training.retrieval.copying import copying
from headstart.training.retrieval.counting import common_words, frequent_words
from headstart.training.retrieval.dialogs import dialog
from headstart.training.retrieval.exercise import Exercise, Room
from headstart.training.retrieval.factbook import factbook
from headstart.training.retrieval.fairytaleqa import fairytaleqa
from headstart.training.retrieval.haystack import Haystack
from headstart.training.retrieval.mapping import mapping
from headstart.training.retrieval.mixed import mixed
from headstart.training.retrieval.needles import NEEDLES
from headstart.training.retrieval.records import key_value
from headstart.training.retrieval.ruler import Ruler, TokenEstimate
from headstart.training.retrieval.variables import variables

EXERCISES: dict[str, Callable[[Room], Exercise]] = {
    **NEEDLES,
    "key_value": key_value,
    "variables": variables,
    "common_words": common_words,
    "frequent_words": frequent_words,
    "mapping": mapping,
    "copying": copying,
    "mixed": mixed,
    "fairytaleqa": fairytaleqa,
    "factbook": factbook,
}
KINDS = (*EXERCISES, "dialog")
"""All kinds of documents. The last three need files."""

DEFAULT_WEIGHTS: dict[str, float] = {
    "questions": 24,
    "mixed": 14,
    "needles_only": 12,
    "key_value": 12,
    "single": 4,
    "multi_key": 4,
    "multi_value": 6,
    "multi_query": 6,
    "variables": 6,
    "copying": 4,
    "mapping": 3,
    "passkey": 2,
    "common_words": 2,
    "frequent_words": 1,
}
"""Kinds that need no files; several questions on one context come most often."""

SMALLEST = 200
"""Tokens of the shortest document that can be asked for."""

_FROM_FILES = ("fairytaleqa", "factbook", "dialog")


def make(
    index: int,
    seed: int,
    *,
    length: int | Sequence[int],
    haystack: Haystack | str | Path | Sequence[str | Path],
    kinds: Mapping[str, float] | None = None,
    questions: int | Sequence[int] | None = None,
    chat: bool = False,
    train_context: float = 0.0,
    solved: float = 0.1,
    files: Mapping[str, str | Path | Sequence[str | Path]] | None = None,
    tokenizer: Tokenizer | str | Path | None = None,
) -> TextDocument:
    """Document number `index` of the endless source `seed`.

    The answers are trained, and the line end or mark that ends them; context and questions are only read.

    Args:
        index: which document.
        seed: of the source.
        length: tokens of the document, or the lowest and highest number of tokens, between which the logarithm is
            uniform. Documents come within 5% of it; those of the kind "dialog" are as long as the dialogue is.
        haystack: files as `headstart.training.data.readers.read_documents` takes them, read once per process, or a
            `Haystack`. Give training text only.
        kinds: weight of each kind, by documents (default `DEFAULT_WEIGHTS`).
        questions: how many, or the lowest and highest number, for the kinds that can ask several on one context
            (default 3 to 8 at 2 thousand tokens, 9 to 29 at 32 thousand).
        chat: turns of a conversation with the special tokens of `retrieval.chat`.
        train_context: the share of documents whose prose is trained too, but not what is hidden in it.
        solved: the share of documents that begin with a short task of the same kind and form, and its answer.
        files: by kind, "fairytaleqa": stories and questions, "factbook": facts, "dialog": dialogues.
        tokenizer: what `length` is measured with, or its directory (default: `TokenEstimate`, for a BPE of about 8
            thousand tokens with single digits, which is some four times as fast; leave a tenth of the context free).

    Raises:
        HeadstartError: an unknown kind, a length below `SMALLEST`, or a file that is missing or unreadable.
    """
    rng = random.Random(f"training-retrieval/{seed}/{index}")
    kind = _choose(rng, DEFAULT_WEIGHTS if kinds is None else kinds)
    paths = {key: _paths(value) for key, value in (files or {}).items()}
    name, metadata = f"retrieval-{seed}-{index}", {"source": "retrieval", "kind": kind}
    if kind == "dialog":
        messages = dialog(rng, paths.get(kind, ()))
        if chat:
            return chat_document(messages, name, metadata)
        return TextDocument(_written_dialog(messages), name, metadata)
    tokens = _between(rng, length, "length", SMALLEST)
    most = min(32, 8 + tokens // 1500)
    asked = rng.randint(max(3, most // 3), most) if questions is None else _between(rng, questions, "questions", 1)
    hay = Haystack.open(haystack)
    ruler = _ruler(str(tokenizer) if isinstance(tokenizer, Path) else tokenizer, hay)
    room = Room(rng, tokens, asked, hay, ruler, paths)
    form, train_prose = rng.getrandbits(32), rng.random() < train_context
    spans: tuple[Span, ...] = ()
    if tokens >= 4 * SMALLEST and kind not in _FROM_FILES and rng.random() < solved:
        # The same names are not used again, so each question has one answer in the whole document.
        first = dataclasses.replace(room, tokens=rng.randint(SMALLEST, min(600, tokens // 3)), questions=1)
        spans = write(EXERCISES[kind], first, form=form, chat=chat, train_prose=False)
        spans += () if chat else (Span("\n", False),)
        room.tokens -= first.tokens
    spans += write(EXERCISES[kind], room, form=form, chat=chat, train_prose=train_prose)
    return TextDocument(spans, name, metadata)


def describe(document: TextDocument, width: int = 1200) -> str:
    """A document for the eye: what is trained stands in ⟦ ⟧, and long stretches that are only read are shortened.

    Args:
        document: any document.
        width: characters of the longest stretch that is shown whole.
    """
    shown = [f"{document.id}  {dict(document.metadata)}  {len(document.text)} characters\n"]
    for span in document.spans:
        text = span.text
        if len(text) > width:
            half = width // 2
            text = f"{text[:half]}\n ... {len(text) - 2 * half} characters ...\n{text[-half:]}"
        shown.append(f"⟦{text}⟧" if span.trained else text)
    return "".join(shown)


def _written_dialog(messages: Sequence[tuple[str, str | Sequence[Span]]]) -> tuple[Span, ...]:
    spans = []
    for role, text in messages:
        if role == "user":
            spans.append(Span(f"User: {text}\nAssistant:", False))
        else:
            spans.append(Span(f" {text}\n"))
    return tuple(spans)


def _choose(rng: random.Random, kinds: Mapping[str, float]) -> str:
    for kind, weight in kinds.items():
        if kind not in KINDS:
            raise HeadstartError(f"there is no kind of retrieval document called {kind!r}{did_you_mean(kind, KINDS)}")
        if not 0 <= weight < math.inf:
            raise HeadstartError(f"the weight of {kind!r} is {weight}; it must be a number from 0 on")
    if not sum(kinds.values()):
        raise HeadstartError("kinds must give at least one kind a positive weight")
    return rng.choices(tuple(kinds), tuple(kinds.values()))[0]


def _between(rng: random.Random, given: int | Sequence[int], name: str, least: int) -> int:
    low, high = (given, given) if isinstance(given, int) else (given[0], given[-1])
    if low < least or high < low:
        raise HeadstartError(f"{name} must be a number from {least} on, or a lower and a higher one, not {given}")
    if name == "questions":
        return rng.randint(low, high)
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


@lru_cache(maxsize=4)
def _ruler(tokenizer: Tokenizer | str | None, haystack: Haystack) -> Ruler:
    if tokenizer is None:
        return Ruler(TokenEstimate(haystack.common_words))
    if isinstance(tokenizer, str):
        tokenizer = Tokenizer.from_directory(Path(tokenizer))
    encoder = DocumentEncoder(tokenizer)
    return Ruler(lambda text: len(encoder.encode(text)))


def _paths(given: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    return (str(given),) if isinstance(given, str | Path) else tuple(map(str, given))
