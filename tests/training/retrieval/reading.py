"""An independent reader of generated documents: it finds facts in a context by its own regular expressions."""

import json
import random
import re
from dataclasses import dataclass

from headstart.training.documents import TextDocument
from headstart.training.retrieval import Haystack, make

UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
BEFORE = "Answer the question that stands before the text."
COMPOUND = r"[a-z]+-[a-z]+"
KEY = rf"(?:{UUID}|{COMPOUND}|the [a-z]+ of [A-Z][a-z]+|the [a-z]+ [a-z]+|[A-Z][a-z]+ from [A-Z][a-z]+)"
VALUE = rf"(?:{UUID}|\d+|{COMPOUND}|[a-z]+ [a-z]+)"

_WORDS = re.findall(
    "[a-z]+",
    "time old man house went good little day came long night hand great door young woman morning father looked king "
    "road water world voice white garden thought heart light stood mother",
)


def prose(paragraphs: int = 600) -> Haystack:
    """Made-up books of sentences of a few common words, which name no key."""
    rng = random.Random(5)

    def sentence() -> str:
        words = " ".join(rng.choices(_WORDS, k=rng.randint(4, 16)))
        return words[0].upper() + words[1:] + rng.choice(("", ", he said")) + rng.choice("...!?")

    def paragraph() -> str:
        return " ".join(sentence() for _ in range(rng.randint(1, 6)))

    return Haystack("\n\n".join(paragraph() for _ in range(paragraphs)) for _ in range(3))


@dataclass(frozen=True)
class Asked:
    """A question of a document: everything before it, the words that ask, and the answer."""

    context: str
    question: str
    answer: str


def turns(document: TextDocument) -> list[Asked]:
    """The questions of a document. The context is what stands before the first answer."""
    found: list[Asked] = []
    spans = list(document.spans)
    context = None
    before = ""
    for span in spans:
        if span.trained and span.text != "<|end|>":
            context = context if context is not None else before
            # The question of a single one may stand before the context alone.
            asked = before[:700] if BEFORE in before else before if found else before[-700:]
            found.append(Asked(context, asked.replace('\\"', '"'), _without_end(span.text)))
            before = ""
        elif not span.trained:
            before += span.text
    return found


def _without_end(answer: str) -> str:
    for end in ('"}\n', "</answer>\n"):
        if answer.endswith(end):
            answer = answer.removesuffix(end)
            return json.loads(f'"{answer}"').strip() if end == '"}\n' else answer.strip()
    return answer.strip()


def pattern(template: str, **groups: str) -> re.Pattern[str]:
    """A template with `{x}` as a regular expression with named groups, each the first time it stands there."""
    parts = re.split(r"\{(\w+)\}", template)
    seen: set[str] = set()
    text = ""
    for number, part in enumerate(parts):
        if number % 2 == 0:
            text += re.escape(part)
        elif part in seen:
            text += f"(?P={part})"
        else:
            seen.add(part)
            text += f"(?P<{part}>{groups[part]})"
    start = r"(?<![\w-])" if parts[0] == "" else ""
    end = r"(?![\w-])" if parts[-1] == "" else ""
    return re.compile(start + text + end)


def last_match(patterns: list[re.Pattern[str]], text: str) -> re.Match[str]:
    """Of all the matches the one that ends last, and of these the longest."""
    found = [match for each in patterns for match in each.finditer(text)]
    assert found, f"no question in {text[-300:]!r}"
    return max(found, key=lambda match: (match.end(), match.end() - match.start()))


def bare(answer: str, leads: list[re.Pattern[str]]) -> str:
    """The answer without the words of a full sentence around it."""
    for lead in leads:
        match = lead.match(answer)
        if match and answer.endswith("."):
            return answer[match.end() : -1].strip()
    return answer


def split_list(answer: str) -> list[str]:
    """The items of "a, b, and c"."""
    return [item for item in re.split(r",? and |, ", answer) if item]


def documents(kind: str, count: int, haystack: Haystack, **options: object) -> list[TextDocument]:
    """Documents of one kind, the second half as chats."""
    settings = {"length": (300, 3000), "haystack": haystack, "kinds": {kind: 1.0}, "solved": 0.0} | options
    return [make(index, 7, chat=index >= count // 2, **settings) for index in range(count)]  # type: ignore[arg-type]
