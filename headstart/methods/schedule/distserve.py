"""DistServe (arXiv 2401.09670): prefill and decode in engines of their own, keys pulled from one to the other."""

from typing import Literal

from headstart.cluster.shared_store import MIGRATES, SharedKVStore
from headstart.engine.planner import StepPlanner
from headstart.engine.scheduler import StallFree
from headstart.errors import MethodError
from headstart.methods.registry import Claim, Paper, method


@method(
    "distserve",
    stage="schedule",
    paper=Paper(
        "DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language Model Serving",
        arxiv="2401.09670",
        venue="OSDI 2024",
    ),
    needs=("two engines or more: `headstart serve --disaggregate prefill=1,decode=1`",),
    claim=Claim(
        "up to 7.4 times more requests, or latency targets 12.6 times tighter",
        setting="""OPT-13B, 66B and 175B on 4 nodes of 8 A100 80GB, over 90% of the requests within both
        targets, against vLLM and DeepSpeed-MII; the first version said 4.48 and 10.2 times""",
        source="abstract of the final version; the setting from the paper",
    ),
    when_not="""With one GPU, loose targets or slow links: chunked prefill on shared GPUs (`sarathi-serve`) is
    simpler and often better.""",
    composes="Prefix caching, KV quantisation (smaller transfers), `sarathi` within the prefill side.",
    conflicts="Another scheduler in the same place.",
)
class DistServe(StallFree):
    """Runs prefill and decode on different engines, since they disturb each other on one and want different
    parallelism. The cache moves between them, pulled by the decode side. A search with a latency model and a simulator
    chooses the numbers of both. Its goal is goodput per GPU: the rate of requests at which a stated share of them meets
    both latency targets.

    Args:
        role: of this engine. "prefill" runs whole prompts in order of arrival, together as long as they fit `tokens`, a
            longer one alone; "decode" runs every answer in every step, and what prompts lack in what is left.
        tokens: of prompts in one step, where throughput saturates (paper: about 512 for 13B on an A100).
        batch: most sequences at once (the code's 256).
    """

    def __init__(self, role: Literal["prefill", "decode"] = "prefill", tokens: int = 512, batch: int = 256) -> None:
        if role not in ("prefill", "decode"):
            raise MethodError(f"distserve: role must be prefill or decode, not {role!r}")
        if tokens < 1 or batch < 1:
            raise MethodError(f"distserve: tokens and batch must be at least 1, not {tokens} and {batch}")
        self.role, self.tokens, self.batch = role, tokens, batch
        self.step_tokens = tokens

    def schedule(self, step: StepPlanner) -> None:
        store = step.store
        if isinstance(store, SharedKVStore):
            store.settle()
            store.step += 1
        if self.role == "decode":
            super().schedule(step)
            return
        for sequence in step.prefilling:
            step.prefill(sequence, whole=True)
        while step.can_admit and len(step.running) < self.batch and self._fits(step):
            if not step.admit(whole=True):
                break
        if not step.allotments():
            for sequence in step.decoding:
                step.decode(sequence)
        if isinstance(store, SharedKVStore):
            for allotment in step.allotments():
                if allotment.sequence.request.request_id.startswith(MIGRATES):
                    store.migrate(allotment.sequence, allotment.num_tokens)

    def _fits(self, step: StepPlanner) -> bool:
        """Whether the next prompt joins the others of this step: it comes first, or all of it fits the budget."""
        return not step.allotments() or step.waiting[0].num_uncomputed <= step.budget
