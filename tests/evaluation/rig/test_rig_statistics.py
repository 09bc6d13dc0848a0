"""Paired comparisons and verdicts."""

import math
import statistics

import numpy as np
import pytest

from headstart.evaluation.rig.statistics import compare


@pytest.mark.parametrize(
    ("arm", "other", "higher", "verdict"),
    [
        ([1.90, 1.91, 1.92], [2.00, 2.01, 2.02], False, "better"),
        ([2.00, 2.01, 2.02], [1.90, 1.91, 1.92], False, "worse"),
        ([0.90, 0.91, 0.92], [0.80, 0.81, 0.82], True, "better"),
        ([0.80, 0.81, 0.82], [0.90, 0.91, 0.92], True, "worse"),
        ([2.00, 2.01, 2.02], [2.00, 2.01, 2.02], False, "same"),
        ([2.0, 2.0, 2.0], [2.0, 2.0, 2.0], False, "same"),
        # Sure, and smaller than what one seed makes of it.
        ([2.001, 2.011, 2.021], [2.00, 2.01, 2.02], False, "same"),
        # Large on average, and not sure.
        ([1.80, 2.05, 1.95], [2.00, 2.01, 2.02], False, "not shown at this scale"),
        ([1.0], [2.0], False, "not shown at this scale"),
    ],
)
def test_verdicts(arm: list[float], other: list[float], higher: bool, verdict: str) -> None:
    """By the stated rule, whichever way the metric counts."""
    assert compare(arm, other, higher_is_better=higher).verdict == verdict


def test_interval_and_noise_by_hand() -> None:
    """Five seeds against the formulas written out."""
    arm, other = [1.0, 2.0, 4.0, 3.0, 2.5], [1.5, 1.0, 3.0, 3.5, 2.0]
    found = compare(arm, other, higher_is_better=True)
    differences = [-0.5, 1.0, 1.0, -0.5, 0.5]
    half = 2.776 * statistics.stdev(differences) / math.sqrt(5)
    assert found.n == 5 and found.mean == pytest.approx(0.3)
    assert found.interval == pytest.approx((0.3 - half, 0.3 + half))
    assert found.noise == pytest.approx(math.sqrt((statistics.variance(arm) + statistics.variance(other)) / 2))


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """3 seeds, 4000 times: 95% of the intervals hold the true difference (beyond 93% and 97%: p < 1e-6)."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(4000):
        shared = rng.normal(0, 1, 3)
        arm, other = shared + 0.5 + rng.normal(0, 0.1, 3), shared + rng.normal(0, 0.1, 3)
        low, high = compare(arm.tolist(), other.tolist(), higher_is_better=False).interval
        held += low <= 0.5 <= high
    assert 0.93 < held / 4000 < 0.97


def test_equal_arms_are_seldom_called_different() -> None:
    """Of two arms that differ by chance alone at most 5% are called better or worse."""
    rng = np.random.default_rng(1)
    verdicts = [
        compare(rng.normal(0, 1, 3).tolist(), rng.normal(0, 1, 3).tolist(), higher_is_better=False).verdict
        for _ in range(2000)
    ]
    assert sum(verdict in ("better", "worse") for verdict in verdicts) / 2000 < 0.06


def test_pairs_must_be_pairs() -> None:
    """Different numbers of seeds are a mistake."""
    with pytest.raises(ValueError):
        compare([1.0, 2.0], [1.0], higher_is_better=False)
