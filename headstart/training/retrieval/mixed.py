"""Several kinds of tasks in one stretch of prose, their questions in random order."""

import dataclasses

from headstart.training.retrieval.copying import lists
from headstart.training.retrieval.exercise import Exercise, Room
from headstart.training.retrieval.needles import multi_query, multi_value, passkey, questions, shuffled
from headstart.training.retrieval.records import small_key_value
from headstart.training.retrieval.variables import variables

_PARTS = (questions, multi_value, multi_query, passkey, variables, small_key_value, lists)

_OPENINGS = (
    "Read the text and remember everything that looks out of place.",
    "Various facts are hidden in the text below. You will be asked about them.",
    "This document holds some important details between many unimportant ones.",
    "Read carefully. Questions of several kinds follow.",
    "Keep the details of the following text in mind.",
    "There are facts, records and assignments in this text. Remember them.",
    "Answer the questions after reading the text.",
    "Use the document below.",
    "Here is a document with notes between its lines.",
    "Pay attention to the notes in this text.",
    "Document:",
    "",
)


def mixed(room: Room) -> Exercise:
    """Two to four kinds."""
    rng = room.rng
    assert room.prose  # drawn before any key
    parts = rng.sample(_PARTS, rng.choice((2, 2, 3, 4)))
    each = dataclasses.replace(room, questions=max(2, round(room.questions / len(parts))))
    made = [part(each) for part in parts]
    turns = [turn for exercise in made for turn in exercise.turns]
    rng.shuffle(turns)
    return Exercise(shuffled([exercise.units for exercise in made], rng), turns, rng.choice(_OPENINGS))
