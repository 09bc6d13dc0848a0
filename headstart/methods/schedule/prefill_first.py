"""The baseline that the chunking schedulers are measured against: whole prompts first, decodes when none waits."""

from headstart.engine.planner import StepPlanner
from headstart.engine.seams import Scheduler
from headstart.methods.registry import method


@method(
    "prefill-first",
    stage="schedule",
    paper=None,
    when_not="For answers that people watch while other prompts arrive: every new prompt stops them.",
    composes="Any method that leaves the scheduler alone.",
    conflicts="Another scheduler.",
)
class PrefillFirst(Scheduler):
    """Runs waiting prompts whole, as many as the step's budget and the memory admit. Running answers wait meanwhile.
    A new prompt gets its first token soon, and all others pay with a gap. It is the baseline that the chunking
    schedulers are measured against.
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
