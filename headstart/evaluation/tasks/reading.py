"""Questions over real text: RULER's two document tasks, and FairytaleQA.

`qa_1` and `qa_2` have the structure of RULER (arXiv 2404.06654) at commit c3f5e3b4f87f97e048793bb510a3a6b19a46bf3a of
its official repository, `scripts/data/synthetic/qa.py`: numbered documents, those with the evidence among others, first
from the same source and then from anywhere, shuffled, repeated when a length needs more than there are; 32 tokens for
the answer; right when any reference occurs in the output.

The data are not RULER's. SQuAD and HotpotQA are replaced by the test split of FairytaleQA (arXiv 2203.13947,
Apache-2.0): `qa_1` asks explicit questions on one section whose reference answer stands in it word for word, as in
SQuAD; `qa_2` asks explicit questions whose evidence lies in two or more sections of a story, each a document of its
own. Unlike HotpotQA, these sections come from one story, bridge no two entities by design, and their answers need not
be spans of the text.
Scores are therefore not comparable with published ones. Since stories speak of 'the king' and 'the girl', documents and
questions carry the story's name. The last further document may be cut, so that an example fits its length.
"""

import json
import lzma
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

from headstart.errors import HeadstartError
from headstart.evaluation.tasks.base import Example, MissingDataError, Task, TextEncoder, draw, fit, room_for
from headstart.evaluation.tasks.haystack import Cycled, insert
from headstart.evaluation.tasks.scoring import match_part, normalised_match, rouge_l, token_f1

_ANSWER_TOKENS = 32
_PREFIX = " Answer:"


@dataclass(frozen=True)
class Question:
    """A question, its reference answers, the documents that hold the evidence, and others of the same source."""

    question: str
    answers: tuple[str, ...]
    documents: tuple[str, ...]
    related: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuestionSet:
    """Questions, and all documents that may stand beside the evidence."""

    questions: Sequence[Question]
    documents: Sequence[str]


@dataclass
class DocumentQuestions(Task):
    """A question over numbered documents of which one or several hold the answer.

    Args:
        key: the task's name.
        path: a JSONL file of `documents`, `question` and `answers` a line; None: FairytaleQA in `data`.
        data: directory with `eval/fairytaleqa_stories.jsonl.xz` and `..._questions.jsonl.xz`.
        several: ask what needs two or more sections (FairytaleQA only).
    """

    key: str
    path: Path | None = None
    data: Path | None = None
    several: bool = False
    about: str = "a question over documents of which one or two hold the answer"
    metric: str = "outputs that hold a reference answer"
    _read: QuestionSet | None = field(default=None, repr=False)

    def examples(self, tokenizer: TextEncoder, length: int, count: int, seed: int) -> Iterator[Example]:
        if self._read is None:
            self._read = read_questions(self.path) if self.path else _sections(self.data, self.several)
        order = list(range(len(self._read.questions)))
        draw(f"{self.key} order", seed, 0).shuffle(order)
        for index in range(count):
            question = self._read.questions[order[index % len(order)]]
            yield self._example(tokenizer, length, seed, index, question)

    def score(self, example: Example, output: str) -> float:
        return match_part(example.answers, output)

    def gold(self, example: Example) -> str:
        return f" {example.answers[0]}"

    def exact(self, example: Example, output: str) -> bool:
        return normalised_match(example.answers, _first_line(output)) == 100

    def _example(self, tokenizer: TextEncoder, length: int, seed: int, index: int, question: Question) -> Example:
        assert self._read is not None
        random = draw(self.key, seed, index)
        known = {*question.documents, *question.related}
        related = random.sample(question.related, len(question.related))
        further = [document for document in self._read.documents if document not in known]
        random.shuffle(further)
        others = Cycled(related + further or list(question.documents), "\n\n")
        places = sorted(random.random() for _ in question.documents)

        def text(amount: int) -> str:
            pieces = others.pieces(amount)
            draw(f"{self.key} shuffle", seed, index).shuffle(pieces)
            pieces = insert(pieces, question.documents, [int(place * (len(pieces) + 1)) for place in places])
            context = "\n\n".join(f"Document {at}:\n{piece}" for at, piece in enumerate(pieces, 1))
            return f"{_REQUEST}\n\n{context}\n\n{_REQUEST}\n\nQuestion: {question.question}{_PREFIX}"

        room = room_for(tokenizer, [max(question.answers, key=len)], _ANSWER_TOKENS)
        prompt = fit(tokenizer, length - room, text, self.key, least=0).removesuffix(_PREFIX)
        metadata = {"evidence": len(question.documents)}
        return Example(f"{self.key}-{length}-{seed}-{index}", prompt, question.answers, _PREFIX, room, metadata)


_REQUEST = "Use these documents to answer the question. Reply with the answer alone."


