"""BatchLLM (arXiv 2412.03594): prompts that share a prefix run together, planned over a whole job."""

from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from headstart.engine.cache import PagedKVStore
from headstart.engine.planner import StepPlanner
from headstart.engine.prefixes import Numbers
from headstart.engine.request import Sequence
from headstart.engine.seams import Piece, Scheduler
from headstart.errors import MethodError
from headstart.evaluation.method_bench_spec import MethodBench, Own, Quality
from headstart.methods.registry import Claim, Paper, method
from headstart.methods.schedule.batchllm.groups import Group, first_level_groups, saved_tokens

# So many groups further down the line are looked at while a prefix is being read.
_AHEAD = 4


@dataclass(eq=False)
class _Running:
    """A group of a job that runs.

    Attributes:
        prefix: int32 `[N]`, the tokens that all share.
        left: requests that have not started yet.
        leader: who reads the prefix for the others.
    """

    prefix: Numbers
    left: int
    leader: Sequence | None = None


@method(
    "batchllm",
    stage="schedule",
    paper=Paper(
        "BatchLLM: Optimizing Large Batched LLM Inference with Global Prefix Sharing and Throughput-oriented Token "
        "Batching",
        arxiv="2412.03594",
        venue="arXiv, 2024",
    ),
    needs=("all prompts of the job in advance",),
    claim=Claim(
        "1.1 to 2 times faster than vLLM",
        setting="""first version, microbenchmarks and two industry workloads, A100 and MI200; a later version
        says 1.3 to 10.8 times over vLLM and SGLang""",
        source="abstract; the hardware from the paper",
    ),
    when_not="For online traffic, or when prompts share nothing.",
    composes="`hydragen`, which reads a group's prefix once for all its decodes; quantised caches.",
    conflicts="Another scheduler; latency targets.",
)
class BatchLLM(Scheduler):
    """Plans an offline job whose prompts are all known in advance: a batch file, or a call of the Python API. It finds
    prefixes shared over the whole job, and runs all users of a prefix together after one of them has read it.
    Groups with much decoding start first, so that their decodes ride on later prefill chunks. Steps are limited by the
    memory that is expected to be used, and not by a number of requests.

    What a finished group leaves in the cache is the first to go when pages are wanted. Requests that nobody announced
    run in their order of arrival.

    Args:
        memory: share of the cache that may be expected to be used (the paper's is not known; ours: 0.95).
        output: tokens that an answer is expected to have where it may have more (ours: 256).
        reorder: groups with much decoding first; without it they run in the order of their tokens.
    """

    def __init__(self, memory: float = 0.95, output: int = 256, reorder: bool = True) -> None:
        if not 0 < memory <= 1:
            raise MethodError(f"batchllm: memory must be above 0 and at most 1, not {memory}")
        if not 1 <= output < 2**31:
            raise MethodError(f"batchllm: output must be at least 1 token, not {output}")
        self.memory, self.output, self.reorder = memory, output, reorder
        # By the requests that have not started yet.
        self._groups: dict[str, _Running] = {}
        self._counts: Counter[str] = Counter(groups=0, shared_prompts=0, planned_savings=0)

    @classmethod
    def bench(cls) -> MethodBench:
        """A job with shared prefixes, beside the engine's own prefix cache."""
        own = Own("headstart.methods.schedule.batchllm.bench")
        return MethodBench((), (own, Quality(tasks=())), ("job", "prompt tokens read"))

    def counters(self) -> dict[str, int]:
        """Groups of announced jobs with a prefix, their prompts, and prompt tokens that these need not read again."""
        return dict(self._counts)

    def arrange(self, job: Seq[Piece]) -> list[int]:
        groups = first_level_groups([piece.tokens for piece in job])
        if self.reorder:
            groups.sort(key=lambda group: self._ratio(group, job), reverse=True)
        shared = [group for group in groups if group.prefix]
        self._counts["groups"] += len(shared)
        self._counts["shared_prompts"] += sum(len(group.prompts) for group in shared)
        self._counts["planned_savings"] += saved_tokens(shared)
        for group in shared:
            prefix = np.asarray(job[group.prompts[0]].tokens[: group.prefix], dtype=np.int32)
            running = _Running(prefix, len(group.prompts))
            self._groups |= {job[place].request_id: running for place in group.prompts}
        return [place for group in groups for place in group.prompts]

    def _ratio(self, group: Group, job: Seq[Piece]) -> float:
        """Tokens to write for each one to read."""
        members = [job[place] for place in group.prompts]
        reads = group.prefix + sum(len(piece.tokens) - group.prefix for piece in members)
        return sum(self._expected(piece.max_tokens) for piece in members) / max(reads, 1)

    def _expected(self, max_tokens: int | None) -> int:
        return self.output if max_tokens is None else min(max_tokens, self.output)

    def schedule(self, step: StepPlanner) -> None:
        for sequence in step.decoding:
            step.decode(sequence)
        for sequence in step.prefilling:
            step.prefill(sequence)
        if step.can_admit:
            self._admit(step)

    def _admit(self, step: StepPlanner) -> None:
        """Start who is next as long as memory is expected to last."""
        size = step.store.page_size
        room = step.store.num_available - (1 - self.memory) * step.store.num_pages
        room -= sum(self._growth(sequence) for sequence in step.running) / size
        while step.can_admit and (sequence := self._next(step)) is not None:
            found = self._found(step, sequence)
            wanted = (len(sequence.tokens) + self._growth(sequence) - found) / size + 1
            if (step.running and wanted > room) or not step.admit(sequence=sequence):
                return
            room -= wanted
            self._note(step, sequence)

    def _growth(self, sequence: Sequence) -> int:
        """Tokens that an answer is expected to grow by."""
        return max(0, self._expected(sequence.request.max_tokens) - sequence.num_output)

    def _next(self, step: StepPlanner) -> Sequence | None:
        """The first in line who need not wait for a prefix that another is reading; None where all near it must."""
        place = 0
        for _ in range(_AHEAD):
            if place >= len(step.waiting):
                return None
            sequence = step.waiting[place]
            group = self._groups.get(sequence.request.request_id)
            if group is None or not self._is_reading(step, sequence, group):
                return sequence
            place += max(group.left, 1)
        return None

    def _is_reading(self, step: StepPlanner, sequence: Sequence, group: _Running) -> bool:
        """Whether somebody else is about to put the group's prefix into the cache."""
        leader = group.leader
        if leader is None or leader is sequence or leader not in step.running or sequence.request.namespace is None:
            return False
        whole = len(group.prefix) // step.store.page_size * step.store.page_size
        return leader.num_computed < whole or self._found(step, sequence) < whole

    def _found(self, step: StepPlanner, sequence: Sequence) -> int:
        """Tokens of the group's prefix whose keys are in the cache now."""
        group = self._groups.get(sequence.request.request_id)
        if group is None or not isinstance(step.store, PagedKVStore):
            return 0
        return step.store.num_found(sequence.request.namespace, group.prefix)

    def _note(self, step: StepPlanner, sequence: Sequence) -> None:
        """Somebody of a group has started; whoever comes back after a preemption is nobody's any more."""
        group = self._groups.pop(sequence.request.request_id, None)
        if group is not None:
            group.left -= 1
            if group.leader is None or group.leader not in step.running:
                group.leader = sequence
