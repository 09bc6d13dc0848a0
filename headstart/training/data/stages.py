"""Preparing documents: stages from documents to documents that count what they drop, and why."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from headstart.training.data.bpe import SpecialSpan
from headstart.training.documents import TextDocument

Drops = Counter[str]
"""Documents left out, by reason."""

Stage = Callable[[Iterable[TextDocument], Drops], Iterator[TextDocument]]
"""Documents in, documents out, one at a time."""

_HEADING = re.compile(r"^#{1,6}[ \t]+", re.MULTILINE)
_RULE = re.compile(r"^[ \t]*(?:[*_-][ \t]*){3,}$", re.MULTILINE)
# Marks around words, not the signs in 2*3 or snake_case.
_EMPHASIS = re.compile(r"(?<!\w)([*_]{1,3})(?=\S)(.+?)(?<=\S)\1(?!\w)", re.DOTALL)
_SPACES = re.compile(r"[ \t\u00a0]+")
_TRAILING = re.compile(r"[ \t\u00a0]+$", re.MULTILINE)


def normalise(
    *, unicode: str | None = "NFC", spaces: bool = False, blank_lines: int | None = 1, markdown: bool = False
) -> Stage:
    """Tidy the text. Line ends become `\\n`, and space at the ends of lines and of the text goes away.

    Args:
        unicode: Unicode normal form; None leaves the characters.
        spaces: runs of spaces and tabs become one space. Not for code.
        blank_lines: most empty lines in a row; None leaves them.
        markdown: take off the marks of headings, emphasis and rules, keeping the words.
    """

    def tidy(text: str) -> str:
        text = text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
        if unicode is not None:
            text = unicodedata.normalize(unicode, text)  # type: ignore[arg-type]
        if markdown:
            text = _EMPHASIS.sub(r"\2", _HEADING.sub("", _RULE.sub("", text)))
        if spaces:
            text = _SPACES.sub(" ", text)
        text = _TRAILING.sub("", text)
        if blank_lines is not None:
            text = re.sub(rf"\n{{{blank_lines + 2},}}", "\n" * (blank_lines + 1), text)
        return text

    def stage(documents: Iterable[TextDocument], drops: Drops) -> Iterator[TextDocument]:
        for document in documents:
            # In a document of several spans, space at their ends may divide them.
            trim = str.strip if len(document.spans) == 1 else str
            spans = tuple(
                span if isinstance(span, SpecialSpan) else replace(span, text=trim(tidy(span.text)))
                for span in document.spans
            )
            if any(span.text for span in spans):
                yield replace(document, spans=spans)
            else:
                drops["empty"] += 1

    return stage


def length(*, min_characters: int = 0, max_characters: int | None = None) -> Stage:
    """Drop documents that are shorter or longer."""

    def stage(documents: Iterable[TextDocument], drops: Drops) -> Iterator[TextDocument]:
        for document in documents:
            size = sum(len(span.text) for span in document.spans)
            if size < min_characters:
                drops["too short"] += 1
            elif max_characters is not None and size > max_characters:
                drops["too long"] += 1
            else:
                yield document

    return stage


def keep_where(
    field: str, *, values: Sequence[str | int | float] = (), without: Sequence[str | int | float] = ()
) -> Stage:
    """Keep documents whose metadata field is one of `values` (when there are any) and none of `without`."""

    def stage(documents: Iterable[TextDocument], drops: Drops) -> Iterator[TextDocument]:
        for document in documents:
            value = document.metadata.get(field)
            if (values and value not in values) or value in without:
                drops[f"other {field}"] += 1
            else:
                yield document

    return stage


def fields(*, keep: Sequence[str] | None = None, rename: Mapping[str, str] | None = None) -> Stage:
    """Keep only some fields of the metadata, and call them by other names."""
    names = dict(rename or {})

    def stage(documents: Iterable[TextDocument], drops: Drops) -> Iterator[TextDocument]:
        for document in documents:
            kept = {key: value for key, value in document.metadata.items() if keep is None or key in keep}
            yield replace(document, metadata={names.get(key, key): value for key, value in kept.items()})

    return stage


def tagged(tags: Mapping[str, str | int | float]) -> Stage:
    """Add the same metadata to every document."""

    def stage(documents: Iterable[TextDocument], drops: Drops) -> Iterator[TextDocument]:
        for document in documents:
            yield replace(document, metadata={**document.metadata, **tags})

    return stage


def apply_stages(documents: Iterable[TextDocument], stages: Iterable[Stage], drops: Drops) -> Iterator[TextDocument]:
    """The documents through all stages."""
    for stage in stages:
        documents = stage(documents, drops)
    yield from documents
