"""The text of the stopgap model: public-domain children's books, cleaned, and conversations cut from them."""

import json
import lzma
import random
import re
from collections.abc import Iterator
from pathlib import Path

AUTHORS = (
    "L. Frank Baum",
    "Edith Nesbit",
    "Nesbit, Edith",
    "Lucy Maud Montgomery",
    "Frances Hodgson Burnett",
    "J. M. Barrie",
    "Lewis Carroll",
    "Gertrude Chandler Warner",
    "George MacDonald",
    "Horatio Alger",
    "Abbie Farwell Brown",
)
TITLES = ("The Jungle Book", "The Happy Prince & Other Tales", "A Christmas Carol", "Treasure Island")

USER, ASSISTANT, END, TEXT_END = "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"
SPECIAL_TOKENS = (TEXT_END, USER, ASSISTANT, END)

_OPENINGS = (
    "Tell me a story.",
    "Please tell me a story.",
    "Can you tell me a story?",
    "Hello!",
    "I would like to hear a story, please.",
)
_OPENINGS_ABOUT = ("Tell me a story about the {}.", "Tell me about the {}.", "Do you know a story about the {}?")
_FOLLOWS = ("Go on.", "What happened next?", "And then?", "Tell me more.", "Please go on.", "Continue.")
_FOLLOWS_ABOUT = ("What about the {}?", "And the {}?", "Tell me more about the {}.")
_NOUN = re.compile(r"\b(?:the|a|an) ([a-z]{4,9})(?= (?:was|had|is|in|of|and|who|that|with|came|said)|[.,;!?])")


def books(path: Path) -> Iterator[dict]:
    """The records of a `.jsonl.xz` file of books."""
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def clean(text: str) -> str:
    """Plain paragraphs: no heading marks, no emphasis marks, at most one empty line in a row."""
    text = re.sub(r"^#+ *", "", text, flags=re.MULTILINE)
    text = text.replace("*", "").replace("_", "").replace("\t", " ")
    text = re.sub(r"[ \u00a0]+", " ", text)
    return re.sub(r"\n{2,}", "\n\n", text).strip()


def training_books(data: Path) -> list[str]:
    """The cleaned texts of the chosen books of `books-core`."""
    found = [
        clean(book["text"])
        for book in books(data / "text" / "books-core.jsonl.xz")
        if book["author"] in AUTHORS or book["title"] in TITLES
    ]
    if not found:
        raise SystemExit(f"no book of the chosen authors in {data / 'text' / 'books-core.jsonl.xz'}")
    return found


def held_out_books(data: Path, characters: int = 100_000) -> dict[str, str]:
    """Title to cleaned text of `books-val` (other authors), the first `characters` of each."""
    return {book["title"]: clean(book["text"])[:characters] for book in books(data / "text" / "books-val.jsonl.xz")}


def conversation(paragraphs: list[str], rng: random.Random) -> str:
    """One conversation in the chat template: the user asks for a story and for more, a book answers."""
    turns = []
    at = rng.randrange(max(1, len(paragraphs) - 12))
    for turn in range(rng.randint(1, 4)):
        answer, wanted = "", rng.randint(150, 600)
        while at < len(paragraphs) and len(answer) < wanted:
            answer += ("\n\n" if answer else "") + paragraphs[at]
            at += 1
        if not answer:
            break
        turns.append(f"{USER}{_request(answer, first=turn == 0, rng=rng)}{END}{ASSISTANT}{answer}{END}")
    return "".join(turns) + TEXT_END


def _request(answer: str, *, first: bool, rng: random.Random) -> str:
    """What a user could have said before `answer`; it names something in the answer three times in four."""
    nouns = _NOUN.findall(answer)
    if nouns and rng.random() < 0.75:
        return rng.choice(_OPENINGS_ABOUT if first else _FOLLOWS_ABOUT).format(rng.choice(nouns))
    return rng.choice(_OPENINGS if first else _FOLLOWS)


def documents(texts: list[str], *, conversations: float, seed: int) -> list[str]:
    """The books as documents, followed by `conversations` times as many characters of conversation."""
    rng = random.Random(seed)
    plain = [text + TEXT_END for text in texts]
    split = [[p for p in text.split("\n\n") if len(p) > 20] for text in texts]
    weights = [len(text) for text in texts]
    chats: list[str] = []
    left = int(conversations * sum(weights))
    while left > 0:
        chats.append(conversation(rng.choices(split, weights)[0], rng))
        left -= len(chats[-1])
    return [*plain, "".join(chats)]
