"""Variable tracking: chains of assignments, scattered over the text in their order."""

import random
import string

from headstart.training.retrieval import vocabulary
from headstart.training.retrieval.exercise import Exercise, Room, Turn
from headstart.training.retrieval.needles import enumerate_words

_OPENINGS = (
    "Follow the assignments of variables that are hidden in the text.",
    "The text below assigns values to variables. Keep track of them.",
    "Memorise and trace the chains of variable assignments in the following text.",
    "Some lines of this text set variables. Remember which variable has which value.",
    "Track the variables.",
    "Variables are set in the text, some to a number and some to another variable.",
    "Read the text and note every assignment.",
    "Between the sentences there are assignments. They matter, the sentences do not.",
    "You will be asked about the values of variables.",
    "Find out which variables hold which value.",
    "Watch for assignments to variables in this document.",
    "",
)

_STATEMENTS = (
    ("VAR {x} = {v}", "VAR {x} = VAR {y}"),
    ("VAR {x} = {v}", "VAR {x} = VAR {y}"),
    ("VAR {x} = {v}", "VAR {x} = {y}"),
    ("{x} = {v}", "{x} = {y}"),
    ("let {x} = {v};", "let {x} = {y};"),
    ("{x} := {v}", "{x} := {y}"),
    ("{x} <- {v}", "{x} <- {y}"),
    ("set {x} to {v}", "set {x} to {y}"),
    ("Set {x} to {v}.", "Set {x} to the value of {y}."),
    ("{x} is now {v}.", "{x} is now the same as {y}."),
    ("The variable {x} gets the value {v}.", "The variable {x} gets the value of {y}."),
    ("int {x} = {v};", "int {x} = {y};"),
    ("Assign {v} to {x}.", "Assign {y} to {x}."),
    ("{x} holds {v}.", "{x} holds whatever {y} holds."),
)

_FIND = (
    "Find all variables that hold the value {v}.",
    "Find all the variables that are given the value {v} in the text above.",
    "Which variables have the value {v}?",
    "List every variable whose value is {v}.",
    "Name the variables that are equal to {v}.",
    "What are all the variables with the value {v}?",
    "Who holds {v}? Name all variables.",
    "Give all variables that end up with {v}.",
    "{v}: which variables?",
    "Tell me each variable that was set to {v}, directly or through another one.",
    "Trace the value {v}. In which variables is it?",
    "In which variables is {v} stored?",
)

_FIND_LEADS = (
    "The variables that hold the value {v} are",
    "Following the assignments, {n} variables hold the value {v}:",
    "They are",
    "According to the chains of assignments in the text, {n} variables are given the value {v}, they are:",
)

_VALUE = (
    "What is the value of {x}?",
    "Which value does {x} hold?",
    "What does {x} hold?",
    "Give the value of {x}.",
    "Trace {x} back to its number.",
    "{x} = ?",
    "Find the number that is stored in {x}.",
    "Tell me what {x} is.",
    "To which number was {x} set, directly or through other variables?",
    "Follow the assignments. What is {x}?",
    "Print {x}.",
    "value of {x}?",
)

_VALUE_LEADS = ("The value of {x} is", "{x} holds", "It is", "{x} =")


def variables(room: Room) -> Exercise:
    """1 to 6 chains of 1 to 4 steps in noise or prose; asked are a chain by its value, or a value by its variable."""
    rng = room.rng
    filler = "noise" if rng.random() < 0.5 else "prose"
    if filler == "prose":
        assert room.prose  # drawn before the names, which must not occur in it
    start, step = rng.choice(_STATEMENTS)
    draw = _names(rng)
    hops = rng.randint(1, 4)
    most = max(1, room.tokens // (25 * (hops + 1)))
    values = [room.unused(vocabulary.numbers(5)) for _ in range(min(most, rng.randint(1, max(2, room.questions))))]
    chains: list[list[str]] = [[room.unused(draw) for _ in range(hops + 1)] for _ in values]
    order = [number for number, chain in enumerate(chains) for _ in chain]
    rng.shuffle(order)
    done = [0] * len(chains)
    units = []
    for number in order:
        chain, place = chains[number], done[number]
        if place == 0:
            units.append(start.format(x=chain[0], v=values[number]))
        else:
            units.append(step.format(x=chain[place], y=chain[place - 1]))
        done[number] += 1
    # More questions than chains would ask for the same value again.
    asked = rng.sample(range(len(chains)), min(len(chains), room.questions))
    turns = [_turn(rng, chains[number], values[number]) for number in asked]
    return Exercise(units, turns, rng.choice(_OPENINGS), filler)


def _turn(rng: random.Random, chain: list[str], value: str) -> Turn:
    if rng.random() < 0.6:
        answer = rng.choice((", ".join, ", ".join, " ".join, enumerate_words))(chain)
        lead = rng.choice(_FIND_LEADS).format(v=value, n=len(chain))
        return Turn(rng.choice(_FIND).format(v=value), answer, lead)
    variable = rng.choice(chain)
    return Turn(rng.choice(_VALUE).format(x=variable), value, rng.choice(_VALUE_LEADS).format(x=variable))


def _names(rng: random.Random) -> vocabulary.Draw:
    style = rng.randrange(6)
    if style < 3:
        return vocabulary.letters(5)
    if style == 3:
        return vocabulary.letters(rng.randint(3, 4), string.ascii_lowercase)
    if style == 4:
        return lambda r: f"{vocabulary.adjective(r)}_{vocabulary.noun(r)}"
    return lambda r: vocabulary.letters(1)(r) + str(r.randrange(10, 100))
