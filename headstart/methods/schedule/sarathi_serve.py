"""Sarathi-Serve (arXiv 2403.02310): stall-free batches of chunked prefills and decodes."""

from headstart.engine.planner import StepPlanner
from headstart.engine.scheduler import StallFree
from headstart.errors import MethodError
from headstart.methods.registry import Claim, Paper, method


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
class SarathiServe(StallFree):
    """Gives every step a fixed budget of tokens. One token of every running decode goes in first, and slices of prompts
    fill what is left, so that no answer waits for somebody else's prompt. The slices use arithmetic that decodes leave
    idle. What rises is the request rate at which a target for the tail of the time between tokens still holds.

    Args:
        chunk: tokens per step. 512 for strict latency targets and 2048 for relaxed ones are the paper's.
    """

    def __init__(self, chunk: int = 512) -> None:
        if chunk < 1:
            raise MethodError(f"sarathi-serve: chunk must be at least 1, not {chunk}")
        self.chunk = self.step_tokens = chunk

    def schedule(self, step: StepPlanner) -> None:
        step.budget = min(step.budget, self.chunk)
        super().schedule(step)
