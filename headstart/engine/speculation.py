"""Speculative decoding's part of a step: who gets a draft, and what drafts bring.

A draft's tokens run through the model beside the sequence's next one. The sampler then decides position by position,
with everything that a plain draw heeds (penalties, grammars, logit rules), and stops where a guess does not stand. A
guess that stands has its keys in the cache already; the keys of one that does not are written over.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

from headstart.engine.batch import Allotment
from headstart.engine.group import Group
from headstart.engine.request import Sequence
from headstart.engine.seams import Draft, Drafter, DraftLength
from headstart.engine.stack import Stack
from headstart.errors import MethodError

# Steps in which one way is tried out against the other, after one that may have to catch up.
_TRIAL = 8
# Steps before the way that lost is tried again; doubled each time that it loses again, so that trials cost little.
_PATIENCE, _MOST_PATIENCE = 128, 8192
# Steps that the measured time per token of each way is the mean of.
_MEMORY = 64
# Drafts after which a request is judged by its own, and tokens before it is tried again (doubled each time).
_JUDGED, _PAUSE = 8, 64


@dataclass
class _Way:
    """What decoding with drafts, or without, has cost at one load: seconds, sequences and tokens of each step."""

    steps: deque[tuple[float, int, int]] = field(default_factory=lambda: deque(maxlen=_MEMORY))

    @property
    def per_token(self) -> float:
        """Seconds per token."""
        return sum(step[0] for step in self.steps) / max(1, sum(step[2] for step in self.steps))

    @property
    def per_step(self) -> float:
        """Seconds per step and sequence in it."""
        return sum(step[0] for step in self.steps) / max(1, sum(step[1] for step in self.steps))


@dataclass
class _Load:
    """The two ways at one load. `drafting` is the one in force, for `left` more steps."""

    drafting: bool = True
    trial: bool = True
    left: int = _TRIAL + 1
    patience: int = _PATIENCE
    ways: dict[bool, _Way] = field(default_factory=lambda: {True: _Way(), False: _Way()})

    def note(self, seconds: float, sequences: int, tokens: int) -> None:
        """Count a step, and decide again if it was the last of its time."""
        self.left -= 1
        # The first step of a trial may read what the draft model has missed.
        if not self.trial or self.left < _TRIAL:
            self.ways[self.drafting].steps.append((seconds, sequences, tokens))
        if self.left:
            return
        if not self.trial or not self.ways[not self.drafting].steps:
            self._turn(not self.drafting, trial=True)
            return
        best = self.ways[True].per_token < self.ways[False].per_token
        self.patience = _PATIENCE if best == self.drafting else min(2 * self.patience, _MOST_PATIENCE)
        self._turn(best, trial=False)

    def _turn(self, drafting: bool, trial: bool) -> None:
        self.drafting, self.trial = drafting, trial
        self.left = _TRIAL + 1 if trial else self.patience
        if trial:
            self.ways[drafting].steps.clear()


@dataclass
class _Record:
    """A request's own drafts since it was last judged."""

    drafts: int = 0
    accepted: int = 0
    resume: int = 0
    pause: int = _PAUSE


