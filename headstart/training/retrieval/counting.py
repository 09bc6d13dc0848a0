"""Aggregation: the words that occur most often in a long list, and how often."""

import math
import random
import string
from collections import Counter
from collections.abc import Sequence

from headstart.training.retrieval import vocabulary
from headstart.training.retrieval.exercise import Exercise, Room, Turn

_OPENINGS = (
    "Below is a list of words. Some of them occur more often than the others.",
    "Count the words in the following list.",
    "Some words in this list are very common. Remember them.",
    "Here are many words. Find out which occur most often.",
    "Read the words and keep count.",
    "A list of words follows. Memorise the ones that appear most often.",
    "The text below is made of words in random order.",
    "Pay attention to how often each word occurs.",
    "Which words keep coming back in this list?",
    "Words:",
    "Study the list.",
    "",
)

_MOST = (
    "What are the {n} most common words in the list above?",
    "Which {n} words occur most often?",
    "Name the {n} most frequent words.",
    "Give the {n} words that appear most often in the list.",
    "List the top {n} words by count.",
    "Find the {n} most frequently used words.",
    "Which {n} words are repeated most?",
    "The {n} most common words?",
    "Tell me the {n} words that come up most.",
    "What {n} words did you read most often?",
    "Return the {n} most frequent entries.",
    "Which words, {n} in number, are the most common?",
)

_MOST_ONE = (
    "What is the most common word in the list above?",
    "Which word occurs most often?",
    "Name the most frequent word.",
    "Which word is repeated most?",
    "The most common word?",
    "Give the word that appears most often.",
)

_CODED_OPENINGS = (
    "The following text is coded. Find the words that occur most often.",
    "Read this coded text and keep track of how often each code word appears.",
    "What follows looks like nonsense: it is a code. Some code words are frequent.",
    "Count the code words below.",
    "A message in an unknown language follows. Note the most frequent words.",
    "Code:",
)

_HOW_OFTEN = (
    'How many times does "{w}" appear in the list?',
    "How often does {w} occur?",
    "Count the word {w}.",
    "How many times did you read {w}?",
    "Give the number of times that {w} is in the list.",
    "{w}: how many times?",
)

_COUNT_LEADS = ("It appears this many times:", "The count is", "{w}:")


def common_words(room: Room) -> Exercise:
    """A few words many times each, many words a few times each, in a numbered or plain list."""
    rng = room.rng
    common = rng.randint(1, 10)
    everything = vocabulary.words()
    # In a very long list the words must repeat, for there are not enough of them.
    rare = max(rng.randint(1, 3), math.ceil(room.tokens / 2 / len(everything)))
    # A third of the list or less is common words, each clearly more often there than a rare one.
    times = max(rare + 3, min(10 * rare, int(room.tokens / 4.5 / 3 / common)))
    chosen = rng.sample(everything, common)
    units = [word for word in chosen for _ in range(times)]
    rng.shuffle(units)
    first_seen = list(dict.fromkeys(units))
    render, cost = _list_form(rng)
    others = [word for word in rng.sample(everything, len(everything)) if word not in chosen]
    # Runs of one word, taken from the end; the last word taken may be rarer than the others.
    waiting = [word for word in others for _ in range(rare)]

    def more(tokens: float) -> list[str]:
        wanted = max(1, int(tokens / cost))
        taken = waiting[-wanted:]
        del waiting[-wanted:]
        rng.shuffle(taken)
        return taken

    turns = [_most(rng, first_seen)]
    if room.questions > 1 and rng.random() < 0.3:
        word = rng.choice(chosen)
        turns.append(Turn(rng.choice(_HOW_OFTEN).format(w=word), str(times), rng.choice(_COUNT_LEADS).format(w=word)))
    return Exercise(units, turns, rng.choice(_OPENINGS), "units", more, render)


def frequent_words(room: Room) -> Exercise:
    """Words of random letters whose frequencies fall as in Zipf's law; the most frequent few are asked for."""
    rng = room.rng
    draw = vocabulary.letters(rng.randint(4, 6), string.ascii_lowercase)
    top = rng.randint(1, 4)
    cost = 4.5
    total = int(room.tokens / cost)
    exponent = rng.uniform(1.5, 2.2)
    norm = sum(rank**-exponent for rank in range(1, 1000))
    counts = [max(1, int(0.8 * total * rank**-exponent / norm)) for rank in range(1, top + 1)]
    for rank in range(top - 2, -1, -1):
        counts[rank] = max(counts[rank], counts[rank + 1] + 1)
    rest = max(1, counts[-1] - 1)
    words = [room.unused(draw) for _ in range(top)]
    units = [word for word, count in zip(words, counts, strict=True) for _ in range(count + 1)]
    rng.shuffle(units)
    assert [word for word, _ in Counter(units).most_common()] == words
    state = {"rank": top + 1}

    def more(tokens: float) -> list[str]:
        wanted, taken = max(1, int(tokens / cost)), []
        while len(taken) < wanted:
            times = min(rest, max(1, int(0.8 * total * state["rank"] ** -exponent / norm)), wanted - len(taken))
            taken.extend([room.unused(draw)] * times)
            state["rank"] += 1
        rng.shuffle(taken)
        return taken

    dots = rng.choice((" ", " ", " ... ", "\n"))
    opening = rng.choice(_CODED_OPENINGS)
    return Exercise(units, [_most(rng, words)], opening, "units", more, dots.join)


def _most(rng: random.Random, words: Sequence[str]) -> Turn:
    if len(words) == 1:
        return Turn(rng.choice(_MOST_ONE), words[0], "The most common word is")
    question = rng.choice(_MOST).format(n=len(words))
    numbered = len(words) > 4 and rng.random() < 0.3
    answer = " ".join(f"{place}. {word}" for place, word in enumerate(words, 1)) if numbered else ", ".join(words)
    lead = rng.choice(
        (f"The {len(words)} most common words are:", "They are:", "Answer: the words that occur most often are")
    )
    return Turn(question, answer, lead)


def _list_form(rng: random.Random):
    """How words are written down, and the tokens that one word takes then."""
    form = rng.randrange(6)
    if form < 3:
        separator = " " if form < 2 else "\n"
        return lambda units: separator.join(f"{place}. {word}" for place, word in enumerate(units, 1)), 7.0
    if form == 3:
        return lambda units: "\n".join(f"- {word}" for word in units), 3.5
    return (", " if form == 4 else " ").join, 3.2
