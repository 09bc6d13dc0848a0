"""What a load gets at a rate: simulated with the engine's own scheduler, or measured on a server."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from headstart.evaluation.capacity.loads import LoadShape
from headstart.evaluation.capacity.search import Probe, Targets
from headstart.evaluation.load.records import RequestRecord
from headstart.evaluation.load.run import Observer, run_load
from headstart.evaluation.simulate.cost import StepCost
from headstart.evaluation.simulate.run import SimResult, simulate
from headstart.evaluation.simulate.worker import SimWorker, WorkerSettings
from headstart.methods import registry

DEFAULT_SCHEDULER = "default"


def simulated(shape: LoadShape, use: str, cost: StepCost, settings: WorkerSettings) -> Callable[[float], Probe]:
    """A probe that simulates.

    Args:
        shape: the load.
        use: the scheduler, as `--use` takes it, or `default`.
        cost: of steps.
        settings: of the engine.

    Raises:
        SimulationError: a request that the engine could never hold.
    """

    def probe(rate: float) -> Probe:
        scheduler = registry.build("sarathi-serve:chunk=1000000" if use == DEFAULT_SCHEDULER else use, "inference")
        if use == DEFAULT_SCHEDULER:
            scheduler.step_tokens = None
        return probe_of(rate, simulate(shape.at(rate), [SimWorker(cost, scheduler, settings)]))

    return probe


def probe_of(rate: float, result: SimResult) -> Probe:
    """The tails of a simulated load."""
    gaps = result.tbt
    tbt = float(np.percentile(gaps, 99)) if len(gaps) else 0.0
    return Probe(rate, float(np.percentile(result.ttft, 99)), tbt, result.output_rate)


def measured(
    shape: LoadShape, url: str, targets: Targets, observer: Observer, directory: Path | None = None
) -> Callable[[float], Probe]:
    """A probe that puts the load on a server, and ends it when too many requests have missed the target for the first
    token.

    Args:
        shape: the load.
        url: of the server.
        targets: that are searched for.
        observer: hears how it goes on.
        directory: where the requests of each load are kept; None keeps none.
    """
    loads = 0

    def probe(rate: float) -> Probe:
        nonlocal loads
        loads += 1
        settings = shape.settings_at(rate)
        allowed = 0.01 * len(shape.asks) + 1
        missed = 0

        def hopeless(record: RequestRecord) -> bool:
            nonlocal missed
            missed += record.kind == "load" and (record.ttft is None or record.ttft > targets.ttft)
            return missed > allowed

        file = None if directory is None else directory / f"load-{loads}.jsonl"
        result = run_load(settings, url, observer=observer, file=file, hopeless=hopeless)
        if result.ended_by is not None:
            raise KeyboardInterrupt
        summary = result.summary
        ttft = summary.ttft.p99 if summary.ttft is not None else float("inf")
        tbt = summary.itl.p99 if summary.itl is not None else 0.0
        served = result.partial is None and summary.answered == summary.asked
        return Probe(rate, ttft, tbt, summary.output_rate, served)

    return probe
