"""Key-value recall: one long object, list or table, of which some keys are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headstart.training.retrieval import vocabulary
from headstart.training.retrieval.exercise import Exercise, Room, Turn

_OPENINGS = (
    "Look up values in the data below.",
    "The following data has one value for each key. Give the value of the key that is asked for.",
    "Extract the value that belongs to the given key from the data below.",
    "Here are keys and values. Learn them.",
    "Below is a long record. Find the right entry.",
    "Use the table to answer.",
    "Search the entries for the key and answer with its value.",
    "Each entry below has a key and a value. You will be asked about some of them.",
    "Read the data. Answer with the exact value.",
    "What follows is a store of keys and values.",
    "Data:",
    "",
)

_QUESTIONS = (
    'Key: "{k}". What is the value that belongs to this key?',
    'Extract the value of the key "{k}".',
    'What is the value for the key "{k}"?',
    "What is the value of {k}?",
    "Look up {k}.",
    "Which value is stored under {k}?",
    "Find the entry {k} and give its value.",
    'Return the value associated with "{k}".',
    "{k}?",
    "Give the value for {k}.",
    "Tell me what {k} maps to.",
    "What does the data say for {k}?",
    'get("{k}")',
)

_LEADS = (
    'The value for the key "{k}" is',
    "The value of {k} is",
    'The value associated with "{k}" is',
    "It is",
    "{k} has the value",
    'The value for "{k}" is: "',
)

_REVERSE_QUESTIONS = (
    "Which key has the value {v}?",
    'Find the key whose value is "{v}".',
    "Under which key is {v} stored?",
    "What is the key for the value {v}?",
    "{v} is the value of which key?",
    "Name the key that maps to {v}.",
)

_REVERSE_LEADS = ("The key is", 'The key is "', "The key with the value {v} is", "It is stored under")


@dataclass(frozen=True)
class _Format:
    """A way to write entries: one, what joins them, what surrounds them."""

    entry: str
    join: str = "\n"
    before: str = ""
    after: str = ""


_FORMATS = (
    _Format('"{k}": "{v}"', ", ", "{{", "}}"),
    _Format('"{k}": "{v}"', ",\n ", "{{", "}}"),
    _Format('  "{k}": "{v}"', ",\n", "{{\n", "\n}}"),
    _Format('{{"key": "{k}", "value": "{v}"}}', ",\n", "[", "]"),
    _Format('{{"key": "{k}", "value": "{v}"}}'),
    _Format("'{k}': '{v}'", ", ", "data = {{", "}}"),
    _Format("| {k} | {v} |", "\n", "| key | value |\n| --- | --- |\n"),
    _Format("{k},{v}", "\n", "key,value\n"),
    _Format("{k}\t{v}"),
    _Format("{k}: {v}"),
    _Format("- {k}: {v}"),
    _Format("- **{k}** -> {v}"),
    _Format("{k} = {v}", "\n", "[entries]\n"),
    _Format("The value of {k} is {v}.", " "),
    _Format("<entry><key>{k}</key><value>{v}</value></entry>"),
    _Format("set {k} to {v};"),
)

_KEY_STYLES: dict[str, vocabulary.Draw] = {
    "compound": vocabulary.compound,
    "uuid": vocabulary.uuid,
    "number": vocabulary.numbers(6),
    "name": lambda rng: f"{vocabulary.name(rng)} {rng.randrange(10, 100)}",
    "code": lambda rng: vocabulary.letters(2)(rng) + str(rng.randrange(1000, 10000)),
}


def key_value(room: Room) -> Exercise:
    """A context of nothing but entries."""
    entries, render = _entries(room, room.questions)
    rng = room.rng
    asked = [entries() for _ in range(room.questions)]
    units = [unit for unit, _ in asked]
    cost = max(4.0, room.ruler.tokens(units[0]) + 1)

    def more(tokens: float) -> list[str]:
        return [entries()[0] for _ in range(max(1, int(tokens / cost)))]

    turns = [turn for _, turn in rng.sample(asked, len(asked))]
    return Exercise(units, turns, rng.choice(_OPENINGS), "units", more, render)


def small_key_value(room: Room) -> Exercise:
    """One block of a few entries between paragraphs of prose."""
    rng = room.rng
    entries, render = _entries(room, room.questions)
    made = [entries() for _ in range(room.questions + rng.randint(2, 12))]
    asked = rng.sample(made, room.questions)
    return Exercise([render([unit for unit, _ in made])], [turn for _, turn in asked], rng.choice(_OPENINGS))


def _entries(room: Room, questions: int) -> tuple[Callable[[], tuple[str, Turn]], Callable[[Sequence[str]], str]]:
    """A source of entries, each with the question about it, and what writes them down together."""
    rng, unused = room.rng, room.unused
    form = rng.choice(_FORMATS)
    key_style = rng.choices(tuple(_KEY_STYLES), (5, 3, 1, 1, 1))[0]
    draw_key = _KEY_STYLES[key_style]
    # Where keys are UUIDs values often are too, as in the published task.
    value_kind = "uuid" if key_style == "uuid" and rng.random() < 0.6 else rng.choice(("number", "number", "word"))
    draw_value = vocabulary.value_drawer(rng, value_kind, room.tokens)
    reverse = rng.random() < 0.1
    question_form = rng.choice(_REVERSE_QUESTIONS if reverse else _QUESTIONS)
    lead_form = rng.choice(_REVERSE_LEADS if reverse else _LEADS)

    def draw() -> tuple[str, Turn]:
        key, value = unused(draw_key), unused(draw_value)
        question, lead = question_form.format(k=key, v=value), lead_form.format(k=key, v=value)
        return form.entry.format(k=key, v=value), Turn(question, key if reverse else value, lead)

    def render(units: Sequence[str]) -> str:
        return form.before.format() + form.join.join(units) + form.after.format()

    return draw, render
