"""A bench on the rig: every arm for every seed, compared with the baseline at equal tokens and at equal FLOPs."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from headstart.evaluation.rig.baseline import STEPS, arm_recipe
from headstart.evaluation.rig.corpus import HELD_OUT_BYTES, STANDARD, TRAIN_BYTES, RigCorpus, RigError, build_corpus
from headstart.evaluation.rig.result import ArmValues, Comparison, RigResult
from headstart.evaluation.rig.runner import Costs, train_arm
from headstart.evaluation.rig.spec import BASELINE, Metric, RigArm, RigBench, Verdict
from headstart.evaluation.rig.statistics import compare
from headstart.methods.registry import MethodCard

SEEDS = (0, 1, 2)
HELD_OUT = Metric("held-out loss")
"""What every bench measures: the mean over its sources."""

EQUAL = 0.02
"""Arms whose FLOPs differ by less are compared once, at equal tokens and FLOPs alike."""


def run_rig_bench(
    card: MethodCard,
    seeds: Sequence[int] = SEEDS,
    report: Callable[[str], None] = lambda line: None,
    *,
    data: Path | None = None,
    steps: int = STEPS,
) -> RigResult:
    """Measure a training method on the rig.

    Args:
        card: of a method whose class has a classmethod `rig_bench() -> RigBench`.
        seeds: two at least, or there is no verdict.
        report: told what is going on, line by line.
        data: the directory of texts; None is `HEADSTART_DATA`, and without it the text that comes with the package.
        steps: of the baseline.

    Raises:
        RigError: the method has no bench on the rig, or the bench cannot run as asked.
        TrainingError, MethodError: an arm cannot be trained.
    """
    make = getattr(card.implementation, "rig_bench", None)
    if make is None:
        raise RigError(f"{card.key} has no bench on the rig: its class needs a classmethod rig_bench")
    return run_rig(make(), seeds, report, key=card.key, data=data, steps=steps)


def run_rig(
    bench: RigBench,
    seeds: Sequence[int] = SEEDS,
    report: Callable[[str], None] = lambda line: None,
    *,
    key: str = "bench",
    data: Path | None = None,
    steps: int = STEPS,
    train_bytes: int = TRAIN_BYTES,
    held_out_bytes: int = HELD_OUT_BYTES,
) -> RigResult:
    """Train every arm for every seed and compare.

    Weights, data order and randomness of a seed are the same for all arms. An arm that takes other FLOPs than the
    baseline at equal tokens is also compared with a baseline that is trained for as many FLOPs as it.

    Args:
        bench, seeds, report, data, steps: as in `run_rig_bench`.
        key: what the result is called.
        train_bytes, held_out_bytes: at most so much text of each source.

    Raises:
        RigError, TrainingError, MethodError: as in `run_rig_bench`.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise RigError("the bench needs one or more seeds, each once")
    if data is None and "HEADSTART_DATA" in os.environ:
        data = Path(os.environ["HEADSTART_DATA"])
    arms = {BASELINE: RigArm(), **bench.arms}
    with tempfile.TemporaryDirectory() as scratch:
        report("preparing the text")
        corpus = build_corpus(
            Path(scratch) / "text",
            bench.sources or STANDARD,
            data,
            train_bytes=train_bytes,
            held_out_bytes=held_out_bytes,
        )
        lab = _Lab(bench, corpus, Path(scratch), tuple(seeds), steps, report)
        values = {name: lab.measure(name, arm) for name, arm in arms.items()}
        rivals = {}
        for name, ratio in _other_flops(values).items():
            rivals[name] = f"{BASELINE} at the FLOPs of {name}"
            rival = replace(arms[BASELINE], tokens=arms[BASELINE].tokens * ratio)
            values[rivals[name]] = lab.measure(rivals[name], rival)
    pairs = [(name, BASELINE) for name in arms if name != BASELINE] + list(bench.comparisons)
    return RigResult(
        key=key,
        seeds=tuple(seeds),
        metrics=(HELD_OUT, *bench.metrics),
        arms=values,
        comparisons=_comparisons(bench, values, pairs, rivals),
        settings={"sources": list(corpus.names), "text": corpus.fingerprint, "steps": steps, "own_text": data is None},
        notes=bench.notes,
    )


