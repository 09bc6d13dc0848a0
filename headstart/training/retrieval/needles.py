"""Needles in a haystack: facts between sentences of prose, of noise, or of other facts alike."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headstart.training.retrieval import needle_words, vocabulary
from headstart.training.retrieval.exercise import Exercise, Room, Turn


@dataclass(frozen=True)
class _Fact:
    """`attribute` of `key` is each of `values`, in the order of the text."""

    attribute: str
    key: str
    values: tuple[str, ...]

    def fill(self, template: str, value: str = "") -> str:
        return template.format(a=self.attribute, k=self.key, v=value)


class _Facts:
    """Draws facts of one document: no key and no value twice, one form for all of them or one for each."""

    def __init__(self, room: Room, uniform: bool) -> None:
        self._room = room
        self._statement = room.rng.choice(needle_words.STATEMENTS) if uniform else None
        self._form = _form(room)
        self._uniform = uniform

    def draw(self, values: int = 1) -> _Fact:
        """A new fact with so many values."""
        attribute, key, value = self._form if self._uniform else _form(self._room)
        unused = self._room.unused
        return _Fact(attribute, unused(key), tuple(unused(value) for _ in range(values)))

    def state(self, fact: _Fact) -> list[str]:
        """The fact's sentences, one for each value."""
        rng = self._room.rng
        return [fact.fill(self._statement or rng.choice(needle_words.STATEMENTS), value) for value in fact.values]

    @property
    def attribute(self) -> str:
        return self._form[0]


def single(room: Room) -> Exercise:
    """One needle, one question."""
    return _needles(room, facts=1, asked=1)


def multi_key(room: Room) -> Exercise:
    """One or two of 3 to 20 needles are asked for."""
    return _needles(room, facts=room.rng.randint(3, 20), asked=room.rng.randint(1, 2))


