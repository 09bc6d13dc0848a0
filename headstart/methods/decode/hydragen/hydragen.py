"""Hydragen (arXiv 2402.05099): decode attention in a shared and an own part, over the prefix tree of the step."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from headstart.engine.seams import Attention
from headstart.errors import MethodError
from headstart.evaluation.method_bench_spec import MethodBench, Own, Quality
from headstart.methods.decode.hydragen.buffers import Buffers
from headstart.methods.decode.hydragen.plan import Plan
from headstart.methods.decode.hydragen.sharing import Costs
from headstart.methods.registry import Claim, Paper, method
from headstart.models.decoder import AttentionSpec
from headstart.ops.attention import RaggedLayout, Selection, SharedKeys, paged_attention, shared_attention

# Keys that must be spared in a layer before sharing pays for its launches.
_THRESHOLD = {"cpu": 1536, "cuda": 16384}


@method(
    "hydragen",
    stage="decode",
    paper=Paper(
        "Hydragen: High-Throughput LLM Inference with Shared Prefixes", arxiv="2402.05099", venue="arXiv, 2024"
    ),
    claim=Claim(
        "up to 32 times the throughput of competitive baselines",
        setting="""CodeLlama-13B on 8 A100 40GB, 128 new tokens, against FlashAttention and vLLM 0.2.7: above 3
        times at a shared prefix of 1K, above 30 at 16K and batch 1024""",
        source="abstract and the paper's figures",
    ),
    when_not="For batch 1, or when the own parts dominate: several kernels and a merge are then slower than one.",
    composes="Speculative decoding, `batchllm` (which finds the groups), any scheduler.",
    conflicts="""Eviction of prefix tokens per sequence, methods that need the full matrix of scores, and selectors,
    beside which it attends as the plain engine does; layers with sliding windows are left to the plain engine too.""",
)
class Hydragen(Attention):
    """Splits the decode attention of sequences that share a prefix into a shared and an own part. The shared part is
    computed for all sequences together, as one matrix product instead of many products with vectors. The parts are
    merged exactly by their log-sum-exps. It saves memory bandwidth.

    Who shares what is read from the page tables, at several levels of the prefix tree, and the cost of each step
    decides which parts are worth it. Decode steps that are captured as CUDA graphs are captured in two forms, with
    shared parts and without.

    Args:
        levels: shared parts that a sequence's keys are cut into at most (the paper shows 1 and 2; ours: 3).
        threshold: keys that a step must be spared reading in each layer before anything is shared; 0 takes what suits
            the device (ours, as measured on a CPU: 1,536; on a GPU 16,384, by the cost of its launches).
        part: keys whose reading costs as much as one more part of a sequence (ours, by the bytes of a query and of a
            result in float32, with 4 query heads to a KV head).
    """

    slots = ("attention.decode",)
    capturable = True
    forms = 2

    def __init__(self, levels: int = 3, threshold: int = 0, part: int = 16) -> None:
        if not 1 <= levels <= 8:
            raise MethodError(f"hydragen: levels must be from 1 to 8, not {levels}")
        if not 0 <= threshold < 2**40:
            raise MethodError(f"hydragen: threshold must be a number of keys of at least 0, not {threshold}")
        if not 0 <= part < 2**40:
            raise MethodError(f"hydragen: part must be a number of keys of at least 0, not {part}")
        self.levels, self.threshold, self.part = levels, threshold, part
        self._plan: Plan | None = None
        self._buffers: Buffers | None = None
        self._counts = {"steps": 0, "shared_steps": 0, "plans": 0, "spared_keys": 0}

    @classmethod
    def bench(cls) -> MethodBench:
        """Many answers to one text, over its length."""
        own = Own("headstart.methods.decode.hydragen.bench")
        return MethodBench((), (own, Quality(tasks=())), ("decode",))

    def counters(self) -> dict[str, int]:
        """Decode steps, those that shared, how often the plan was made anew, and keys of a layer that were not read
        again."""
        return dict(self._counts)

    def attend(
        self,
        spec: AttentionSpec,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        layout: RaggedLayout,
        selection: Selection | None,
    ) -> tuple[Tensor, Tensor]:
        parts = self._parts(layout)
        if parts is None or selection is not None or not _sees_all(spec, layout):
            rule = {"scale": spec.scale, "window": spec.window, "softcap": spec.softcap, "selection": selection}
            return paged_attention(q, keys, values, layout, **rule)
        return shared_attention(q, keys, values, parts, scale=spec.scale, softcap=spec.softcap)

    def form_of(self, layout: RaggedLayout) -> int:
        return int(len(layout.query_lengths) > 1 and self._planned(layout).segments != [])

    def hold(self, layout: RaggedLayout, form: int) -> None:
        layout.routes[self] = None
        if form:
            if self._buffers is None:
                self._buffers = Buffers(layout, self.levels)
            layout.routes[self] = self._buffers.parts(layout)

    def refill(self, captured: RaggedLayout, layout: RaggedLayout) -> None:
        if captured.routes[self] is not None:
            assert self._buffers is not None and self._plan is not None, "the form of the step comes first"
            self._buffers.fill(self._plan, layout, captured.num_rows)

    def _parts(self, layout: RaggedLayout) -> SharedKeys | None:
        """How a step's keys fall into parts, worked out in the first layer; None where all are read as ever."""
        if self not in layout.routes and len(layout.query_lengths) == 1:
            layout.routes[self] = None
        elif self not in layout.routes:
            plan = self._planned(layout)
            layout.routes[self] = plan.parts(layout) if plan.segments else None
        return layout.routes[self]

    def _planned(self, layout: RaggedLayout) -> Plan:
        """The plan for a step: the last one as long as the same sequences share the same pages."""
        table = layout.table
        if self._plan is None or not self._plan.holds(layout, table):
            self._plan = self._make(layout, table)
            self._counts["plans"] += 1
        self._counts["steps"] += 1
        self._counts["shared_steps"] += self._plan.segments != []
        self._counts["spared_keys"] += self._plan.spared
        return self._plan

    def _make(self, layout: RaggedLayout, table: NDArray[np.int32]) -> Plan:
        threshold = self.threshold or _THRESHOLD.get(layout.device.type, _THRESHOLD["cuda"])
        return Plan.make(layout, table, Costs(layout.page_size, self.levels, threshold, self.part))


def _sees_all(spec: AttentionSpec, layout: RaggedLayout) -> bool:
    """Whether no window hides a key from the newest row."""
    longest = max(layout.kv_lengths) if layout.on_host else layout.index.max_kv
    return spec.window is None or spec.window >= longest
