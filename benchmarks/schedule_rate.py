"""Decisions per second of each scheduler, with 100,000 simulated requests: `python benchmarks/schedule_rate.py`.

A decision is a sequence's share of a step. The time is that of the whole simulation: planner, page cache, waiting line
and the clock included, so that the engine's own share is less.
"""

import argparse
import time

import numpy as np

from headstart.evaluation.load.plan import plan
from headstart.evaluation.load.settings import Lengths, LoadSettings
from headstart.evaluation.simulate.cost import StepCost
from headstart.evaluation.simulate.run import simulate
from headstart.evaluation.simulate.worker import SimWorker, WorkerSettings
from headstart.methods import registry

SCHEDULERS = (
    *("prefill-first", "request-batches", "orca"),
    *("sarathi", "sarathi-serve", "sarathi-serve:long=512", "fastgen"),
)
# Of a GPU with a small model: a step of 512 tokens takes 10 ms.
COST = StepCost((1, 512), (0.004, 0.010), 1e-10, 2e-9, 1e-6)


def main() -> None:
    """Simulate, and print a line for each scheduler and policy."""
    parser = argparse.ArgumentParser(description="Decisions per second of each scheduler.")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=40.0, help="arrivals per simulated second")
    parser.add_argument("--use", nargs="*", default=SCHEDULERS)
    parser.add_argument("--policy", nargs="*", default=["fcfs"])
    asked = parser.parse_args()
    load = LoadSettings(
        rate=asked.rate, input_tokens=Lengths(64, 1024), output_tokens=Lengths(8, 64), num_requests=asked.requests
    )
    asks = list(plan(load))
    for use in asked.use:
        for policy in asked.policy:
            settings = WorkerSettings(num_pages=8000, scheduling_policy=policy)
            worker = SimWorker(COST, registry.build(use), settings)
            begun = time.perf_counter()
            result = simulate(asks, [worker])
            seconds = time.perf_counter() - begun
            print(
                f"{use:24} {policy:12} {worker.decisions / seconds:>9,.0f} decisions/s ({worker.decisions:,} in "
                f"{seconds:.1f} s), {worker.planner.num_preemptions:,} preemptions, p99 TTFT "
                f"{np.percentile(result.ttft, 99):.2f} s, p99 TBT {1000 * np.percentile(result.tbt, 99):.0f} ms",
                flush=True,
            )


if __name__ == "__main__":
    main()
