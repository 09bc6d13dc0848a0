"""Records of the corpus as documents: fact sheets as text, stories as conversations, and talk about nothing."""

import random
from collections.abc import Iterator
from typing import Any

from headstart.training.documents import TextDocument
from headstart.training.retrieval.chat import chat_document

_ASKED = (
    "Tell me a story.",
    "Please tell me a story.",
    "Can you tell me a story?",
    "I would like to hear a story, please.",
    "Tell me a short story.",
    "Do you know a story?",
    "Write a story for me.",
)
_ASKED_FOR = (
    'Tell me the story "{}".',
    "Tell me a story called {}.",
    'Do you know the story "{}"?',
    'Write a story with the title "{}".',
    "Please tell me a story about {}.",
)
_GO_ON = (
    "Continue this story:\n\n{}",
    "How does this go on?\n\n{}",
    "{}\n\nWhat happens next?",
    "Here is the beginning of a story. Write what comes next.\n\n{}",
)
_MORE = ("Go on.", "What happened next?", "And then?", "Tell me more.", "Please go on.", "Continue.")

_NAME = "Headstart Base"
_TALK: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("Hello!", "Hi!", "Hello", "Hi there.", "Good morning!", "Good evening.", "Hey!", "Hello, how are you?"),
        (
            "Hello! Give me a text and ask me about it, or ask me for a story.",
            "Hello! I can answer questions about a text that you show me. What would you like to read?",
            "Hi! Show me a document and ask me something about it.",
        ),
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Are you a person?"),
        (
            f"I am {_NAME}, a small language model. I read long texts and answer questions about them.",
            f"My name is {_NAME}. I am a small language model that was made to read long documents.",
        ),
    ),
    (
        ("What can you do?", "How can you help me?", "What are you good at?", "Help", "What should I ask you?"),
        (
            "I can find facts in a long text, answer questions about a story, copy a passage, and tell stories.",
            "Give me a text of up to thirty thousand words or so and ask what it says. I can also tell a story.",
        ),
    ),
    (
        ("Thank you!", "Thanks.", "Thank you very much.", "Great, thanks!", "That helps, thank you."),
        ("You are welcome!", "You are welcome. Is there anything else?", "With pleasure!"),
    ),
    (
        ("Goodbye!", "Bye.", "See you.", "Good night."),
        ("Goodbye!", "Goodbye! Come back when you have something to read."),
    ),
    (
        ("What is the weather today?", "What time is it?", "What is in the news?", "Can you search the web?"),
        ("I do not know that: I only know what stands in the text that you give me.",),
    ),
    (
        ("Are you always right?", "Do you make mistakes?", "Can I trust you?", "How good are you?"),
        (
            "No. I am very small, and I make mistakes. Look at the text to check what I say.",
            "I am a small model and often wrong. Please check my answers against the text.",
        ),
    ),
)


def story(record: dict[str, Any], id: str) -> Iterator[TextDocument]:
    """A story of FairytaleQA's training part, or of African Storybook: as text, and as two conversations."""
    if record.get("split", "train") != "train":
        return
    title = str(record.get("title") or record.get("story") or "").replace("-", " ").strip()
    text = "\n\n".join(record["sections"]) if "sections" in record else record["text"]
    rng = random.Random(f"stories/{id}")
    yield TextDocument.of(f"{title.capitalize()}\n\n{text}", f"{id}-text", source="stories")
    paragraphs = text.split("\n\n") if text.count("\n\n") > 2 else text.split("\n")
    asked = rng.choice(_ASKED_FOR).format(title) if title and rng.random() < 0.7 else rng.choice(_ASKED)
    yield chat_document(_told(asked, paragraphs, rng), f"{id}-told", {"source": "conversations"})
    if len(paragraphs) > 3:
        cut = rng.randint(1, len(paragraphs) // 2)
        opening = rng.choice(_GO_ON).format("\n\n".join(paragraphs[:cut]))
        yield chat_document(_told(opening, paragraphs[cut:], rng), f"{id}-continued", {"source": "conversations"})


def story_text(record: dict[str, Any], id: str) -> TextDocument | None:
    """A story of FairytaleQA's validation or test part, which training must not see."""
    if record.get("split") == "train":
        return None
    return TextDocument.of("\n\n".join(record["sections"]), id, source="stories")


def talk(index: int, seed: int) -> TextDocument:
    """A short conversation about nothing in particular."""
    rng = random.Random(f"talk/{seed}/{index}")
    turns = rng.sample(_TALK, rng.randint(1, 3))
    messages = [
        (role, rng.choice(part)) for pair in turns for role, part in zip(("user", "assistant"), pair, strict=True)
    ]
    return chat_document(messages, f"talk-{seed}-{index}", {"source": "conversations"})


def facts(record: dict[str, Any], id: str) -> TextDocument:
    """A country's fact sheet as text."""
    lines = [str(record["name"])]
    for chapter, content in record["facts"].items():
        lines.append(f"\n{chapter}")
        lines.extend(_lines(content, ""))
    return TextDocument.of("\n".join(lines), id, source="factbook", title=str(record["name"]))


def _lines(content: Any, name: str) -> Iterator[str]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _lines(value, f"{name}, {key}" if name else str(key))
    elif isinstance(content, list):
        for value in content:
            yield from _lines(value, name)
    else:
        yield f"{name}: {content}"


def _told(asked: str, paragraphs: list[str], rng: random.Random) -> list[tuple[str, str]]:
    """A conversation in which a story is told, in one go or in parts."""
    messages = [("user", asked)]
    while paragraphs:
        size = len(paragraphs) if rng.random() < 0.5 else rng.randint(1, len(paragraphs))
        messages.append(("assistant", "\n\n".join(paragraphs[:size]).strip()))
        paragraphs = paragraphs[size:]
        if paragraphs:
            messages.append(("user", rng.choice(_MORE)))
    return messages
