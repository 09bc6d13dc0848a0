"""The simulator against queueing theory, planted costs, and the engine itself step by step."""

import random
from typing import Any

import numpy as np
import pytest

from headstart.engine.args import EngineArgs
from headstart.engine.params import SamplingParams
from headstart.engine.planner import StepPlanner
from headstart.engine.seams import Scheduler
from headstart.evaluation.load.plan import Ask, arrival_times
from headstart.evaluation.simulate.calibrate import calibrate
from headstart.evaluation.simulate.cost import SimulationError, StepCost, StepSample
from headstart.evaluation.simulate.run import Link, least_loaded, simulate, simulate_disaggregated
from headstart.evaluation.simulate.worker import SimWorker, WorkerSettings
from headstart.methods import registry
from tests.conformance import models
from tests.conformance.lab import make_engine

SCHEDULERS = [
    "prefill-first",
    "request-batches",
    "orca",
    "sarathi",
    "sarathi-serve",
    "sarathi-serve:long=200",
    "fastgen",
]
COST = StepCost((1, 512), (0.004, 0.010), 1e-9, 1e-8, 1e-6)


def _asks(count: int, rate: float, seed: int = 0, longest: int = 600, answer: int = 40) -> list[Ask]:
    rng = random.Random(seed)
    times = arrival_times(rate, 1.0, seed)
    return [Ask(n, next(times), rng.randrange(1, longest), rng.randrange(1, answer)) for n in range(count)]


def _worker(use: str = "sarathi-serve", pages: int = 400, **settings: Any) -> SimWorker:
    return SimWorker(COST, registry.build(use), WorkerSettings(pages, **settings))


def test_one_server_and_equal_prompts_are_an_m_d_1_queue() -> None:
    """Mean time to first token: D + R D^2 / 2(1 - RD), which is 0.525 s at two arrivals per second of 0.3 s each."""
    fixed = StepCost((1,), (0.3,), 0.0, 0.0, 0.0)
    times = arrival_times(2.0, 1.0, 3)
    asks = [Ask(n, next(times), 100, 1) for n in range(15_000)]
    worker = SimWorker(fixed, registry.build("request-batches:batch=1"), WorkerSettings(100))
    found = simulate(asks, [worker])
    assert float(found.ttft.mean()) == pytest.approx(0.525, rel=0.05)
    assert worker.busy == pytest.approx(0.3 * 15_000)


@pytest.mark.parametrize("use", SCHEDULERS)
@pytest.mark.parametrize("policy", ["fcfs", "priority", "fair", "cache-aware"])
def test_everybody_is_served_and_every_page_comes_back(use: str, policy: str) -> None:
    """Under a crowd and a cache that is too small for it."""
    worker = _worker(use, pages=80, scheduling_policy=policy)
    asks = _asks(60, rate=200.0)
    found = simulate(asks, [worker])
    assert [len(job.tokens) for job in found.jobs] == [ask.output_tokens for ask in asks]
    for job in found.jobs:
        assert job.tokens[0] > job.arrived and job.tokens == sorted(job.tokens)
    worker.store.check()
    assert worker.store.num_free == worker.store.num_pages and not worker.count


@pytest.mark.parametrize("use", ["prefill-first", "sarathi:chunk=16", "sarathi-serve:chunk=24", "fastgen:budget=20"])
def test_steps_are_the_engines_own(use: str) -> None:
    """The same requests at once, in the engine and in the simulator: the same shares in every step."""
    rng = random.Random(4)
    load = [(rng.randrange(1, 60), rng.randrange(1, 12)) for _ in range(12)]
    settings: dict[str, Any] = {"page_size": 4, "num_pages": 60, "max_num_seqs": 6}
    real = registry.build(use)
    engine = make_engine("gqa", real, enable_prefix_caching=False, **settings)
    for number, (prompt, answer) in enumerate(load):
        params = SamplingParams(max_tokens=answer, temperature=0, ignore_eos=True)
        engine.submit(engine.prepare(str(number), models.ids(prompt, number), params))
    mine, its = _Noted(real), _Noted(registry.build(use))
    engine.stack._filled["scheduler"] = mine
    engine._scheduler = mine
    while engine.has_work:
        engine.step()
    worker = SimWorker(COST, its, WorkerSettings(max_num_batched_tokens=512, **settings))
    simulate([Ask(n, 0.0, prompt, answer) for n, (prompt, answer) in enumerate(load)], [worker])
    assert mine.steps == its.steps


