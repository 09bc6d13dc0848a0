"""Copying: a paragraph or a list of the context is repeated word for word."""

import re

from headstart.training.retrieval import vocabulary
from headstart.training.retrieval.exercise import Exercise, Room, Turn
from headstart.training.retrieval.haystack import cut

_OPENINGS = (
    "Read the text. You will be asked to repeat parts of it.",
    "Copy exactly what is asked for from the text below.",
    "Here is a text. Remember it word for word.",
    "The following is to be repeated in part.",
    "Read carefully, for you will have to quote it.",
    "Learn this text by heart.",
    "Below is a document.",
    "Quote from the text.",
    "Text:",
    "Keep the exact words in mind.",
    "Everything you need is in the text below.",
    "",
)

_PARAGRAPH = (
    'Repeat the paragraph that starts with "{s}".',
    'Which paragraph begins with "{s}"? Write it out in full.',
    'Copy the paragraph beginning with "{s}" word for word.',
    'Quote the whole paragraph that begins "{s}".',
    'Find the paragraph starting "{s}" and write it again.',
    'How does the paragraph go that starts with "{s}"?',
    'Give the paragraph whose first words are "{s}".',
    'Continue until the end of the paragraph, from its first words on: "{s}"',
    'Write out the paragraph "{s} ..." exactly.',
    'Recite the paragraph that opens with "{s}".',
    'I want to read again the paragraph that starts "{s}".',
    'Repeat from "{s}" to the end of that paragraph.',
)

_NEXT = (
    'Repeat the paragraph that follows the one starting with "{s}".',
    'What comes after the paragraph that begins with "{s}"? Write out the next paragraph.',
    'Copy the paragraph right after the one that starts "{s}".',
    'Which paragraph follows the one whose first words are "{s}"?',
    'Quote the paragraph that comes next after "{s} ...".',
)

_WHOLE = (
    "Repeat the text above.",
    "Write the text again, word for word.",
    "Copy the whole text.",
    "Recite all of it.",
    "Say it once more.",
    "Repeat everything.",
    "Please repeat the document exactly.",
    "Quote the text in full.",
)

_LIST = (
    'Repeat the list called "{k}".',
    "What is in the list {k}?",
    "Copy the list {k} in its order.",
    "Write out the list {k}.",
    "Which words are in the list {k}?",
    'Give all the items of "{k}".',
    "Recite {k}.",
    "Quote the list {k} word for word.",
    "Read me the list {k} again.",
    "List {k}?",
    "Name the items of the list {k} in order.",
    "Find the list {k} and repeat it.",
)

_LIST_UNITS = ("List {k}: {w}.", "{k}: {w}", "The list {k} reads: {w}.", "[{k}] {w}", "* {k} = {w}", "{k} holds {w}.")


def copying(room: Room) -> Exercise:
    """One of: paragraphs by their first words, the paragraph after, named lists, or the whole (short) text."""
    kind = room.rng.choices((_paragraphs, lists, _whole), (5, 3, 2 if room.tokens < 5000 else 0))[0]
    return kind(room) or lists(room)


def _paragraphs(room: Room) -> Exercise | None:
    rng = room.rng
    # The paragraphs are quoted once more as answers, so the text gets less than the document.
    text = cut(room.prose, room.ruler.chars(0.6 * room.tokens, room.prose))
    paragraphs = [part for part in text.split("\n\n") if part.strip()]
    budget = len(text) // 2
    places = [n for n, part in enumerate(paragraphs) if 60 <= len(part) <= 800 and n and part.count("\n") == 0]
    rng.shuffle(places)
    turns: list[Turn] = []
    quoted: list[str] = []
    for place in places:
        words = paragraphs[place].split(" ")
        start = " ".join(words[: rng.randint(4, 7)])
        following = rng.random() < 0.2
        target = place + 1 if following else place
        if target >= len(paragraphs) - 1 or not 40 <= len(paragraphs[target]) <= 1000 or len(start) < 15:
            continue
        if text.count(start) != 1 or '"' in start or len(paragraphs[target]) > budget:
            continue
        budget -= len(paragraphs[target])
        quoted += paragraphs[place : target + 1]
        turns.append(Turn(rng.choice(_NEXT if following else _PARAGRAPH).format(s=start), paragraphs[target]))
        if len(turns) == room.questions:
            break
    if not turns:
        return None
    # The quoted paragraphs come whole and in order; the others fill what room is left.
    chosen = {part: None for part in paragraphs if part in set(quoted)}
    return _in_order(room, paragraphs, list(chosen), turns)


def _in_order(room: Room, paragraphs: list[str], quoted: list[str], turns: list[Turn]) -> Exercise:
    """The run of paragraphs as one unit, and what follows it in the book as filler."""
    last = max(number for number, part in enumerate(paragraphs) if part in set(quoted))
    run = "\n\n".join(paragraphs[: last + 1])
    done = len(run)

    def more(tokens: float) -> list[str]:
        nonlocal done
        rest = room.prose[done:].lstrip()
        part = cut(rest, room.ruler.chars(tokens, rest))
        done = len(room.prose) - len(rest) + len(part)
        return [part] if part else []

    return Exercise([run], turns, room.rng.choice(_OPENINGS), "units", more, "\n\n".join)


def lists(room: Room) -> Exercise:
    rng = room.rng
    assert room.prose  # drawn before the names of the lists
    form = rng.choice(_LIST_UNITS)
    asked = max(1, min(room.questions, room.tokens // 150))
    units, turns = [], []
    for _ in range(asked + rng.randint(0, asked)):
        key = room.unused(vocabulary.compound)
        draw = rng.choice((vocabulary.noun, vocabulary.word, vocabulary.name, vocabulary.city, vocabulary.numbers(3)))
        words = ", ".join(draw(rng) for _ in range(rng.randint(3, 9)))
        units.append(form.format(k=key, w=words))
        if len(turns) < asked:
            turns.append(Turn(rng.choice(_LIST).format(k=key), words, f"The list {key} reads:"))
    rng.shuffle(units)
    return Exercise(units, turns, rng.choice(_OPENINGS))


def _whole(room: Room) -> Exercise:
    rng = room.rng
    # Text and copy are equally long; the words around them take about 40 tokens.
    text = re.sub(r"\n{3,}", "\n\n", cut(room.prose, room.ruler.chars(room.tokens / 2 - 20, room.prose)))
    return Exercise([text], [Turn(rng.choice(_WHOLE), text)], "", "units")
