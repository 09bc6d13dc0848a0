"""DeepSpeed-FastGen's Dynamic SplitFuse (arXiv 2401.08671): every step carries the same number of tokens."""

from headstart.checkpoints.reader import Checkpoint
from headstart.engine.planner import StepPlanner
from headstart.engine.seams import Scheduler
from headstart.errors import MethodError
from headstart.methods.registry import Claim, Paper, method


@method(
    "fastgen",
    stage="schedule",
    paper=Paper(
        "DeepSpeed-FastGen: High-throughput Text Generation for LLMs via MII and DeepSpeed-Inference",
        arxiv="2401.08671",
        venue="arXiv, 2024",
    ),
    claim=Claim(
        "2.3 times the effective throughput of vLLM, tail latency up to 3.7 times lower",
        setting="""Llama-2 70B on 4 A100 80GB, vLLM of late 2023: 1.42 instead of 0.63 requests/s at 4 tokens/s
        or more, prompts of 2600 and answers of 60 tokens; P95 token latency at 2600 and 128, 16 clients""",
        source="the paper",
    ),
    when_not="For single requests or loads of decoding only. Its budget of 768 tokens is meant for an A100.",
    composes="Prefix caching, quantisation, tensor parallelism.",
    conflicts="Another scheduler; speculative decoding, unless drafts count in the budget.",
)
class FastGen(Scheduler):
    """Gives every forward pass the same number of tokens, near the point where throughput saturates. Long prompts are
    cut over several passes, and short ones are packed together with decode tokens until the budget is met exactly.
    Token latency becomes steadier and throughput higher than with whole prompts. Cutting a prompt leaves the result
    unchanged.

    A decode for which there is no page is skipped; when nothing at all can run, who was admitted last gives its pages
    back and goes to the end of the line.

    Args:
        budget: tokens per step; 768 is the code's default. 0 finds the knee: a profile run at the start takes the
            smallest step that reaches 95% of the best throughput.
        context: tokens of context that the profile run puts behind its steps.
    """

    def __init__(self, budget: int = 768, context: int = 4096) -> None:
        if budget < 0 or context < 1:
            raise MethodError(f"fastgen: budget must be at least 0, and context at least 1, not {budget} and {context}")
        self.budget, self.context = budget, context
        self.step_tokens = budget or None

    def start(self, checkpoint: Checkpoint) -> None:
        if self.budget == 0:
            from headstart.methods.schedule.profile import StepProfile, knee

            self.budget = self.step_tokens = knee(StepProfile(checkpoint, self.context), 4096)

    def schedule(self, step: StepPlanner) -> None:
        step.budget = min(step.budget, self.budget or step.budget)
        # Never more of them than the budget: nobody is admitted into a step that decodes fill.
        decoding = step.decoding
        for sequence in decoding:
            step.decode(sequence, may_preempt=False)
        for sequence in step.prefilling:
            step.prefill(sequence)
        while step.admit():
            pass
        if decoding and not step.allotments():
            step.preempt(next(reversed(step.running)), last=True)
            for sequence in step.decoding:
                step.decode(sequence, may_preempt=False)
