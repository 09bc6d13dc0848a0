"""Key-value retrieval, many-shot in-context learning, and several questions over one context.

`kv_retrieval` follows Retrieve.KV of InfiniteBench (arXiv 2402.13718) at commit
88b3daa6989da2fbe0077170d7a3c84c25d5ae58 of its official repository (`data/construct_synthetic_dataset.py`,
`src/prompt.py`, `src/compute_scores.py`): one JSON object of random UUIDs, one key asked for, places of the answer
spread over the object, 50 tokens for the answer, and right when the value stands in the output as a word of its own.
It differs in wording, in a size that fits any length (InfiniteBench fixes 2,500 pairs), and in spreading the places by
a golden-ratio sequence, so that any number of examples covers the object.

InfiniteBench has no in-context learning task at that commit; `many_shot` is made in its spirit: every line of the
context matters, and the answer is in none of them alone. `multi_turn` is the setting of SCBench (arXiv 2412.10319): a
second and a third question over a context that was read for the first, with the earlier answers given.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from headstart.evaluation.tasks.base import Example, Task, TextEncoder, draw, fit, room_for
from headstart.evaluation.tasks.haystack import Records, insert, prose
from headstart.evaluation.tasks.needles import needle, random_number, random_uuid, random_word
from headstart.evaluation.tasks.scoring import match_all
from headstart.words import pool

_KV_TOKENS = 50
_LABEL_TOKENS = 16
_NEEDLE_TOKENS = 32
_GOLDEN = 0.618033988749895
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


@dataclass
class KeyValueRetrieval(Task):
    """Find the value of one key in a long JSON object."""

    key: str = "kv_retrieval"
    about: str = "the value of one UUID among many in a JSON object"
    metric: str = "values found"

    def examples(self, tokenizer: TextEncoder, length: int, count: int, seed: int) -> Iterator[Example]:
        for index in range(count):
            yield self._example(tokenizer, length, seed, index)

    def score(self, example: Example, output: str) -> float:
        """100 if the value stands in the output between spaces or punctuation."""
        return 100.0 * (example.answers[0] in re.split(r"[\s:\"'.,?!{}]+", output))

    def _example(self, tokenizer: TextEncoder, length: int, seed: int, index: int) -> Example:
        random = draw(self.key, seed, index)
        asked, answer = random_uuid(random), random_uuid(random)
        others = draw(f"{self.key} others", seed, index)
        records = Records(lambda _: f'"{random_uuid(others)}": "{random_uuid(others)}"', ", ")
        depth = (seed * _GOLDEN**2 + index * _GOLDEN) % 1.0
        prefix = f' The value of the key "{asked}" is: "'

        def text(amount: int) -> str:
            pairs = insert(records.pieces(amount), [f'"{asked}": "{answer}"'], [int(depth * (amount + 1))])
            return (
                "Look up one key in this JSON object and give its value.\n\n"
                f'{{{", ".join(pairs)}}}\n\nWhat is the value of the key "{asked}"?{prefix}'
            )

        room = room_for(tokenizer, [answer], _KV_TOKENS)
        prompt = fit(tokenizer, length - room, text, self.key).removesuffix(prefix)
        metadata = {"depth": round(100 * depth)}
        return Example(f"{self.key}-{length}-{seed}-{index}", prompt, (answer,), prefix, room, metadata)


@dataclass
class ManyShot(Task):
    """Learn a classification from many labelled phrases, and label a new one.

    Each label owns some nouns; a phrase is two adjectives and a noun, and its label that of the noun. The phrase asked
    about has a noun that was shown, with adjectives that were not shown with it.

    Args:
        labels: how many classes, so that guessing scores 100 / labels.
        nouns_per_label: nouns of each class.
    """

    key: str = "many_shot"
    labels: int = 8
    nouns_per_label: int = 4
    about: str = "the class of a phrase, learned from many labelled phrases"
    metric: str = "phrases labelled rightly"

    def examples(self, tokenizer: TextEncoder, length: int, count: int, seed: int) -> Iterator[Example]:
        for index in range(count):
            yield self._example(tokenizer, length, seed, index)

    def score(self, example: Example, output: str) -> float:
        """100 if the output's first word is the label."""
        words = re.findall(r"\w+", output)
        return 100.0 * (bool(words) and words[0].lower() == example.answers[0])

    def _example(self, tokenizer: TextEncoder, length: int, seed: int, index: int) -> Example:
        random = draw(self.key, seed, index)
        labels: dict[str, None] = {}
        while len(labels) < self.labels:
            labels[_made_up(random)] = None
        nouns = random.sample(pool("noun", "evaluation"), self.labels * self.nouns_per_label)
        label_of = {noun: list(labels)[at % self.labels] for at, noun in enumerate(nouns)}
        # Two of the adjectives are kept for the question.
        adjectives = random.sample(pool("adjective", "evaluation"), 102)
        asked = random.choice(nouns)
        shots = draw(f"{self.key} shots", seed, index)
        shuffled = list(nouns)

        def shot(at: int) -> str:
            if at % len(nouns) == 0:
                shots.shuffle(shuffled)
            noun = shuffled[at % len(nouns)]
            return f"Phrase: {' '.join(shots.sample(adjectives[2:], 2))} {noun}\nLabel: {label_of[noun]}\n"

        first = f"Phrase: {' '.join(shots.sample(adjectives[2:], 2))} {asked}\nLabel: {label_of[asked]}\n"
        records = Records(shot)
        place = random.random()
        prefix = "\nLabel:"

        def text(amount: int) -> str:
            lines = insert(records.pieces(amount), [first], [int(place * (amount + 1))])
            return (
                "Each phrase below has a label. Learn which phrases get which label, and label the last one.\n\n"
                + "\n".join(lines)
                + f"\nPhrase: {adjectives[0]} {adjectives[1]} {asked}{prefix}"
            )

        answers = (label_of[asked],)
        room = room_for(tokenizer, answers, _LABEL_TOKENS)
        prompt = fit(tokenizer, length - room, text, self.key).removesuffix(prefix)
        metadata = {"labels": self.labels}
        identity = f"{self.key}-{length}-{seed}-{index}"
        return Example(identity, prompt, answers, prefix, room, metadata, stop=("\n\n",))