class _Lab:
    """Trains and measures the arms of one bench."""

    def __init__(
        self,
        bench: RigBench,
        corpus: RigCorpus,
        scratch: Path,
        seeds: tuple[int, ...],
        steps: int,
        report: Callable[[str], None],
    ) -> None:
        self.bench, self.corpus, self.scratch = bench, corpus, scratch
        self.seeds, self.steps, self.report = seeds, steps, report
        self._runs = 0

    def measure(self, name: str, arm: RigArm) -> ArmValues:
        """Values and costs of an arm over all seeds."""
        found: dict[str, list[float]] = {}
        costs = []
        for seed in self.seeds:
            values, cost = self._run(name, arm, seed)
            costs.append(cost)
            for metric, value in values.items():
                found.setdefault(metric, []).append(value)
            self.report(f"{name}, seed {seed}: held-out loss {values[HELD_OUT.name]:.4f}")
        for metric, each in found.items():
            if len(each) < len(self.seeds):
                raise RigError(f"the bench measured {metric!r} of {name} for some seeds only")
        return ArmValues(found, _mean_costs(costs))

    def _run(self, name: str, arm: RigArm, seed: int) -> tuple[dict[str, float], Costs]:
        self._runs += 1
        recipe = arm_recipe(arm, self.corpus, seed, steps=self.steps, phase=self.bench.phase)
        trained = train_arm(name, recipe, self.corpus, self.scratch / f"run-{self._runs}")
        values = {f"held-out loss on {each}": trained.held_out_loss(each) for each in self.corpus.names}
        values = {HELD_OUT.name: float(np.mean(list(values.values()))), **values}
        if self.bench.measure is not None:
            values |= self.bench.measure(trained)
        return values, trained.costs


def _mean_costs(costs: Sequence[Costs]) -> Costs:
    return Costs(
        parameters=round(np.mean([cost.parameters for cost in costs])),
        tokens=round(np.mean([cost.tokens for cost in costs])),
        trained_tokens=round(np.mean([cost.trained_tokens for cost in costs])),
        flops=float(np.mean([cost.flops for cost in costs])),
    )


def _other_flops(values: Mapping[str, ArmValues]) -> dict[str, float]:
    """Arms that take other FLOPs than the baseline, and how many times its."""
    base = values[BASELINE].costs.flops
    ratios = {name: arm.costs.flops / base for name, arm in values.items()}
    return {name: ratio for name, ratio in ratios.items() if abs(ratio - 1) > EQUAL}


def _comparisons(
    bench: RigBench, values: Mapping[str, ArmValues], pairs: Sequence[tuple[str, str]], rivals: Mapping[str, str]
) -> tuple[Comparison, ...]:
    """Every pair by every metric that both have, and each arm of other FLOPs against its rival."""
    expected: dict[tuple[str, str, str], Verdict] = {
        (each.arm, each.against, each.metric): each.verdict for each in bench.expectations
    }
    found = []
    for arm, against in [*pairs, *rivals.items()]:
        flops = values[arm].costs.flops / values[against].costs.flops
        equal = ["tokens"] if values[arm].costs.tokens == values[against].costs.tokens else []
        equal += ["FLOPs"] if abs(flops - 1) <= EQUAL else []
        for metric in (HELD_OUT, *bench.metrics):
            ours, theirs = (values[name].metrics.get(metric.name) for name in (arm, against))
            if ours is None or theirs is None:
                continue
            difference = compare(ours, theirs, higher_is_better=metric.higher_is_better)
            want = expected.get((arm, against, metric.name))
            found.append(Comparison(arm, against, metric, tuple(equal), difference, want))
    return tuple(found)
