"""The tokens of a step: read from the device, verified all at once, or drawn one position after the other."""

from collections.abc import Iterator
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from headstart.engine.batch import Allotment
from headstart.engine.flight import StepInFlight
from headstart.engine.request import Sequence
from headstart.engine.runner import Runner
from headstart.engine.sampler import Guess, Sampled, Sampler
from headstart.engine.seams import LogitRule
from headstart.engine.speculation import Speculation
from headstart.ops.staging import to_device


class Draws:
    """Turns a step's rows into tokens, drafts and logit rules included.

    Args:
        runner: makes logits.
        sampler: draws.
        speculation: hears which guesses stand; None without a drafter.
    """

    def __init__(self, runner: Runner, sampler: Sampler, speculation: Speculation | None) -> None:
        self._runner, self.sampler, self._speculation = runner, sampler, speculation

    def read(self, step: StepInFlight) -> Iterator[tuple[Sequence, Sampled]]:
        """What each sequence of a step says next, one token after the other; the caller appends what it gets before it
        asks for more, since a draw depends on all tokens before it."""
        # Who has ended draws no more, and who was set back draws the same once again.
        rows = [row for row, allotment in enumerate(step.due) if step.stands(allotment)]
        due = [step.due[row] for row in rows]
        if not due:
            return
        if step.drawn is None:
            # Drafts are never started ahead, so that where one has left each has a single row.
            every = len(rows) == len(step.due)
            hidden = step.hidden if every else step.hidden[to_device(np.array(rows), step.hidden.device)]
            blindly = all(a.sequence.draws_blindly and a.sequence.stack.logit_rule is None for a in due)
            yield from (self._verify if blindly else self._look_on)(due, hidden)
            return
        tokens = step.drawn.read()
        for row, allotment in zip(rows, due, strict=True):
            allotment.sequence.num_ahead -= 1
            yield allotment.sequence, Sampled(tokens[row], None)

    def _verify(self, due: list[Allotment], hidden: Tensor) -> Iterator[tuple[Sequence, Sampled]]:
        """The same where no draw needs to know the tokens before it: all rows at once, whatever will stand of them."""
        rows = [(allotment, place) for allotment in due for place in range(1 + len(allotment.guesses))]
        guesses = [_guess(*row) for row in rows]
        tokens = self._verified(hidden, [a.sequence for a, _ in rows], [place for _, place in rows], guesses)
        first = 0
        for allotment in due:
            sequence = allotment.sequence
            for place in range(1 + len(allotment.guesses)):
                token, guess = tokens[first + place], guesses[first + place]
                stands = guess is not None and token == guess.token
                if stands:
                    self._accept(sequence, token, place < len(allotment.guesses))
                yield sequence, Sampled(token, None)
                if not stands or sequence.finished:
                    break
            first += 1 + len(allotment.guesses)

    @torch.inference_mode()
    def _verified(
        self, hidden: Tensor, sequences: list[Sequence], offsets: list[int], guesses: list[Guess | None]
    ) -> list[int]:
        return self.sampler.verify(self._runner.logits(hidden), sequences, offsets, guesses).tolist()

    def _look_on(self, due: list[Allotment], hidden: Tensor) -> Iterator[tuple[Sequence, Sampled]]:
        """Each sequence's next token, and as long as a guess stands the one after it."""
        logits = self._runner.logits(hidden)
        first = [0, *accumulate(1 + len(allotment.guesses) for allotment in due)]
        left = list(range(len(due)))
        place = 0
        while left:
            sequences = [due[i].sequence for i in left]
            rows = logits
            if len(left) < len(logits):
                rows = logits[to_device(np.array([first[i] + place for i in left]), logits.device)]
            guesses = [_guess(due[i], place) for i in left]
            standing: list[int] = []
            for i, guess, drawn in zip(left, guesses, self._sample(rows, sequences, guesses), strict=True):
                sequence = due[i].sequence
                stands = guess is not None and drawn.token_id == guess.token
                computed = place < len(due[i].guesses)
                if stands:
                    self._accept(sequence, drawn.token_id, computed)
                yield sequence, drawn
                if stands and computed and not sequence.finished:
                    standing.append(i)
            left, place = standing, place + 1

    def _accept(self, sequence: Sequence, token: int, computed: bool) -> None:
        """Take over the keys of a guess that stands and was computed; the token itself is appended as any other."""
        assert self._speculation is not None and sequence.lease is not None
        self._speculation.accept(sequence)
        if not computed:
            return
        sequence.num_computed += 1
        if sequence.num_computed % self._runner.store.page_size == 0:
            # Now, since the token may be the last and end the lease.
            sequence.lease.commit([*sequence.tokens, token], sequence.stack.num_shareable(sequence))

    @torch.inference_mode()
    def _sample(self, logits: Tensor, sequences: list[Sequence], guesses: list[Guess | None]) -> list[Sampled]:
        return self.sampler.sample(_ruled(logits, sequences), sequences, guesses)


def _ruled(logits: Tensor, sequences: list[Sequence]) -> Tensor:
    """`logits [N, V]` after each sequence's own rule, if it has one."""
    rows: dict[LogitRule, list[int]] = {}
    for row, sequence in enumerate(sequences):
        if sequence.stack.logit_rule is not None:
            rows.setdefault(sequence.stack.logit_rule, []).append(row)
    for rule, chosen in rows.items():
        if len(chosen) == len(sequences):
            return rule.apply(logits, sequences)
        index = to_device(np.array(chosen), logits.device)
        logits = logits.index_copy(0, index, rule.apply(logits[index], [sequences[row] for row in chosen]))
    return logits


def _guess(allotment: Allotment, place: int) -> Guess | None:
    """What the allotment guesses at a place, if it reaches so far."""
    draft = allotment.draft
    if place == len(allotment.guesses):
        draft, place = allotment.late, 0
    return None if draft is None else Guess.of(draft, place, allotment.sequence.num_drafts)
