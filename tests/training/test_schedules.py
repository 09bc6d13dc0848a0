"""Learning-rate schedules against naive formulas, step by step."""

import itertools
import math

import pytest

from headstart.training.schedules import Constant, Cosine, WarmupStableDecay
from headstart.training.seams import Schedule


def factors(schedule: Schedule, steps: int) -> list[float]:
    return [schedule.factor(step, steps) for step in range(steps)]


def test_warmup_stable_decay_in_small() -> None:
    # Two steps up, four level, four down.
    schedule = WarmupStableDecay(warmup=0.2, decay=0.4)
    assert factors(schedule, 10) == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("shape", ["linear", "sqrt", "cosine"])
def test_the_way_down_has_its_shape(shape: str) -> None:
    steps, down, final = 200, 80, 0.1
    schedule = WarmupStableDecay(warmup=0.05, decay=0.4, final=final, shape=shape)  # type: ignore[arg-type]
    for step, found in enumerate(factors(schedule, steps)):
        gone = max(0.0, (step - (steps - down)) / down)
        kept = {"linear": 1 - gone, "sqrt": 1 - gone**0.5, "cosine": 0.5 * (1 + math.cos(math.pi * gone))}[shape]
        assert found == pytest.approx((step + 1) / 10 if step < 10 else final + (1 - final) * kept)


def test_cosine() -> None:
    steps, up, final = 100, 10, 0.1
    for step, found in enumerate(factors(Cosine(warmup=0.1, final=final), steps)):
        gone = (step - up) / (steps - up)
        assert found == pytest.approx(
            (step + 1) / up if step < up else final + (1 - final) * 0.5 * (1 + math.cos(math.pi * gone))
        )


def test_constant() -> None:
    assert factors(Constant(), 3) == [1, 1, 1]
    assert factors(Constant(warmup=0.5, level=0.5), 4) == [0.25, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    "schedule",
    [
        WarmupStableDecay(),
        WarmupStableDecay(0.1, 0.9, 0.0, "cosine"),
        WarmupStableDecay(0.3, 0.5, 0.05, "sqrt"),
        Cosine(),
        Cosine(0.0, 0.0),
        Constant(0.1),
    ],
)
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_every_step_trains_and_none_jumps(schedule: Schedule, steps: int) -> None:
    found = factors(schedule, steps)
    assert all(0 < factor <= 1 for factor in found)
    assert steps < 1000 or max(abs(a - b) for a, b in itertools.pairwise(found)) < 0.12


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: WarmupStableDecay(warmup=-0.1), "warmup is a share"),
        (lambda: WarmupStableDecay(warmup=0.5, decay=0.6), "together"),
        (lambda: Cosine(warmup=3), "warmup is a share"),
        (lambda: Constant(warmup=3), "warmup is a share"),
    ],
)
def test_shares_lie_between_nothing_and_all(make: type, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()
