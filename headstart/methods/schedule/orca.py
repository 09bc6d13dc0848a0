"""Orca's batching by iteration, a baseline: requests come and go between steps, prompts run whole beside decodes."""

from headstart.engine.planner import StepPlanner
from headstart.engine.seams import Scheduler
from headstart.errors import MethodError
from headstart.methods.registry import method


@method(
    "orca",
    stage="schedule",
    paper=None,
    when_not="For answers that people watch while long prompts arrive: a step lasts as long as the prompts in it.",
    composes="Any method that leaves the scheduler alone.",
    conflicts="Another scheduler.",
)
class Orca(Scheduler):
    """Runs one token of every running answer and whole new prompts in one step, in order of arrival. Requests join and
    leave between steps, so that nobody waits for the longest answer of a batch. Memory for the longest possible answer
    must be free before a request starts. It is the baseline of Yu and others (OSDI 2022) with which iteration-level
    scheduling began.

    Args:
        batch: at most this many sequences at once.
    """

    def __init__(self, batch: int = 256) -> None:
        if batch < 1:
            raise MethodError(f"orca: batch must be at least 1, not {batch}")
        self.batch = batch

    def schedule(self, step: StepPlanner) -> None:
        for sequence in step.decoding:
            step.decode(sequence)
        for sequence in step.prefilling:
            step.prefill(sequence, whole=True)
        while step.can_admit and len(step.running) < self.batch:
            head = step.waiting[0]
            if not step.admit(whole=True, spare=head.request.max_tokens - head.num_output):
                break