def _made_up(random: random.Random) -> str:
    """A word of six letters that means nothing."""
    return "".join(random.choice(_CONSONANTS) + random.choice(_VOWELS) for _ in range(3))


@dataclass
class MultiTurn(Task):
    """Several questions, one after another, over one context of prose with needles.

    A method that keeps of a context only what the first question needs fails the later ones.

    Args:
        turns: questions over each context.
        needles: needles in the context, of which `turns` are asked for.
        text: prose for the haystack (default: the story that comes with the package).
    """

    key: str = "multi_turn"
    turns: int = 3
    needles: int = 6
    text: str | None = None
    about: str = "a first, second and third question over the same context"
    metric: str = "numbers found"

    def __post_init__(self) -> None:
        self.questions_per_context = self.turns

    def examples(self, tokenizer: TextEncoder, length: int, count: int, seed: int) -> Iterator[Example]:
        for index in range(count):
            yield from self._dialogue(tokenizer, length, seed, index)

    def score(self, example: Example, output: str) -> float:
        return match_all(example.answers, output)

    def _dialogue(self, tokenizer: TextEncoder, length: int, seed: int, index: int) -> Iterator[Example]:
        random = draw(self.key, seed, index)
        hidden: dict[str, str] = {}
        while len(hidden) < self.needles:
            hidden[random_word(random)] = random_number(random)
        needles = [needle("numbers", key, value) for key, value in hidden.items()]
        fractions = sorted(random.random() for _ in needles)
        asked = random.sample(list(hidden), self.turns)
        questions = [f"Which secret number for {key} does the text give?" for key in asked]
        prefixes = [f" The secret number for {key} is" for key in asked]
        said = [f"{prefix} {hidden[key]}." for prefix, key in zip(prefixes, asked, strict=True)]
        haystack = prose(self.text)

        def opening(amount: int) -> str:
            pieces = haystack.pieces(amount)
            context = insert(pieces, needles, [int(len(pieces) * fraction) for fraction in fractions])
            return (
                "Somewhere in the text below several secret numbers are given. Some of them will be asked for.\n"
                f"{' '.join(context)}\n{questions[0]}"
            )

        later = "\n\n".join(f"{question}{answer}" for question, answer in zip(questions[1:], said[1:], strict=True))
        tail = f"{said[0]}\n\n{later}"
        room = room_for(tokenizer, [hidden[asked[-1]]], _NEEDLE_TOKENS)
        first = fit(tokenizer, length - room, lambda amount: opening(amount) + tail, self.key).removesuffix(tail)
        prompts = [first, *questions[1:]]
        history = tuple(zip(prompts, said, strict=True))
        for turn in range(self.turns):
            yield Example(
                f"{self.key}-{length}-{seed}-{index}",
                prompts[turn],
                (hidden[asked[turn]],),
                prefixes[turn],
                room,
                {"turn": turn + 1},
                history[:turn],
            )
