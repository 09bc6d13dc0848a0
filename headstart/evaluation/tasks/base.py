"""What a task is: examples that fit a token budget exactly, and a score from 0 to 100 for each output."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from headstart.errors import HeadstartError
from headstart.evaluation.tasks.scoring import exact_match

# The estimate aims this far under the budget, so that one measurement mostly settles it.
_AIM_BELOW = 0.003
_CLOSE_ENOUGH = 0.01
_PROBE_TOKENS = 20_000
_MOST_ATTEMPTS = 24
_GUESSES = 3


class TextEncoder(Protocol):
    """What tasks need of a tokenizer; `headstart.checkpoints.Tokenizer` is one."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Text to token ids."""
        ...


class TooShortError(HeadstartError):
    """A length in which not even the smallest example of a task fits."""


class MissingDataError(HeadstartError):
    """A task over real text whose data is not there."""


@dataclass(frozen=True)
class Example:
    """One question over one context.

    Attributes:
        context_id: the same for all questions over the same context.
        prompt: context and question, without the answer's opening.
        answers: what is to be found; a scorer says whether all or one of them.
        answer_prefix: the answer's opening, which the model continues. It begins with white space where the prompt
            ends without.
        max_tokens: room for the answer; prompt, prefix and this together are the asked-for length.
        metadata: whatever describes the example, such as `depth` of a needle or `turn` of a question.
        history: earlier questions over the same context with the answers given, (prompt, answer).
        stop: strings that end the answer.
    """

    context_id: str
    prompt: str
    answers: tuple[str, ...]
    answer_prefix: str
    max_tokens: int
    metadata: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[tuple[str, str], ...] = ()
    stop: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The prompt of a base model: earlier turns, context, question and the answer's opening."""
        earlier = "".join(f"{question}{answer}\n\n" for question, answer in self.history)
        return f"{earlier}{self.prompt}{self.answer_prefix}"

    @property
    def messages(self) -> list[dict[str, str]]:
        """The same as a conversation, for a chat template; the answer's opening follows the rendered template."""
        turns: list[dict[str, str]] = []
        for question, answer in self.history:
            turns.append({"role": "user", "content": question})
            turns.append({"role": "assistant", "content": answer.strip()})
        return [*turns, {"role": "user", "content": self.prompt}]


class Task(ABC):
    """A kind of question, made at any length.

    Attributes:
        key: its name.
        about: what it asks, in one sentence.
        metric: what the score counts.
        questions_per_context: examples that each of the `count` contexts brings.
    """

    key: str
    about: str = ""
    metric: str = ""
    questions_per_context: int = 1

    @abstractmethod
    def examples(self, tokenizer: TextEncoder, length: int, count: int, seed: int) -> Iterator[Example]:
        """`count` contexts of `length` tokens, prompt and answer together. Context i depends on seed and i alone.

        Raises:
            TooShortError: the smallest example is longer than that.
        """

    @abstractmethod
    def score(self, example: Example, output: str) -> float:
        """What the output is worth, 0 to 100."""

    def gold(self, example: Example) -> str:
        """An output that deserves 100."""
        return " " + ", ".join(example.answers)

    def exact(self, example: Example, output: str) -> bool:
        """Whether the output is the answer and nothing else."""
        return exact_match(example.answers, output)

    def extras(self, example: Example, output: str) -> dict[str, float]:
        """Further scores beside the main one, 0 to 100."""
        return {"exact": 100.0 * self.exact(example, output)}

    def judge(self, example: Example, output: str) -> str:
        """What was asked, what was expected and what came, for people."""
        asked = example.prompt.rstrip().rsplit("\n", 1)[-1][-300:]
        opening = example.answer_prefix.strip()
        return (
            f"asked: {asked}\nopening: {opening}\nexpected: {', '.join(example.answers)}\n"
            f"got: {output.strip()[:300] or '(nothing)'}"
        )


def draw(key: str, seed: int, index: int) -> random.Random:
    """The random numbers of one example: the same on every machine, unlike those of any other example."""
    return random.Random(f"headstart evaluation {key} {seed} {index}")


def room_for(tokenizer: TextEncoder, answers: Sequence[str], least: int) -> int:
    """Tokens for an answer: `least`, or more where the tokenizer cuts this answer into many pieces."""
    gold = len(tokenizer.encode(" " + ", ".join(answers), add_special_tokens=False))
    return max(least, gold + gold // 4 + 8)


def fit(
    tokenizer: TextEncoder,
    target: int,
    make: Callable[[int], str],
    what: str,
    *,
    least: int = 1,
    most: int | None = None,
) -> str:
    """The longest text of at most `target` tokens.

    Args:
        tokenizer: it is measured with this one, with the special tokens it adds.
        target: tokens.
        make: an amount (of words, records, ...) to the text; more means longer.
        what: the task, for the error.
        least: the smallest amount.
        most: the largest amount there is.

    Raises:
        TooShortError: the text with the smallest amount is longer than the target.
    """
    lengths: dict[int, int] = {}

    def measure(amount: int) -> int:
        if amount not in lengths:
            lengths[amount] = len(tokenizer.encode(make(amount)))
        return lengths[amount]

    start = measure(least)
    if start > target:
        raise TooShortError(f"{what} needs at least {start} tokens of prompt with this tokenizer, but has {target}")
    per_unit = _slope(measure, least, target, most)
    low, high = least, most + 1 if most is not None else None
    amount = least + int((target * (1 - _AIM_BELOW) - start) / per_unit)
    for attempt in range(_MOST_ATTEMPTS):
        if high is not None and high - low <= 1:
            break
        if high is not None and attempt >= _GUESSES:
            amount = (low + high) // 2
        amount = max(low + 1, amount if high is None else min(amount, high - 1))
        before, found = max(lengths), measure(amount)
        if found > target:
            high = amount
        else:
            low = amount
            if found >= target * (1 - _CLOSE_ENOUGH):
                break
        # Later units may cost more or less than the first ones did.
        if before != amount and lengths[before] != found:
            per_unit = (lengths[before] - found) / (before - amount)
        amount += round((target * (1 - _AIM_BELOW / 2) - found) / per_unit)
    return make(low)


def _slope(measure: Callable[[int], int], least: int, target: int, most: int | None) -> float:
    """Tokens per unit of amount, from a text that is long enough to tell but short enough to be cheap."""
    amount = least + 8
    while True:
        amount = amount if most is None else min(amount, most)
        if amount == least:
            return 1.0
        grown = max(1, measure(amount) - measure(least))
        if grown >= min(target - measure(least), _PROBE_TOKENS) / 2 or amount == most:
            return grown / (amount - least)
        amount = least + (amount - least) * 8
