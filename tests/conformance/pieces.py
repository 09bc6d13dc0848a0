"""A scheduler that cuts prompts where it is told to, whoever else runs."""

from collections.abc import Iterable

from headstart.engine.planner import StepPlanner
from headstart.engine.request import Sequence
from headstart.engine.seams import Scheduler


class Pieces(Scheduler):
    """Every sequence gets its next piece in every step: a method sees the same pieces alone and in company.

    Args:
        cuts: the places in a sequence before which a piece ends; no cut beyond the last.
    """

    def __init__(self, cuts: Iterable[int]) -> None:
        self.cuts = sorted(cuts)

    def schedule(self, step: StepPlanner) -> None:
        for sequence in step.decoding:
            step.decode(sequence)
        for sequence in step.prefilling:
            step.prefill(sequence, self._room(sequence.num_computed))
        while step.can_admit and step.admit(self._room(_found(step, step.waiting[0]))):
            pass

    def _room(self, start: int) -> int:
        """Tokens from `start` to the next cut."""
        return next((cut for cut in self.cuts if cut > start), 10**6) - start


def _found(step: StepPlanner, sequence: Sequence) -> int:
    """Tokens whose keys are in the cache already."""
    if sequence.wants_prompt_logprobs:
        return 0
    with step.store.open(sequence.request.namespace, sequence.tokens) as lease:
        return lease.num_cached