@dataclass
class Fairytale(Task):
    """FairytaleQA: a question over a whole story, scored by token F1, with ROUGE-L and exact match beside it.

    All questions of the test split, explicit and implicit. `length` is an upper bound here: of a story that is longer,
    the sections with the evidence and as many before and after as fit are given.

    Args:
        data: directory with `eval/fairytaleqa_stories.jsonl.xz` and `..._questions.jsonl.xz`.
    """

    key: str = "fairytaleqa"
    data: Path | None = None
    about: str = "questions over fairy tales"
    metric: str = "token F1"

    def examples(self, tokenizer: TextEncoder, length: int, count: int, seed: int) -> Iterator[Example]:
        stories, questions = _fairytales(self.data)
        order = list(range(len(questions)))
        draw(f"{self.key} order", seed, 0).shuffle(order)
        for index in range(min(count, len(order))):
            question = questions[order[index]]
            yield self._example(tokenizer, length, seed, index, question, stories[question["story"]])

    def score(self, example: Example, output: str) -> float:
        return token_f1(example.answers, _first_line(output))

    def gold(self, example: Example) -> str:
        return f" {example.answers[0]}"

    def exact(self, example: Example, output: str) -> bool:
        return normalised_match(example.answers, _first_line(output)) == 100

    def extras(self, example: Example, output: str) -> dict[str, float]:
        return super().extras(example, output) | {"rouge_l": rouge_l(example.answers, _first_line(output))}

    def _example(
        self, tokenizer: TextEncoder, length: int, seed: int, index: int, question: dict[str, Any], story: list[str]
    ) -> Example:
        answers = _answers(question)
        evidence = _evidence(question, len(story))
        middle = (evidence[0] + evidence[-1]) / 2
        # Evidence first, then whatever lies nearest to it.
        nearest = sorted(range(len(story)), key=lambda at: (at not in evidence, abs(at - middle), at))
        before = f"{_title(question['story'])}\n\n"
        after = f"\n\nQuestion: {question['question']}"

        def text(amount: int) -> str:
            return before + "\n\n".join(story[at] for at in sorted(nearest[:amount])) + after + _PREFIX

        room = room_for(tokenizer, [max(answers, key=len)], _ANSWER_TOKENS)
        prompt = fit(tokenizer, length - room, text, self.key, least=len(evidence), most=len(story))
        identity = f"{self.key}-{length}-{seed}-{index}"
        metadata = {"story": question["story"], "implicit": question.get("ex-or-im1") == "implicit"}
        return Example(identity, prompt.removesuffix(_PREFIX), answers, _PREFIX, room, metadata, stop=("\n",))


def read_questions(path: Path) -> QuestionSet:
    """Questions of a JSONL file (plain, or compressed with xz): `documents`, `question` and `answers` a line.

    Raises:
        HeadstartError: no such file, or a line that is no such object; the sentence has its number.
    """
    questions = []
    for number, entry in _lines(path):
        documents, answers = entry.get("documents"), entry.get("answers", entry.get("answer"))
        answers = [answers] if isinstance(answers, str) else answers
        asked = entry.get("question")
        if not isinstance(asked, str) or not asked or not _texts(documents) or not _texts(answers):
            raise HeadstartError(
                f"line {number} of {path} is no question: it needs 'question' (text), 'documents' and 'answers' "
                "(lists of texts that are not empty)"
            )
        questions.append(Question(asked, tuple(answers), tuple(documents)))
    if not questions:
        raise HeadstartError(f"{path} holds no questions")
    return QuestionSet(questions, sorted({document for q in questions for document in q.documents}))


def _texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text.strip() for text in value)


@cache
def _sections(data: Path | None, several: bool) -> QuestionSet:
    """FairytaleQA's test split with sections as documents."""
    stories, entries = _fairytales(data)
    documents = {name: [f"{_title(name)}\n{text}" for text in story] for name, story in stories.items()}
    questions = []
    for entry in entries:
        name = entry["story"]
        places, answers = _evidence(entry, len(documents[name])), _answers(entry)
        if entry.get("ex-or-im1") != "explicit" or (len(places) > 1) != several:
            continue
        if not several and answers[0].lower() not in documents[name][places[0]].lower():
            continue
        evidence = tuple(documents[name][at] for at in places)
        related = tuple(text for at, text in enumerate(documents[name]) if at not in places)
        questions.append(Question(f"In the story '{_title(name)}': {entry['question']}", answers, evidence, related))
    return QuestionSet(questions, [text for name in sorted(documents) for text in documents[name]])


@cache
def _fairytales(data: Path | None) -> tuple[dict[str, list[str]], list[dict[str, Any]]]:
    """Stories of the test split by name, and its questions.

    Raises:
        MissingDataError: the data is not there.
    """
    found = []
    for name in ("stories", "questions"):
        path = None if data is None else data / "eval" / f"fairytaleqa_{name}.jsonl.xz"
        if path is None or not path.is_file():
            raise MissingDataError(
                f"FairytaleQA is not here: {path or 'no data directory is known'}; give the directory that holds "
                "eval/fairytaleqa_stories.jsonl.xz with --data or HEADSTART_DATA"
            )
        found.append([entry for _, entry in _lines(path) if entry.get("split") == "test"])
    stories = {entry["story"]: [section.strip() for section in entry["sections"]] for entry in found[0]}
    return stories, [entry for entry in found[1] if entry["story"] in stories and _answers(entry)]


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file with their line numbers.

    Raises:
        HeadstartError: a file or line that cannot be read.
    """
    number = 0
    try:
        with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    entry = json.loads(line)
                    if not isinstance(entry, dict):
                        raise HeadstartError(f"line {number} of {path} is no JSON object")
                    yield number, entry
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise HeadstartError(f"{path} cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise HeadstartError(f"line {number} of {path} is not JSON: {error.msg}") from None


def _answers(entry: dict[str, Any]) -> tuple[str, ...]:
    """All reference answers, the first annotator's first."""
    found = [entry.get(f"answer{number}") for number in range(1, 7)]
    return tuple(dict.fromkeys(text.strip() for text in found if isinstance(text, str) and text.strip()))


def _evidence(entry: dict[str, Any], sections: int) -> list[int]:
    """The sections that hold the answer, from 0."""
    places = {int(number) - 1 for number in str(entry["cor_section"]).split(",") if number.strip()}
    return sorted(place for place in places if 0 <= place < sections) or [0]


def _title(name: str) -> str:
    """A story's name as a title."""
    return name.replace("-", " ").strip().title()


def _first_line(output: str) -> str:
    return output.strip().split("\n", 1)[0]
