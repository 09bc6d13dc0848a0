"""Many-shot mapping: examples in the context say which label belongs to what."""

import random
from contextlib import suppress
from functools import partial

from headstart.training.retrieval import vocabulary
from headstart.training.retrieval.exercise import Exercise, PoolExhausted, Room, Turn

_OPENINGS = (
    "Learn the labels from the examples.",
    "Each example below has a label. Label the new ones in the same way.",
    "Here are examples of inputs and their labels.",
    "Study how the items are sorted into classes.",
    "The examples show a rule. Follow it.",
    "Examples:",
    "Classify as in the examples.",
    "What belongs where? The list below shows it.",
    "Below are many labelled items.",
    "Use the labelled examples to label the last items.",
    "Every item has one label.",
    "",
)

_QUESTIONS = (
    "Which label belongs to {x}?",
    "What is the label of {x}?",
    "Label: {x}",
    "How is {x} labelled?",
    "Classify {x}.",
    "To which class does {x} belong?",
    "Give the label for {x}.",
    "{x}?",
    "What would the label of {x} be?",
    "Assign a label to {x}.",
    "Name the class of {x}.",
    "Sort {x} into its class.",
)

_LEADS = ("The label is", "The label of {x} is", "{x} is labelled", "It is")

_FORMS = (
    "{x} -> ",
    "{x} => ",
    "{x}: ",
    "{x} = ",
    "{x} | ",
    "{x}\t",
    "input: {x} label: ",
    "Input: {x}\nLabel: ",
    "Text: {x}\nClass: ",
    "item {x} belongs to ",
    "[{x}] ",
    "({x}, ",
    '{{"text": "{x}", "label": "',
    "Q: {x}\nA: ",
)

_ENDS = {"({x}, ": ")", '{{"text": "{x}", "label": "': '"}}'}


def mapping(room: Room) -> Exercise:
    """Items seen before are asked again (labels drawn at random), or new ones whose kind or noun decides the label."""
    rng = room.rng
    labels = _labels(room)
    rule = rng.choices(("none", "kind", "noun"), (3, 2 if len(labels) <= len(_CLASSES) else 0, 5))[0]
    if rule == "none":
        draws = [(vocabulary.phrase, label) for label in labels]
    elif rule == "kind":
        draws = list(zip(rng.sample(_CLASSES, len(labels)), labels, strict=True))
    else:
        adjectives, nouns = rng.randint(1, 2), rng.randint(1, 5)
        draws = [
            (partial(_about, room.unused(vocabulary.noun), adjectives), label) for label in labels for _ in range(nouns)
        ]

    def example(draw: vocabulary.Draw, label: str) -> tuple[str, str]:
        return room.unused(draw), label

    shown = [example(*draw) for draw in draws for _ in range(3 if rule == "kind" else 1)]
    rng.shuffle(shown)
    if rule == "none":
        shown += [example(*rng.choice(draws)) for _ in range(room.questions - len(shown))]
        asked = rng.sample(shown, room.questions)
    else:
        asked = [example(*rng.choice(draws)) for _ in range(room.questions)]
    form = rng.choice(_FORMS)
    end = _ENDS.get(form, "").format()

    def write(item: str, label: str) -> str:
        return form.format(x=item) + label + end

    units = [write(*pair) for pair in shown]

    def more(tokens: float) -> list[str]:
        cost, found = 2.0 + len(units[0]) / 3, []
        # A few nouns with one adjective each do not fill a long context, which then ends early.
        with suppress(PoolExhausted):
            for _ in range(max(1, int(tokens / cost))):
                found.append(write(*example(*rng.choice(draws))))
        return found

    if rng.random() < 0.5:
        # A space before the answer belongs to it, as in running text.
        turns = [Turn(form.format(x=item).rstrip(" "), label + end) for item, label in asked]
        return Exercise(units, turns, rng.choice(_OPENINGS), "units", more, continues=True)
    question, lead = rng.choice(_QUESTIONS), rng.choice(_LEADS)
    turns = [Turn(question.format(x=item), label, lead.format(x=item)) for item, label in asked]
    return Exercise(units, turns, rng.choice(_OPENINGS), "units", more)


_CLASSES = (
    lambda rng: f"{vocabulary.name(rng)} and {vocabulary.name(rng)}",
    lambda rng: f"{vocabulary.city(rng)} to {vocabulary.city(rng)}",
    vocabulary.phrase,
    vocabulary.numbers(5),
    lambda rng: f"to {vocabulary.verb(rng)} a {vocabulary.noun(rng)}",
    vocabulary.letters(5),
    lambda rng: f"{vocabulary.noun(rng)}, {vocabulary.noun(rng)}",
)


def _about(noun: str, adjectives: int, rng: random.Random) -> str:
    return " ".join([*(vocabulary.adjective(rng) for _ in range(adjectives)), noun])


def _labels(room: Room) -> list[str]:
    rng = room.rng
    count = rng.randint(2, 10)
    style = rng.randrange(6)
    if style == 0:
        return [str(number) for number in rng.sample(range(10), count)]
    if style == 1:
        return rng.sample("ABCDEFGHIJKLMNOPQRSTUVWXYZ", count)
    syllables = rng.randint(2, 3)
    draws = (vocabulary.noun, vocabulary.letters(4), lambda r: "".join(_syllable(r) for _ in range(syllables)))
    return [room.unused(draws[min(style - 2, 2)]) for _ in range(count)]


def _syllable(rng: random.Random) -> str:
    return rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou")
