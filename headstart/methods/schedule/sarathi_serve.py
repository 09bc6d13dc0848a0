"""Sarathi-Serve (arXiv 2403.02310): stall-free batches of chunked prefills and decodes."""

from headstart.engine.planner import StepPlanner
from headstart.engine.scheduler import StallFree
from headstart.errors import MethodError
from headstart.methods.registry import Paper, method


@method(
    "sarathi-serve",
    stage="schedule",
    paper=Paper("Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve", arxiv="2403.02310"),
)
class SarathiServe(StallFree):
    """Fills each step first with one token of every running decode and then with slices of prompts, up to a fixed
    token budget, so that no answer waits for somebody else's prompt. Raises the request rate that a tail
    time-between-tokens target allows; does nothing for a lone request.

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