class Guard:
    """Leaves drafts out where they lose, by measured seconds per token.

    For each load (decoding sequences, in powers of two) it tries decoding with drafts and without, goes on with what is
    faster, and tries the other again ever more rarely. Where drafts pay for the load, it still leaves out requests
    whose own drafts stand too rarely to pay for the longer step.
    """

    def __init__(self) -> None:
        self._loads: dict[int, _Load] = {}
        self._records: WeakKeyDictionary[Sequence, _Record] = WeakKeyDictionary()

    def load_wants(self, decoding: int) -> bool:
        """Whether to draft in a step with so many decoding sequences."""
        return self._load(decoding).drafting

    def request_wants(self, sequence: Sequence) -> bool:
        """Whether to draft for this sequence, where the load allows it."""
        record = self._records.get(sequence)
        return record is None or sequence.num_output >= record.resume

    def note_draft(self, sequence: Sequence, accepted: int, decoding: int) -> None:
        """A draft for the sequence was verified, so many of its tokens stood."""
        record = self._records.setdefault(sequence, _Record())
        record.drafts += 1
        record.accepted += accepted
        if record.drafts < _JUDGED:
            return
        ways = self._load(decoding).ways
        gain = 1 + record.accepted / record.drafts
        if ways[False].steps and gain * ways[False].per_step < ways[True].per_step:
            record.resume, record.pause = sequence.num_output + record.pause, 2 * record.pause
        record.drafts = record.accepted = 0

    def note_step(self, seconds: float, decoding: int, tokens: int) -> None:
        """A step that only decoded, the way that the load wants it, took so long and brought so many tokens."""
        self._load(decoding).note(seconds, decoding, tokens)

    def _load(self, decoding: int) -> _Load:
        return self._loads.setdefault(decoding.bit_length(), _Load())


@dataclass
class _Step:
    """A step under way.

    Attributes:
        start: when its planning began.
        decoding: sequences that could decode in it.
        planned: how many tokens to draft for whom.
        able: sequences that had room for a draft, and `paused` those of them that the guard left out for themselves.
        timed: whether it measures one way of decoding.
        asked: those for whom a draft was asked.
        drafts: accepted tokens of each draft.
    """

    start: float
    decoding: int
    planned: dict[Sequence, int] = field(default_factory=dict)
    able: int = 0
    paused: int = 0
    timed: bool = False
    asked: list[Sequence] = field(default_factory=list)
    drafts: dict[Sequence, int] = field(default_factory=dict)


