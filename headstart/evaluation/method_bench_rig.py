"""A training method on the rig beside its baseline."""

import time
from dataclasses import replace
from pathlib import Path

from headstart.evaluation.compare_rounds import Reporter, duration
from headstart.evaluation.rig.bench import run_rig, run_rig_bench
from headstart.evaluation.rig.result import RigResult
from headstart.methods.registry import MethodCard

# A training run costs too much for more.
_SEEDS = 3
# Enough for two phases, and text that is ready in a second; the figures mean nothing.
_QUICK_RIG: dict[str, int] = {"steps": 20, "train_bytes": 60_000, "held_out_bytes": 4_000}


def train_on_rig(
    card: MethodCard, seed: int, repeats: int | None, data: Path | None, quick: bool, reporter: Reporter
) -> RigResult:
    """Train the baseline and the method's arms.

    Args:
        card: the method.
        seed: the first; the others follow it.
        repeats: how many seeds (default: 3).
        data: directory with texts.
        quick: one arm, a few steps, one seed.
        reporter: hears how it goes on.
    """
    make = getattr(card.implementation, "rig_bench", None)
    if quick and make is not None:
        bench = make()
        name, arm = next(iter(bench.arms.items()))
        bench = replace(bench, arms={name: arm}, measure=None, metrics=(), comparisons=(), expectations=())
        listener = _RigListener(reporter, 2)
        result = run_rig(bench, (seed,), listener, key=card.key, data=data, **_QUICK_RIG)
    else:
        arms = 1 + len(make().arms) if make is not None else 0
        count = repeats or _SEEDS
        listener = _RigListener(reporter, arms * count)
        result = run_rig_bench(card, tuple(range(seed, seed + count)), listener, data=data)
    reporter.done()
    return result


class _RigListener:
    """Hands the rig's lines to a reporter, and says after the first run how long the others will take."""

    def __init__(self, reporter: Reporter, runs: int) -> None:
        self._reporter, self._runs = reporter, runs
        self._lines = 0
        self._begun = time.monotonic()

    def __call__(self, line: str) -> None:
        """The rig's first line is about the text; every other one ends a run."""
        self._reporter.say(line)
        left = self._runs - self._lines
        if self._lines == 0:
            self._reporter.begin(self._runs)
        elif self._lines == 1:
            each = time.monotonic() - self._begun
            self._reporter.say(f"{left} more to train and measure, about {duration(each * left)}, or a few beyond that")
        if left > 0:
            self._reporter.step("training")
        self._lines += 1
