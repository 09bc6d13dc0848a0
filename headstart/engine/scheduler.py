"""The default scheduler: stall-free chunked prefill under a token budget (Sarathi-Serve, arXiv 2403.02310)."""

from collections import deque

from headstart.engine.planner import StepPlanner
from headstart.engine.seams import Scheduler


class StallFree(Scheduler):
    """Every running decode first, then unfinished prompts, then new ones, until the budget is spent.

    No decode ever waits for a prompt: a long prompt only lengthens a step by the chunk that fits beside the decodes.
    """

    def schedule(self, step: StepPlanner) -> None:
        for sequence in step.decoding:
            step.decode(sequence)
        for sequence in step.prefilling:
            step.prefill(sequence)
        while step.admit():
            pass


class ByPriority(Scheduler):
    """Another scheduler that sees the waiting line in order of `SamplingParams.priority`, then of arrival.

    What runs already is not interrupted: a priority says who starts first.
    """

    def __init__(self, inner: Scheduler) -> None:
        self.inner, self.step_tokens = inner, inner.step_tokens

    def schedule(self, step: StepPlanner) -> None:
        step.waiting = deque(sorted(step.waiting, key=lambda sequence: sequence.params.priority))
        self.inner.schedule(step)
