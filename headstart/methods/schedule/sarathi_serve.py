"""Sarathi-Serve (arXiv 2403.02310): stall-free batches of chunked prefills and decodes."""

from itertools import islice

from headstart.checkpoints.reader import Checkpoint
from headstart.engine.planner import StepPlanner
from headstart.engine.request import Sequence
from headstart.engine.seams import Scheduler
from headstart.errors import MethodError
from headstart.methods.registry import Claim, Paper, method

# How far back in the line a short prompt may stand that passes a long one.
_WINDOW = 32


@method(
    "sarathi-serve",
    stage="schedule",
    paper=Paper(
        "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve",
        arxiv="2403.02310",
        venue="OSDI 2024",
    ),
    claim=Claim(
        "2.6 times vLLM's capacity on one A100, up to 5.6 times on eight",
        setting="""capacity is the highest rate of requests whose P99 time between tokens meets a target; Mistral-7B
        on one A100, Yi-34B on two (3.7 times), Falcon-180B on eight; the first version said 6.9 times for the last""",
        source="abstract; the definition from the paper",
    ),
    when_not="""For offline decoding, single users, or prompts shorter than the budget, where it does what any mixed
    batching does. A lone request gets its first token slightly later.""",
    composes="Paged caches, prefix caching, quantisation, CUDA graphs per size of budget.",
    conflicts="Another scheduler; methods that need all queries of a prompt at once.",
)
class SarathiServe(Scheduler):
    """Gives every step a fixed budget of tokens. One token of every running decode goes in first, and slices of prompts
    fill what is left, so that no answer waits for somebody else's prompt. The slices use arithmetic that decodes leave
    idle. What rises is the request rate at which a target for the tail of the time between tokens still holds.

    Args:
        chunk: tokens per step. 512 for strict latency targets and 2048 for relaxed ones are the paper's.
        tbt_ms: the target for the time between tokens, in milliseconds: a profile run at the start finds the largest
            step that meets it, in whole matrix tiles, and takes it instead of `chunk`.
        context: tokens of context that the profile run puts behind its steps (the longest that is expected).
        long: prompts of more tokens are long: shorter ones pass them in the line, and share steps with them evenly.
        most_long: so many long prompts are read at once.
    """

    def __init__(
        self,
        chunk: int = 512,
        tbt_ms: float | None = None,
        context: int = 4096,
        long: int | None = None,
        most_long: int = 1,
    ) -> None:
        for name, value in (("chunk", chunk), ("context", context), ("long", long), ("most_long", most_long)):
            if value is not None and value < 1:
                raise MethodError(f"sarathi-serve: {name} must be at least 1, not {value}")
        if tbt_ms is not None and not 0 < tbt_ms < float("inf"):
            raise MethodError(f"sarathi-serve: tbt_ms must be a number of milliseconds above 0, not {tbt_ms}")
        self.chunk = self.step_tokens = chunk
        self.tbt_ms, self.context, self.long, self.most_long = tbt_ms, context, long, most_long

    def start(self, checkpoint: Checkpoint) -> None:
        if self.tbt_ms is None:
            return
        from headstart.methods.schedule.profile import StepProfile, largest_step

        profile = StepProfile(checkpoint, self.context)
        found = largest_step(profile, self.tbt_ms / 1000, 2048)
        if found is None:
            least = 1000 * profile.seconds(profile.tile)
            raise MethodError(
                f"sarathi-serve: no step meets tbt_ms={self.tbt_ms:g}: {profile.tile} tokens behind "
                f"{profile.context} take {least:.3g} ms here; ask for at least that, or for a shorter context"
            )
        self.chunk = self.step_tokens = found

    def schedule(self, step: StepPlanner) -> None:
        step.budget = min(step.budget, self.chunk)
        for sequence in step.decoding:
            step.decode(sequence)
        reading = step.prefilling
        longs = [sequence for sequence in reading if self._is_long(sequence)]
        # The first long prompt has half of what is left for itself: it always comes to its end.
        kept = (step.budget + 1) // 2 if longs else 0
        if longs:
            step.prefill(longs[0], kept)
        for sequence in reading:
            step.prefill(sequence)
        while step.can_admit:
            chosen = self._next(step, len(longs))
            if chosen is None or not step.admit(sequence=chosen):
                break
            longs += [chosen] if self._is_long(chosen) else []

    def _is_long(self, sequence: Sequence) -> bool:
        return self.long is not None and sequence.num_prompt > self.long and sequence.num_computed < sequence.num_prompt

    def _next(self, step: StepPlanner, longs: int) -> Sequence | None:
        """The head of the line, or while enough long prompts are being read the first short one."""
        if longs < self.most_long:
            return step.waiting[0]
        return next((s for s in islice(step.waiting, _WINDOW) if not self._is_long(s)), None)