class Speculation:
    """The drafts of an engine.

    Args:
        stack: with a drafter in it.
        clock: seconds.
        group: the other ranks; all go by rank 0's clock and take its drafts.

    Attributes:
        counts: drafts, drafted and accepted tokens, and drafts left out by the guard for the load or the request.
    """

    def __init__(
        self, stack: Stack, clock: Callable[[], float] = time.perf_counter, group: Group | None = None
    ) -> None:
        self.drafter = stack.get("drafter", Drafter)
        self.counts: Counter[str] = Counter()
        self._rule = stack.get("draft_length", DraftLength)
        self._guard = Guard() if self.drafter.guarded else None
        self._group = group or Group()
        self._clock = lambda: self._group.agree(clock())
        self._step: _Step | None = None

    @classmethod
    def of(cls, stack: Stack, group: Group | None = None) -> "Speculation | None":
        """The drafts of a stack; None where nothing drafts.

        Raises:
            MethodError: something is said about drafts that nobody makes, or guesses could not be verified.
        """
        if stack.optional("drafter", Drafter) is not None:
            refuse_unverifiable(stack)
            return cls(stack, group=group)
        for item in stack.methods:
            if {"draft_length", "verifier"} & set(item.slots):
                raise MethodError(f"{item.card.key} needs drafts: add a method that drafts")
        return None

    def begin(self, decoding: int) -> None:
        """Start planning a step in which so many sequences could decode."""
        self._step = _Step(self._clock(), decoding)

    def plan(self, sequence: Sequence, room: int) -> int:
        """How many tokens to draft for a decoding sequence, where the step's budget has so much room left."""
        assert self._step is not None
        step, length = self._step, self._room(sequence)
        step.able += length > 0
        # Who gives a seed is promised the same draws again, so that neither clock nor neighbours may decide how they
        # are made.
        if sequence.params.seed is None or sequence.params.greedy:
            length = min(length, room)
            if length and self._guard is not None:
                if not self._guard.load_wants(step.decoding):
                    self.counts["left out for the load"] += 1
                    length = 0
                elif not self._guard.request_wants(sequence):
                    self.counts["left out for the request"] += 1
                    step.paused += 1
                    length = 0
        if length:
            step.planned[sequence] = length
        return length

    def extend(self, allotments: list[Allotment]) -> list[Allotment]:
        """The step's allotments, with drafts for decoding sequences that may have one."""
        step = self._step
        assert step is not None
        chosen = {a.sequence: length for a in allotments if (length := self._reserved(a.sequence))}
        if self._guard is not None and len(allotments) == step.decoding:
            # A step is a measurement of one way only if all of its sequences went that way.
            one_way = not step.paused if self._guard.load_wants(step.decoding) else not chosen
            step.timed = step.able > 0 and one_way
        if not chosen:
            return allotments
        drafts = self._agreed(self.drafter.guess(list(chosen), list(chosen.values()), self._rule))
        step.asked = list(chosen)
        found = {sequence: draft for sequence, draft in zip(chosen, drafts, strict=True) if draft.tokens}
        self._note_drafts(found)
        return [replace(a, draft=found[a.sequence]) if a.sequence in found else a for a in allotments]

    def add_late(self, allotments: list[Allotment]) -> list[Allotment]:
        """The step's allotments, with what was guessed while the model ran."""
        if self._step is None or not self._step.asked:
            return allotments
        guesses = zip(self._step.asked, self._agreed(self.drafter.late(self._step.asked)), strict=True)
        found = {sequence: guess for sequence, guess in guesses if guess.tokens}
        self._note_drafts(found)
        return [replace(a, late=found[a.sequence]) if a.sequence in found else a for a in allotments]

    def _agreed(self, drafts: list[Draft]) -> list[Draft]:
        """Rank 0's drafts. What was drawn otherwise here needs no probabilities, for rank 0 verifies it."""
        tokens = self._group.agree([draft.tokens for draft in drafts])
        return [own if own.tokens == its else Draft(its) for own, its in zip(drafts, tokens, strict=True)]

    def _note_drafts(self, found: dict[Sequence, Draft]) -> None:
        """Count drafts; one that got a late guess is still one."""
        assert self._step is not None
        for sequence, draft in found.items():
            if sequence not in self._step.drafts:
                sequence.num_drafts += 1
                self._step.drafts[sequence] = 0
                self.counts["drafts"] += 1
            self.counts["drafted"] += len(draft.tokens)

    def accept(self, sequence: Sequence) -> None:
        """A guess stood."""
        assert self._step is not None
        self._step.drafts[sequence] += 1
        self.counts["accepted"] += 1

    def end(self, said: int) -> None:
        """The step is over, and brought so many tokens."""
        step, self._step = self._step, None
        if self._guard is None or step is None:
            return
        for sequence, accepted in step.drafts.items():
            self._guard.note_draft(sequence, accepted, step.decoding)
        if step.timed:
            self._guard.note_step(self._clock() - step.start, step.decoding, said)

    def forget(self, sequence: Sequence) -> None:
        """Let go of a sequence that has ended."""
        self.drafter.forget(sequence)

    def _reserved(self, sequence: Sequence) -> int:
        """The planned length of a sequence's draft, once there are pages for it; 0 for none."""
        assert self._step is not None
        length, lease = self._step.planned.get(sequence, 0), sequence.lease
        return length if length and lease is not None and lease.reserve(sequence.kv_length + 1 + length) else 0

    def _room(self, sequence: Sequence) -> int:
        """Tokens that a draft may have: the model says one more itself, and nothing is drafted beyond the end."""
        return min(self.drafter.length, sequence.request.max_tokens - sequence.num_output - 1)


def refuse_unverifiable(stack: Stack) -> None:
    """Refuse methods with which a row's result is not that of the token alone.

    Raises:
        MethodError: there is one.
    """
    for item in stack.methods:
        if not item.card.exact and item.card.chunking != "any":
            raise MethodError(
                f"{item.card.key} makes what a token gives depend on those that run beside it, so that "
                "guesses cannot be verified with it: leave out one of them"
            )
