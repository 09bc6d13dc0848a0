"""Text from code as Markdown: nothing in it is taken for markup, and keys of methods become links."""

import re
from collections.abc import Callable, Sequence

_CODE_SPAN = re.compile(r"(`[^`]+`)")
_MARKUP = re.compile(r"[\\`*_\[\]{}|#!<&]|^[-+>:=~]|^\d+[.)](?= |$)")
"""What means something in Markdown, everywhere or at the beginning of a line."""


def prose(text: str, link: Callable[[str], str | None] = lambda word: None) -> str:
    """A text on one line; what stands in backticks stays code.

    Args:
        text: as it stands in a docstring or a card.
        link: what a word in backticks leads to; None is no link.
    """
    parts = _CODE_SPAN.split(" ".join(text.split()))
    return "".join(_code_span(part, link) if at % 2 else _plain(part) for at, part in enumerate(parts))


def escape(text: str) -> str:
    """The same characters on one line, none of which means anything."""
    return _plain(" ".join(text.split()))


def _plain(text: str) -> str:
    return _MARKUP.sub(lambda found: f"{found[0][:-1]}&#{ord(found[0][-1])};", text)


def _code_span(span: str, link: Callable[[str], str | None]) -> str:
    target = link(span.strip("`"))
    return span if target is None else f"[{span}]({target})"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, figures_from: int | None = None) -> str:
    """A table of cells that are Markdown already.

    Args:
        headers: of the columns.
        rows: cells by row.
        figures_from: columns from this one on are aligned to the right.
    """
    right = len(headers) if figures_from is None else figures_from
    rules = ["--:" if at >= right else "---" for at in range(len(headers))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headers, rules, *rows)) + "\n"


def fenced(text: str, language: str = "") -> str:
    """A block of code."""
    return f"```{language}\n{text}\n```\n"
