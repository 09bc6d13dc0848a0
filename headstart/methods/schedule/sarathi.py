"""SARATHI (arXiv 2308.16369): decode-maximal batches that piggyback on one prefill chunk."""

from headstart.engine.planner import StepPlanner
from headstart.engine.seams import Scheduler
from headstart.errors import MethodError
from headstart.methods.registry import Paper, method


@method(
    "sarathi",
    stage="schedule",
    paper=Paper("SARATHI: Efficient LLM Inference by Piggybacking Decodes with Chunked Prefills", arxiv="2308.16369"),
)
class Sarathi(Scheduler):
    """Builds every step from exactly one prompt chunk and all running decodes, which then use weights that the chunk
    has brought in anyway. Aims at tokens per second with long prompts, not at tail latency.

    Args:
        chunk: rows of a step that carries a chunk: the decodes are taken out of it, so that the step stays a
            multiple of the matrix tile (the paper's tile rule). 256 and 512 are the paper's.
        batch: at most this many sequences at once: one chunk and `batch - 1` decodes (paper: what fits in memory;
            18 in its main table).
    """

    def __init__(self, chunk: int = 256, batch: int = 18) -> None:
        if chunk < 1 or batch < 1:
            raise MethodError(f"sarathi: chunk and batch must be at least 1, not {chunk} and {batch}")
        self.chunk = self.step_tokens = chunk
        self.batch = batch

    def schedule(self, step: StepPlanner) -> None:
        decodes = sum(step.decode(sequence) for sequence in step.decoding)
        rows = max(1, self.chunk - decodes)
        if step.prefilling:
            step.prefill(step.prefilling[0], rows)
        elif len(step.running) < self.batch:
            step.admit(rows)
