"""Documents that recur in many prompts, and questions about them: what reuse of chunks is measured on.

The documents are stretches of the story that comes with the package, each with a sentence that gives a number. Two of
them give numbers for the same key, and a question asks for both, so that the documents depend on one another.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

from headstart.evaluation.tasks.needles import needle, random_number, random_word
from headstart.texts import wild_wood

if TYPE_CHECKING:
    from headstart.engine.llm import LLM

# Documents that give numbers for the same key.
_TOGETHER = 2
_PLACE = "\0"
_CONTROL_TOKENS = 3


@dataclass(frozen=True)
class Asked:
    """A question over some of the documents.

    Attributes:
        order: the documents in the order in which they stand in the prompt.
        tail: token ids behind them: the question, and how its answer begins.
        answers: what must be in the output; none where the documents are random.
        question: as text.
    """

    order: tuple[int, ...]
    tail: tuple[int, ...]
    answers: tuple[str, ...]
    question: str


class Shelf:
    """Documents as token ids, and how a prompt is made of some.

    Args:
        head: token ids before the documents.
        documents: token ids of each, the break behind it included.
        keys: by document the key and the number that it gives; none where they are random.
        tails: token ids around a question: those before and after it are told by `llm`.
    """

    def __init__(
        self, llm: "LLM", head: list[int], documents: Sequence[list[int]], facts: Sequence[tuple[str, str]], end: str
    ) -> None:
        self._llm, self.head, self.documents, self._facts, self._end = llm, head, documents, facts, end

    @classmethod
    def of(cls, llm: "LLM", pool: int, tokens: int, seed: int = 0) -> "Shelf":
        """So many documents of about so many tokens each: of the story, or random ids without a tokenizer."""
        rng = random.Random(f"shelf/{seed}")
        if llm.engine.tokenizer is None:
            size = llm.engine.vocab_size
            documents = [[rng.randrange(_CONTROL_TOKENS, size) for _ in range(tokens)] for _ in range(pool)]
            return cls(llm, [_CONTROL_TOKENS], documents, (), "")
        keys = list(dict.fromkeys(random_word(rng) for _ in range(4 * pool)))
        facts = [(keys[at // _TOGETHER], random_number(rng)) for at in range(pool)]
        paragraphs = cycle(wild_wood().text.split("\n\n"))
        documents = [_document(llm, next_fact, paragraphs, tokens, rng) for next_fact in facts]
        before, end = frame(llm)
        return cls(llm, before, documents, facts, end)

    def ask(self, index: int, count: int, seed: int = 0) -> Asked:
        """Question `index` over so many documents."""
        rng = random.Random(f"shelf/{seed}/{index}")
        first = rng.randrange(len(self.documents) // _TOGETHER) * _TOGETHER
        mine = list(range(first, first + _TOGETHER))[:count]
        others = [at for at in range(len(self.documents)) if at not in mine]
        order = mine + rng.sample(others, min(count - len(mine), len(others)))
        rng.shuffle(order)
        if not self._facts:
            tail = [rng.randrange(_CONTROL_TOKENS, self._llm.engine.vocab_size) for _ in range(32)]
            return Asked(tuple(order), tuple(tail), (), "")
        key = self._facts[first][0]
        question = f"What are all the secret numbers for {key}?"
        text = f"{question}{self._end}The secret numbers for {key} are"
        tail = self._llm.encode(text, add_special_tokens=False)
        return Asked(tuple(order), tuple(tail), tuple(self._facts[at][1] for at in mine), question)

    def prompt(self, asked: Asked) -> dict[str, Any]:
        """As the engine takes it, with the documents as chunks."""
        return joined(self.head, [self.documents[at] for at in asked.order], asked.tail)

    def every(self, count: int) -> list[dict[str, Any]]:
        """Prompts of so many documents each in which all of them stand once."""
        groups = [self.documents[at : at + count] for at in range(0, len(self.documents), count)]
        return [joined(self.head, group, self.head[:1] or group[0][:1]) for group in groups]


def joined(head: Sequence[int], documents: Sequence[Sequence[int]], tail: Sequence[int]) -> dict[str, Any]:
    """A prompt of token ids, with the places of its documents."""
    ids, chunks = list(head), []
    for document in documents:
        chunks.append((len(ids), len(ids) + len(document)))
        ids += document
    return {"prompt_token_ids": [*ids, *tail], "chunks": chunks}


def frame(llm: "LLM") -> tuple[list[int], str]:
    """What stands before a message as token ids, and behind it as text."""
    if llm.tokenizer.chat_template is None:
        return llm.encode(""), "\n"
    text = llm.tokenizer.apply_chat_template([{"role": "user", "content": _PLACE}], add_generation_prompt=True)
    before, _, after = text.partition(_PLACE)
    return llm.encode(before, add_special_tokens=False), after


def share_found(asked: Asked, output: str) -> float:
    """Percent of the answers that are in the output."""
    return 100.0 * sum(answer in output for answer in asked.answers) / max(1, len(asked.answers))


def _document(
    llm: "LLM", fact: tuple[str, str], paragraphs: "cycle[str]", tokens: int, rng: random.Random
) -> list[int]:
    """Paragraphs with the sentence that gives the number between two of them."""
    sentence = needle("numbers", *fact)
    found = [next(paragraphs)]
    size = len(llm.encode(f"{sentence}\n\n{found[0]}", add_special_tokens=False))
    while size < tokens:
        paragraph = next(paragraphs)
        size += len(llm.encode(f"\n\n{paragraph}", add_special_tokens=False))
        found.append(paragraph)
    found.insert(rng.randrange(len(found) + 1), sentence)
    return llm.encode("\n\n".join(found) + "\n\n", add_special_tokens=False)
