"""Questions over country profiles, from the CIA World Factbook (public domain) as JSON lines."""

import random
import re
from collections.abc import Mapping
from functools import lru_cache

from headstart.errors import HeadstartError
from headstart.training.data.readers import read_records
from headstart.training.retrieval.exercise import Exercise, Room, Turn

_OPENINGS = (
    "Answer the questions with the country profiles below.",
    "Here are facts about some countries.",
    "Country profiles:",
    "Look up the facts in the profiles.",
    "The following pages describe countries. Questions follow.",
    "Use the facts below.",
    "Read these profiles and answer shortly.",
    "Facts about the world:",
    "Below is a part of a handbook of countries.",
    "From a geography book:",
    "Everything that is asked is written in the profiles.",
    "",
)

# Where a fact stands in the file, what it is called in a profile, and what is asked.
_FIELDS = (
    ("Capital/name", "Capital", "the capital"),
    ("Country name/conventional long form", "Official name", "the official name"),
    ("Population/total", "Population", "the population"),
    ("Location", "Location", "the location"),
    ("Climate", "Climate", "the climate"),
    ("Terrain", "Terrain", "the terrain"),
    ("Natural resources", "Natural resources", "the list of natural resources"),
    ("Natural hazards", "Natural hazards", "the list of natural hazards"),
    ("Elevation/highest point", "Highest point", "the highest point"),
    ("Elevation/lowest point", "Lowest point", "the lowest point"),
    ("Area/total", "Area", "the area"),
    ("Area - comparative", "Area in comparison", "the comparison given for the area"),
    ("Coastline", "Coastline", "the length of the coastline"),
    ("Geographic coordinates", "Coordinates", "the geographic position"),
    ("Nationality/noun", "People", "the name of the people"),
    ("Nationality/adjective", "Adjective", "the adjective"),
    ("Languages/Languages", "Languages", "the list of languages"),
    ("Median age/total", "Median age", "the median age"),
    ("Government type", "Government", "the form of government"),
    ("Independence", "Independence", "the date of independence"),
    ("National holiday", "National holiday", "the national holiday"),
    ("Legal system", "Legal system", "the legal system"),
    ("Suffrage", "Suffrage", "the age of suffrage"),
    ("Legislative branch/legislature name", "Legislature", "the name of the legislature"),
    ("National symbol(s)", "National symbol", "the national symbol"),
    ("National color(s)", "National colours", "the list of national colours"),
    ("National anthem(s)/title", "National anthem", "the national anthem"),
    ("Exchange rates/Currency", "Currency", "the currency"),
    ("Internet country code", "Internet code", "the internet code"),
    ("Industries", "Industries", "the list of industries"),
    ("Agricultural products", "Farm products", "the list of farm products"),
)

_QUESTIONS = (
    "What is {f} of {c}?",
    "What is {f} of {c}, according to the profile?",
    "Tell me {f} of {c}.",
    "{c}: what is {f}?",
    "Look up {f} of {c}.",
    "Give {f} of {c}.",
    "I would like to know {f} of {c}.",
    "What do the profiles say is {f} of {c}?",
    "Find {f} of {c}.",
    "Which is {f} of {c}?",
    "Read out {f} of {c}.",
    "Do you know {f} of {c}?",
)

_HEADS = ("# {c}\n", "{c}\n", "## {c}\n\n", "Country: {c}\n", "=== {c} ===\n", "{c}:\n", "[{c}]\n")
_LINES = ("{f}: {v}", "- {f}: {v}", "* **{f}** {v}", "{f} = {v}", "{f}\t{v}", "| {f} | {v} |")


def factbook(room: Room) -> Exercise:
    """Profiles of several countries, each with some of its facts; what is asked stands in them once."""
    paths = room.files.get("factbook", ())
    if len(paths) != 1:
        raise HeadstartError("the kind factbook needs one file: factbook: [FACTS]")
    rng = room.rng
    countries = list(_countries(paths[0]).items())
    rng.shuffle(countries)
    head, line = rng.choice(_HEADS), rng.choice(_LINES)

    def block(country: str, facts: Mapping[int, str], chosen: list[int]) -> str:
        lines = (line.format(f=_FIELDS[number][1], v=facts[number]) for number in chosen)
        return head.format(c=country) + "\n".join(lines)

    units, turns, size = [], [], 0.0
    while len(turns) < room.questions and countries:
        country, facts = countries.pop()
        chosen = rng.sample(sorted(facts), min(len(facts), rng.randint(2, 9)))
        unit = block(country, facts, chosen)
        size += room.ruler.tokens(unit) + 40
        if units and size > 0.8 * room.tokens:
            break
        units.append(unit)
        for number in rng.sample(chosen, min(len(chosen), rng.randint(1, 3), room.questions - len(turns))):
            turns.append(_turn(rng, country, number, facts[number]))
    rng.shuffle(turns)

    def more(tokens: float) -> list[str]:
        blocks: list[str] = []
        missing = tokens
        while missing > 25 and countries:
            country, facts = countries.pop()
            chosen, cost = [], 6.0
            for number in rng.sample(sorted(facts), len(facts)):
                cost += 6 + len(facts[number]) / 3
                if cost > missing or len(chosen) == 12:
                    break
                chosen.append(number)
            if chosen:
                blocks.append(block(country, facts, chosen))
                missing -= room.ruler.tokens(blocks[-1]) + 1
        return blocks

    return Exercise(units, turns, rng.choice(_OPENINGS), "units", more, "\n\n".join)


def _turn(rng: random.Random, country: str, number: int, value: str) -> Turn:
    asked = _FIELDS[number][2]
    lead = "" if asked.startswith("the list") else f"{asked[0].upper()}{asked[1:]} of {country} is"
    return Turn(rng.choice(_QUESTIONS).format(f=asked, c=country), value, lead)


@lru_cache(maxsize=2)
def _countries(path: str) -> dict[str, dict[int, str]]:
    """Per country its facts by their place in `_FIELDS`."""
    found: dict[str, dict[int, str]] = {}
    for where, _, record in read_records(path):
        try:
            sections = [s for s in record["facts"].values() if isinstance(s, Mapping)]
            flat = dict(pair for section in sections for pair in _flattened(section))
            country = str(record["name"])
        except (KeyError, AttributeError):
            raise HeadstartError(f'{where} must have "name" and, by section, "facts"') from None
        facts = {}
        for number, (place, _, _) in enumerate(_FIELDS):
            # The year of an estimate and what follows the first semicolon only lengthen an answer.
            value = (
                re.sub(r"\s*\([^()]*\d{4}[^()]*\)", "", flat.get(place, ""))
                .split(";")[0]
                .removesuffix(" per US dollar -")
                .strip(" -\n")
            )
            if 1 < len(value) <= 110 and "\n" not in value and "<" not in value:
                facts[number] = value
        if len(facts) >= 5 and len(country) < 40:
            found[country] = facts
    if not found:
        raise HeadstartError(f"{path} holds no country with enough facts")
    return found


def _flattened(section: Mapping[str, object]):
    for name, value in section.items():
        if isinstance(value, str):
            yield name.strip(), value
        elif isinstance(value, Mapping):
            for inner, text in value.items():
                if isinstance(text, str):
                    yield f"{name.strip()}/{inner.strip()}", text