class _Noted(Scheduler):
    """Another scheduler, whose steps are kept."""

    def __init__(self, inner: Scheduler) -> None:
        self.inner, self.step_tokens = inner, inner.step_tokens
        self.steps: list[list[tuple[str, int]]] = []

    def schedule(self, step: StepPlanner) -> None:
        self.inner.schedule(step)
        self.steps.append([(a.sequence.request.request_id, a.num_tokens) for a in step.allotments()])


def test_prefixes_are_found() -> None:
    """Prompts of the same blocks are read once; without prefix caching each time."""
    asks = [Ask(n, float(n), 512, 2, (7, 8), 256) for n in range(5)]
    busy = {}
    for caching in (True, False):
        worker = _worker(enable_prefix_caching=caching)
        simulate(asks, [worker])
        busy[caching] = worker.busy
    assert busy[True] < 0.7 * busy[False]


def test_decodes_do_not_feel_prompts_where_both_are_apart() -> None:
    """Over a link without end, the time per token does not depend on how much is read."""
    gaps = []
    for longest in (50, 900):
        asks = _asks(80, rate=12.0, longest=longest, answer=30)
        link = Link(1e30, 0.0, 1000)
        found = simulate_disaggregated(asks, [_worker("prefill-first", 4000)], [_worker(pages=4000)], link)
        assert all(len(job.tokens) == job.ask.output_tokens for job in found.jobs)
        gaps.append(found.tbt.max())
        for worker in found.workers:
            assert worker.store.num_free == worker.store.num_pages
    plain = simulate(_asks(80, rate=12.0, longest=900, answer=30), [_worker("prefill-first", 4000)])
    assert gaps[1] < gaps[0] * 1.5 and gaps[1] < plain.tbt.max() / 2


def test_keys_take_time_on_the_link_and_full_workers_push_back() -> None:
    asks = _asks(30, rate=50.0, longest=200)
    slow = Link(1e6, 0.01, 1000)
    found = simulate_disaggregated(asks, [_worker(pages=40)], [_worker(pages=40, max_num_seqs=2)], slow)
    moved = [job for job in found.jobs if job.ask.output_tokens > 1]
    for job in moved:
        assert job.transfer == pytest.approx(0.01 + job.ask.input_tokens * 1e-3)
        assert job.tokens[1] - job.tokens[0] >= job.transfer
    assert len(found.jobs) == 30


def test_replicas_share_the_load() -> None:
    asks = _asks(200, rate=60.0)
    one, two = (simulate(asks, [_worker(pages=1000) for _ in range(count)], least_loaded) for count in (1, 2))
    assert np.percentile(two.ttft, 90) < np.percentile(one.ttft, 90)
    shares = [worker.decisions for worker in two.workers]
    assert min(shares) > 0.35 * sum(shares)


def test_planted_costs_are_found() -> None:
    rng = random.Random(0)
    truth = StepCost((1, 8, 32, 128, 512), (0.004, 0.0042, 0.005, 0.009, 0.03), 2e-9, 3e-8, 1e-5)

    def sample() -> StepSample:
        rows = [(1, rng.randrange(1, 2000)) for _ in range(rng.randrange(0, 12))]
        new = max(1, round(500 ** rng.random()))
        rows.append((new, new + rng.randrange(0, 2000)))
        return StepSample(tuple(rows), truth.seconds(rows) * rng.gauss(1, 0.02))

    cost = StepCost.fit([sample() for _ in range(300)])
    fresh = [sample() for _ in range(200)]
    assert cost.error(fresh) < 0.04
    assert list(cost.linear) == sorted(cost.linear) and min(cost.pair, cost.read, cost.sequence) >= 0


def test_a_cost_model_is_fitted_to_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.engine.engine.load_checkpoint", lambda *_, **__: models.shared("gqa"))
    cost, _ = calibrate(EngineArgs(device="cpu"), context=90, sequences=4, largest=32, steps=40)
    assert cost.seconds([(1, 10)]) > 0


def test_what_cannot_be_simulated_is_said() -> None:
    with pytest.raises(SimulationError, match="at least 20 measured steps, not 3"):
        StepCost.fit([StepSample(((1, 1),), 0.1)] * 3)
    with pytest.raises(SimulationError, match=r"request 0 has 700 tokens of prompt and answer, .* cache holds 320"):
        simulate([Ask(0, 0.0, 600, 100)], [_worker(pages=20)])

    class Idle(Scheduler):
        def schedule(self, step: StepPlanner) -> None:
            return

    with pytest.raises(SimulationError, match="2 of 2 requests were never served to the end"):
        simulate(_asks(2, 1.0), [SimWorker(COST, Idle(), WorkerSettings(400))])
