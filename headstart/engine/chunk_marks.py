"""Where the chunks of a prompt begin and end, told from the marks that stand before documents."""

import re
from collections.abc import Sequence

from headstart.checkpoints.tokenizer import Tokenizer
from headstart.engine.intake import Span
from headstart.errors import MethodError

MARK = (
    r"^(?:<(?:document|doc|source|passage|context)\b[^>\n]*>"
    r"|[^\w\n]*(?:Document|Doc|Source|Passage|Context)[^\w\n]*\d+[^\w\n]*) *\n"
)
"""A line that begins a document: `Document 3:`, `[Passage 2]`, `<document id="7">` and the like."""
_END = re.compile(r"\n *</(?:document|doc|source|passage|context)>")


def pattern(text: str, key: str) -> re.Pattern[str]:
    """A mark as a method's option gives it; `auto` is `MARK`.

    Raises:
        MethodError: it is no regular expression, or matches where nothing stands.
    """
    try:
        found = re.compile(MARK if text == "auto" else text, re.MULTILINE)
    except re.error as error:
        raise MethodError(f"{key}: mark is no regular expression ({error}): {text!r}") from None
    if found.match(""):
        raise MethodError(f"{key}: mark must not match an empty text, as {text!r} does")
    return found


def marked(token_ids: Sequence[int], tokenizer: Tokenizer, mark: re.Pattern[str]) -> list[Span]:
    """The documents behind marks, as places of tokens that lie wholly within them.

    A document ends where the next mark or a closing tag stands; the last one, if it is not closed, at its first empty
    line. A prompt whose tokens are not those of its text has none.
    """
    ids = list(token_ids)
    text = tokenizer.inner.decode(ids, skip_special_tokens=False)
    marks = list(mark.finditer(text))
    if not marks:
        return []
    encoding = tokenizer.inner.encode(text, add_special_tokens=False)
    if encoding.ids != ids:
        return []
    found: list[Span] = []
    at = 0
    for number, each in enumerate(marks):
        last = number == len(marks) - 1
        end = len(text) if last else marks[number + 1].start()
        closed = _END.search(text, each.end(), end)
        if closed:
            end = closed.start()
        elif last:
            blank = text.find("\n\n", each.end())
            end = blank if blank >= 0 else end
        # The same whether another document follows or the question.
        end = each.end() + len(text[each.end() : end].rstrip())
        while at < len(ids) and encoding.offsets[at][0] < each.end():
            at += 1
        first = at
        while at < len(ids) and encoding.offsets[at][1] <= end:
            at += 1
        if at > first:
            found.append((first, at))
    return found


def no_longer_than(spans: Sequence[Span], most: int) -> list[Span]:
    """The same parts, cut where they are longer than `most` tokens."""
    return [(at, min(at + most, end)) for start, end in spans for at in range(start, end, most)]