def multi_value(room: Room) -> Exercise:
    """Keys with several values each, and all the values of a key are asked for."""
    asked = max(1, room.questions // 3)
    return _needles(room, facts=asked + room.rng.randint(0, 3), asked=asked, values=(2, 5))


def multi_query(room: Room) -> Exercise:
    """Questions that ask for the values of several keys at once."""
    asked = max(1, room.questions // 3)
    together = room.rng.randint(2, 4)
    return _needles(room, facts=asked * together + room.rng.randint(0, 4), asked=asked, together=together)


def questions(room: Room) -> Exercise:
    """Many questions in a row on one context, each on other needles; single and several values mixed."""
    rng = room.rng
    asked = room.questions
    values = (1, 3) if rng.random() < 0.3 else (1, 1)
    return _needles(room, facts=asked + rng.randint(1, asked), asked=asked, values=values)


def needles_only(room: Room) -> Exercise:
    """The hard form of multi-key: the context is made of nothing but needles of one form."""
    facts = _Facts(room, uniform=True)
    asked = [facts.draw() for _ in range(room.questions)]
    units = [unit for fact in asked for unit in facts.state(fact)]
    turns = [_turn(room.rng, [fact]) for fact in room.rng.sample(asked, len(asked))]
    per_needle = room.ruler.tokens(units[0]) + 1

    def more(tokens: float) -> list[str]:
        return [unit for _ in range(max(1, int(tokens / per_needle))) for unit in facts.state(facts.draw())]

    separator = room.rng.choice(("\n", " ")) if units[0].endswith(".") else "\n"
    return Exercise(units, turns, _opening(room.rng, facts.attribute), "units", more, separator.join)


def passkey(room: Room) -> Exercise:
    """A pass key, pin code or the like that belongs to nothing and nobody; several kinds of it in longer documents."""
    rng = room.rng
    names = rng.sample(needle_words.PASSKEYS, rng.choice((1, 1, 2, 3)))
    facts = []
    for attribute in names:
        kind = "word" if "word" in attribute else "number"
        facts.append(_Fact(attribute, "", (room.unused(vocabulary.value_drawer(rng, kind, room.tokens)),)))
    units = [fact.fill(rng.choice(needle_words.PASSKEY_STATEMENTS), fact.values[0]) for fact in facts]
    turns = [
        Turn(
            fact.fill(rng.choice(needle_words.PASSKEY_QUESTIONS)),
            fact.values[0],
            fact.fill(rng.choice(needle_words.PASSKEY_LEADS)),
        )
        for fact in rng.sample(facts, len(facts))
    ]
    return Exercise(units, turns, _opening(rng, names[0]), _filler(rng))


def _needles(room: Room, facts: int, asked: int, values: tuple[int, int] = (1, 1), together: int = 1) -> Exercise:
    """So many facts in prose or noise, and `asked` questions on `together` of them each."""
    rng = room.rng
    filler = _filler(rng)
    if filler == "prose":
        assert room.prose  # drawn before the keys, which must not occur in it
    source = _Facts(room, uniform=together > 1 or rng.random() < 0.6)
    # In a short document the needles must leave some hay.
    facts = max(asked * together, min(facts, room.tokens // 80))
    drawn = [source.draw(rng.randint(*values)) for _ in range(facts)]
    units = shuffled([source.state(fact) for fact in drawn], rng)
    chosen = rng.sample(drawn, min(facts, asked * together))
    turns = [_turn(rng, chosen[at : at + together]) for at in range(0, len(chosen), together)]
    return Exercise(units, turns, _opening(rng, chosen[0].attribute), filler)


def _turn(rng: random.Random, facts: Sequence[_Fact]) -> Turn:
    values = [value for fact in facts for value in fact.values]
    together = _Fact(facts[0].attribute, enumerate_words([fact.key for fact in facts]), ())
    plural = len(values) > 1
    questions = needle_words.PLURAL_QUESTIONS if plural else needle_words.QUESTIONS
    leads = needle_words.PLURAL_LEADS if plural else needle_words.LEADS
    return Turn(
        together.fill(rng.choice(questions)),
        rng.choice((", ".join, ", ".join, enumerate_words))(values),
        together.fill(rng.choice(leads)),
    )


def _form(room: Room) -> tuple[str, vocabulary.Draw, vocabulary.Draw]:
    """An attribute, a way to draw keys and a way to draw values."""
    rng = room.rng
    kind = rng.choices(("number", "word", "uuid"), (6, 2, 2))[0]
    if rng.random() < 0.4:
        attribute = f"special magic {kind}"
    else:
        attribute = rng.choice(needle_words.ATTRIBUTES[kind])
    style = rng.choices(tuple(vocabulary.KEYS), (10, 3, 2, 2, 2))[0]
    return attribute, vocabulary.KEYS[style], vocabulary.value_drawer(rng, kind, room.tokens)


def _filler(rng: random.Random) -> str:
    return "noise" if rng.random() < 0.2 else "prose"


def _opening(rng: random.Random, attribute: str) -> str:
    return rng.choice(needle_words.OPENINGS).format(a=attribute)


def shuffled(groups: Sequence[Sequence[str]], rng: random.Random) -> list[str]:
    """All members in random order, but those of one group in their own order."""
    order = [number for number, group in enumerate(groups) for _ in group]
    rng.shuffle(order)
    members = [iter(group) for group in groups]
    return [next(members[number]) for number in order]


def enumerate_words(words: Sequence[str]) -> str:
    """Like "a, b, and c"."""
    if len(words) < 3:
        return " and ".join(words)
    return ", ".join(words[:-1]) + f", and {words[-1]}"


NEEDLES: dict[str, Callable[[Room], Exercise]] = {
    "single": single,
    "multi_key": multi_key,
    "multi_value": multi_value,
    "multi_query": multi_query,
    "questions": questions,
    "needles_only": needles_only,
    "passkey": passkey,
}
