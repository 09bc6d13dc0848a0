"""One simulated engine: the real scheduler, planner and page cache, and a cost model in place of the model."""

from dataclasses import dataclass, field

from headstart.engine.batch import Allotment
from headstart.engine.cache import PagedKVStore
from headstart.engine.outputs import RequestMetrics
from headstart.engine.params import SamplingParams
from headstart.engine.planner import StepPlanner
from headstart.engine.request import Request, Sequence
from headstart.engine.seams import Scheduler
from headstart.engine.waiting import line_of
from headstart.evaluation.load.plan import Ask
from headstart.evaluation.simulate.cost import SimulationError, StepCost

_PARAMS = SamplingParams()


@dataclass(frozen=True)
class WorkerSettings:
    """One engine's sizes, with the names and meanings of `EngineArgs`; `asked_tokens` is the budget of a step where the
    user names one, which goes before the scheduler's own."""

    num_pages: int
    page_size: int = 16
    max_num_seqs: int = 128
    max_num_batched_tokens: int = 512
    asked_tokens: int | None = None
    scheduling_policy: str = "fcfs"
    enable_prefix_caching: bool = True


@dataclass(eq=False)
class Job:
    """One request on its way; times in seconds of the simulation.

    Attributes:
        ask: what is asked.
        arrived: when.
        tokens: when each token of its answer came.
        transfer: seconds that its keys were on their way from one worker to another.
    """

    ask: Ask
    arrived: float
    tokens: list[float] = field(default_factory=list)
    transfer: float = 0.0


class SimWorker:
    """One engine.

    Args:
        cost: of its steps.
        scheduler: a new instance of the scheduler that runs in the engine.
        settings: its sizes.

    Attributes:
        planner: the engine's own.
        steps, decisions: so far; a decision is a sequence's share of a step.
        busy: seconds spent in steps.
        waits_for: until when the step that runs takes; None while idle.
    """

    def __init__(self, cost: StepCost, scheduler: Scheduler, settings: WorkerSettings) -> None:
        self.cost, self.scheduler, self.settings = cost, scheduler, settings
        store = PagedKVStore().allocate([], settings.num_pages, settings.page_size)
        budget = settings.asked_tokens or scheduler.step_tokens or settings.max_num_batched_tokens
        line = line_of(settings.scheduling_policy)
        self.planner = StepPlanner(store, settings.max_num_seqs, budget, line=line)
        self.store = store
        self.steps = self.decisions = 0
        self.busy = 0.0
        self.waits_for: float | None = None
        self._jobs: dict[Sequence, Job] = {}
        self._allotments: list[Allotment] = []

    @property
    def load(self) -> int:
        """Tokens that are still to be computed for those who wait or run, answers left aside."""
        return sum(sequence.num_uncomputed for sequence in self._jobs)

    @property
    def count(self) -> int:
        """Requests that wait or run."""
        return len(self._jobs)

    def submit(self, job: Job, written: int = 0) -> Sequence:
        """A request arrives.

        Args:
            job: what it asks.
            written: tokens of its answer that are known already.

        Raises:
            SimulationError: it could never be held.
        """
        ask = job.ask
        longest = ask.input_tokens + ask.output_tokens
        if longest > self.settings.num_pages * self.settings.page_size:
            raise SimulationError(
                f"request {ask.index} has {longest} tokens of prompt and answer, and a worker's cache holds "
                f"{self.settings.num_pages * self.settings.page_size}; give it more memory, or cut the lengths"
            )
        sequence = _sequence(job, written, self.settings.enable_prefix_caching)
        self._jobs[sequence] = job
        self.planner.waiting.append(sequence)
        return sequence

    def adopt(self, job: Job, written: int) -> Sequence | None:
        """A request whose prompt's keys come from elsewhere starts to run; None if there is no place or no page."""
        sequence = _sequence(job, written, sharing=False)
        lease = self.store.open(None, sequence.tokens)
        if len(self.planner.running) >= self.settings.max_num_seqs or not lease.reserve(len(sequence.tokens)):
            lease.release()
            return None
        sequence.lease, sequence.num_computed = lease, job.ask.input_tokens + written - 1
        self._jobs[sequence] = job
        return sequence

    def run(self, sequence: Sequence) -> None:
        """The keys of one that was adopted have arrived."""
        self.planner.running[sequence] = None

    def begin(self, now: float) -> bool:
        """Plan the next step and begin it; False if there is none."""
        if not self.planner.waiting and not self.planner.running:
            return False
        self.planner.begin()
        self.scheduler.schedule(self.planner)
        self._allotments = self.planner.allotments()
        if not self._allotments:
            return False
        seconds = self.cost.seconds([(a.num_tokens, a.sequence.num_computed + a.num_tokens) for a in self._allotments])
        self.steps += 1
        self.decisions += len(self._allotments)
        self.busy += seconds
        self.waits_for = now + seconds
        return True

    def end(self) -> list[tuple[Job, Sequence]]:
        """Take what the step has brought; returns those whose prompt it has finished, still holding their pages."""
        now, self.waits_for = self.waits_for, None
        assert now is not None
        read: list[tuple[Job, Sequence]] = []
        for allotment in self._allotments:
            sequence = allotment.sequence
            sequence.num_computed += allotment.num_tokens
            if sequence.request.namespace is not None and sequence.lease is not None:
                sequence.lease.commit(sequence.tokens, sequence.num_computed)
            if sequence.num_uncomputed:
                continue
            job = self._jobs[sequence]
            if not sequence.num_output:
                read.append((job, sequence))
            sequence.tokens.append(0)
            job.tokens.append(now)
            if sequence.num_output >= sequence.request.max_tokens:
                self.release(sequence)
        return read

    def release(self, sequence: Sequence) -> None:
        """A request leaves, and gives its pages back."""
        self.planner.release(sequence)
        self._jobs.pop(sequence, None)

    def park(self, sequence: Sequence) -> None:
        """A request stops running and keeps its pages."""
        del self.planner.running[sequence]
        self._jobs.pop(sequence, None)


def _sequence(job: Job, written: int, sharing: bool) -> Sequence:
    ask = job.ask
    named = ask.blocks is not None and sharing
    tokens = [0] * ask.input_tokens
    if named and ask.blocks is not None:
        tokens = [block + 1 for block in ask.blocks for _ in range(ask.block_tokens)][: ask.input_tokens]
    request = Request(
        request_id=str(ask.index),
        prompt=None,
        prompt_ids=tokens,
        params=_PARAMS,
        max_tokens=ask.output_tokens,
        namespace="trace" if named else None,
        own_namespace=False,
        metrics=RequestMetrics(arrival_time=job.arrived),
    )
    sequence = Sequence(request, 0, [*tokens, *([0] * written)], ask.input_tokens, seed=0)
    request.sequences = [sequence]
    return sequence
