"""How a context and its questions become a document: plain text, markdown, records, dialogue, or a chat."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from headstart.training.data.bpe import SpecialSpan
from headstart.training.documents import Span
from headstart.training.retrieval.chat import Message, chat_spans
from headstart.training.retrieval.exercise import Exercise, Turn
from headstart.training.retrieval.ruler import Ruler


@dataclass(frozen=True)
class _Frame:
    """The text around context, questions and answers.

    Attributes:
        before: holds `{o}`, the opening; ends where the context begins.
        after: from the context to the first question.
        ask: holds `{q}`, and `{n}` for its number; ends where the answer begins.
        end: what ends an answer, predicted like it.
        escape: questions and answers stand in JSON strings.
    """

    before: str
    after: str
    ask: str
    end: str
    escape: bool = False


_FRAMES = (
    _Frame("{o}\n\n", "\n\n", "Question: {q}\nAnswer:", "\n\n"),
    _Frame("{o}\n\n", "\n\n", "Q: {q}\nA:", "\n"),
    _Frame("{o}\n", "\n", "{q}", "\n"),
    _Frame("{o}\n\n", "\n\n", "{q}\n", "\n\n"),
    _Frame("# Text\n\n{o}\n\n", "\n\n# Questions\n\n", "**{q}**\n\n", "\n\n"),
    _Frame("{o}\n\n## Document\n\n", "\n\n## Answers\n\n", "- {q}", "\n"),
    _Frame("{o}\n<document>\n", "\n</document>\n\n", "<question>{q}</question>\n<answer>", "</answer>\n"),
    _Frame("{o}\n---\n", "\n---\n", "{n}. {q}\nAnswer:", "\n"),
    _Frame("User: {o}\n\n", "\n\n", "User: {q}\nAssistant:", "\n"),
    _Frame('Teacher: "{o}"\n\n', "\n\n", "Teacher: {q}\nPupil:", "\n"),
    _Frame("{o}\n\n", "\n\n", '{{"question": "{q}", "answer": "', '"}\n', escape=True),
    _Frame("CONTEXT\n{o}\n\n", "\n\n", "QUERY: {q}\nRESULT:", "\n"),
    _Frame("{o}\n\nText:\n", "\n\nNow answer.\n", "{q}\n->", "\n"),
    _Frame("{o}\n```\n", "\n```\n", "{q}\n=>", "\n"),
    _Frame("=== {o} ===\n\n", "\n\n=== Questions ===\n", "Question {n}: {q}\nAnswer {n}:", "\n"),
    _Frame("Instruction: {o}\nInput:\n", "\n", "Instruction: {q}\nOutput:", "\n"),
)

_CONTINUED = _Frame("{o}\n\n", "\n", "{q}", "\n")

_CHAT_FRAMES = (
    ("{o}\n\n", "\n\n{q}"),
    ("{o}\n\n", "\n\n{q}"),
    ("{o}\n", "\n{q}"),
    ("{o}\n\nText:\n", "\n\nQuestion: {q}"),
    ("{o}\n\n<document>\n", "\n</document>\n\n{q}"),
    ("{o}\n\n---\n", "\n---\n\n{q}"),
    ("{o}\n```\n", "\n```\n{q}"),
    ("# Document\n\n", "\n\n# Task\n\n{o} {q}"),
    ("Context: ", "\n\n{o}\n{q}"),
    ("", "\n\n{o}\n{q}"),
    ("", "\n\n{q}"),
    ('{o}\n\n"""\n', '\n"""\n\n{q}'),
)


@dataclass(frozen=True)
class Layout:
    """A document without its context: what stands before it, and everything behind it."""

    before: str
    after: str
    questions: tuple[Span, ...]
    chat: bool

    def tokens(self, ruler: Ruler) -> float:
        """Tokens of all of it; a special token is one."""
        special = [span for span in self.questions if isinstance(span, SpecialSpan)]
        plain = "".join(span.text for span in self.questions if not isinstance(span, SpecialSpan))
        return ruler.tokens(self.before + self.after + plain) + len(special) + 2 * self.chat

    def around(self, context: Sequence[Span]) -> tuple[Span, ...]:
        """The whole document; neighbouring spans that are read only are joined."""
        if not self.chat:
            return _joined([Span(self.before, False), *context, Span(self.after, False), *self.questions])
        first = [Span(self.before, False), *context, Span(self.after, False)]
        return (*chat_spans([("user", _joined(first))]), *self.questions)


def lay_out(exercise: Exercise, rng: random.Random, chat: bool) -> Layout:
    """Wordings and form of a document, drawn at random."""
    return _chat(exercise, rng) if chat else _plain(exercise, rng)


def _plain(exercise: Exercise, rng: random.Random) -> Layout:
    turns = exercise.turns
    frame = _CONTINUED if exercise.continues else rng.choice(_FRAMES)
    if frame.escape and any("\n" in turn.answer for turn in turns):
        frame = _FRAMES[0]
    # An answer that begins in the question's own line needs words that lead to it.
    bare_question = frame.ask == "{q}" and not exercise.continues
    style = "lead" if bare_question else rng.choices(("bare", "lead", "sentence"), (6, 2, 2))[0]
    opening, asked_before = _opening(exercise, rng)
    spans: list[Span] = []
    for number, turn in enumerate(turns, 1):
        question = turn.question
        if number == 1 and asked_before and len(turns) == 1 and turn.lead and rng.random() < 0.4:
            question = "Answer the question that stands before the text."
        ask = frame.ask.format(q=_escaped(question) if frame.escape else question, n=number)
        lead, answer = _styled(turn, style)
        if frame.escape:
            lead, answer = _escaped(lead), _escaped(answer)
        if lead:
            ask += _gap(ask) + lead
        spans += [Span(ask, False), Span(_gap(ask) + answer + frame.end)]
    before = frame.before.format(o=opening).lstrip("\n") if opening else frame.before.replace("{o}", "").lstrip("\n")
    return Layout(before, frame.after, tuple(spans), chat=False)


def _chat(exercise: Exercise, rng: random.Random) -> Layout:
    turns = exercise.turns
    before, after = rng.choice(_CHAT_FRAMES)
    style = rng.choice(("bare", "sentence"))
    # Where the opening comes after the context, the question follows it anyway.
    opening = _opening(exercise, rng)[0] if "{o}" in before else exercise.opening
    messages: list[Message] = []
    for turn in turns:
        messages += [("user", turn.question), ("assistant", _styled(turn, style)[1])]
    return Layout(
        before.replace("{o}", opening).lstrip("\n"),
        after.replace("{o}", opening).replace("{q}", turns[0].question),
        tuple(chat_spans(messages[1:])),
        chat=True,
    )


def _opening(exercise: Exercise, rng: random.Random) -> tuple[str, bool]:
    """What is said before the context, and whether the first question is part of it."""
    if exercise.continues or rng.random() > 0.25:
        return exercise.opening, False
    return f"{exercise.opening} {exercise.turns[0].question}".strip(), True


def _styled(turn: Turn, style: str) -> tuple[str, str]:
    """What is given of the answer, and what is to be answered."""
    if style == "bare" or not turn.lead:
        return "", turn.answer
    answer = f'{turn.answer}"' if turn.lead.endswith('"') else turn.answer
    if style == "lead":
        return turn.lead, answer
    return "", f"{turn.lead}{_gap(turn.lead)}{answer}."


def _gap(before: str) -> str:
    """The space between a cue and an answer, which belongs to the answer's first token."""
    return "" if before.endswith(("\n", '"', "\t", "<answer>")) else " "


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    joined: list[Span] = []
    for span in spans:
        if not span.text:
            continue
        if joined and not span.trained and type(span) is Span and type(joined[-1]) is Span and not joined[-1].trained:
            joined[-1] = Span(joined[-1].text + span.text, False)
        else:
            joined.append(span)
    return tuple(joined)
