"""Batching by request as FasterTransformer does it, a baseline: a batch begins and ends together."""

from headstart.engine.planner import StepPlanner
from headstart.engine.seams import Scheduler
from headstart.errors import MethodError
from headstart.methods.registry import method


@method(
    "request-batches",
    stage="schedule",
    paper=None,
    when_not="For anything but jobs of equal lengths: the shortest answer holds its place until the longest has ended.",
    composes="Any method that leaves the scheduler alone.",
    conflicts="Another scheduler.",
)
class RequestBatches(Scheduler):
    """Takes a batch of requests, reads their prompts, and writes their answers until the last of them has ended. Who
    arrives meanwhile waits for the whole batch. Answers are never stalled by prompts, and most of the machine is idle
    at the end of each batch. It is how serving with FasterTransformer worked, the baseline that Orca and SARATHI are
    compared with.

    Args:
        batch: requests of a batch.
    """

    def __init__(self, batch: int = 16) -> None:
        if batch < 1:
            raise MethodError(f"request-batches: batch must be at least 1, not {batch}")
        self.batch = batch
        self._open = True

    def schedule(self, step: StepPlanner) -> None:
        # A batch is open until its first answer is being written, and the next opens when nobody runs any more.
        self._open = not step.running or (self._open and not step.decoding)
        for sequence in step.prefilling:
            step.prefill(sequence, whole=True)
        while self._open and len(step.running) < self.batch and step.admit(whole=True):
            pass
        if not step.allotments():
            for sequence in step.decoding:
                step.decode(sequence)
