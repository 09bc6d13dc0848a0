"""A task written down as a document of the wanted size."""

import itertools
import random
from collections.abc import Callable, Sequence

from headstart.training.documents import Span
from headstart.training.retrieval.exercise import Exercise, Room
from headstart.training.retrieval.frames import Layout, lay_out
from headstart.training.retrieval.haystack import cut, insert, noise

_ATTEMPTS = 20


def write(
    exercise_of: Callable[[Room], Exercise], room: Room, *, form: int, chat: bool, train_prose: bool
) -> tuple[Span, ...]:
    """One context with its questions and answers.

    Args:
        exercise_of: makes the task.
        room: what it may use.
        form: the same number gives the same form.
        chat: a conversation.
        train_prose: the prose is trained too, but not what is hidden in it.
    """
    exercise, layout = _fitting(exercise_of, room, form, chat)
    return layout.around(_context(exercise, layout, room, train_prose))


def _fitting(exercise_of: Callable[[Room], Exercise], room: Room, form: int, chat: bool) -> tuple[Exercise, Layout]:
    """A task whose questions and what they are about fit into the document, with fewer questions if need be."""
    room.questions = max(1, min(room.questions, room.tokens // 100))
    for attempt in itertools.count(1):
        exercise = exercise_of(room)
        layout = lay_out(exercise, random.Random(form), chat)
        needed = layout.tokens(room.ruler) + room.ruler.tokens(exercise.render(exercise.units))
        # Without more units nothing is put around, as when a whole text is copied.
        most = 1.04 if exercise.filler == "units" and exercise.more is None else 0.97
        if needed <= most * room.tokens or attempt == _ATTEMPTS:
            return exercise, layout
        room.questions = max(1, room.questions * 3 // 4)
    raise AssertionError("unreachable")


def _context(exercise: Exercise, layout: Layout, room: Room, train_prose: bool) -> list[Span]:
    missing = room.tokens - layout.tokens(room.ruler)
    if exercise.filler == "units":
        return [Span(_filled(exercise, room, missing), False)]
    missing -= room.ruler.tokens("\n".join(exercise.units))
    if exercise.filler == "noise":
        text = noise(room.rng, room.tokens * 6)
        train_prose = False
    else:
        text = room.prose
    text = cut(text, room.ruler.chars(missing, text))
    pieces = insert(text, exercise.units, room.rng)
    if train_prose:
        return [Span(piece, prose) for piece, prose in pieces]
    return [Span("".join(piece for piece, _ in pieces), False)]


def _filled(exercise: Exercise, room: Room, tokens: float) -> str:
    """The units among so many others that the text has the wanted size."""
    others: list[str] = []

    def measure(some: list[str]) -> float:
        return room.ruler.tokens(exercise.render([*exercise.units, *some]))

    size = measure(others)
    ratio, part = 1.0, 0.5
    while exercise.more is not None and tokens - size > 0.01 * tokens:
        # The first part shows how many tokens come for those that were asked for.
        asked = part * (tokens - size) / ratio
        fresh = exercise.more(asked)
        if not fresh:
            break
        others += fresh
        before, size = size, measure(others)
        ratio, part = max(0.3, (size - before) / asked), 0.97
    while others and size > tokens:
        fewer = others[: min(len(others) - 1, round(len(others) * tokens / size))]
        smaller = measure(fewer)
        if abs(smaller - tokens) >= size - tokens:
            break
        others, size = fewer, smaller
    return exercise.render(_interleaved(exercise.units, others, room.rng))


def _interleaved(units: Sequence[str], others: Sequence[str], rng: random.Random) -> list[str]:
    """`units` in their order at random places among `others`."""
    total = len(units) + len(others)
    places = set(rng.sample(range(total), len(units)))
    first, second = iter(units), iter(others)
    return [next(first if place in places else second) for place in range(total)]
