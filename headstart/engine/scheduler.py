"""The default scheduler: stall-free chunked prefill under a token budget (Sarathi-Serve, arXiv 2403.02310)."""

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
