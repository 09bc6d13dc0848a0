"""The baseline that the chunking schedulers are measured against: whole prompts first, decodes when none waits."""

from headstart.engine.planner import StepPlanner
from headstart.engine.seams import Scheduler
from headstart.methods.registry import method


@method("prefill-first", stage="schedule", paper=None)
class PrefillFirst(Scheduler):
    """Runs waiting prompts whole, as many as the budget admits, and lets running answers wait meanwhile. Gives the
    best time to first token and the worst gaps between tokens; the baseline of the chunking schedulers.
    """

    def schedule(self, step: StepPlanner) -> None:
        for sequence in step.prefilling:
            step.prefill(sequence, whole=True)
        started = bool(step.allotments())
        while step.admit(whole=True):
            started = True
        if not started:
            for sequence in step.decoding:
                step.decode(sequence)
