"""Paired seeds: how much an arm differs from another, how sure that is, and the verdict by one stated rule."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from headstart.evaluation.rig.spec import Verdict

RULE = (
    "The difference is taken seed by seed. Noise is the standard deviation of one arm over seeds, both arms pooled. "
    "better or worse: the 95% interval of the mean difference (paired t) excludes zero, and the difference exceeds "
    "the noise. same: the whole interval lies within the noise. Anything else, and any single seed: not shown at this "
    "scale."
)

# Two-sided 95% points of Student's t for 1 to 30 degrees of freedom.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Difference:
    """An arm against another over paired seeds.

    Attributes:
        n: seeds.
        mean: of arm minus other, in the metric's unit.
        deviation: standard deviation of the differences; NaN for one seed.
        interval: 95% confidence interval of the mean; infinite for one seed.
        noise: what a single arm varies by over seeds; NaN for one seed.
        verdict: by `RULE`.
    """

    n: int
    mean: float
    deviation: float
    interval: tuple[float, float]
    noise: float
    verdict: Verdict


def compare(arm: Sequence[float], other: Sequence[float], *, higher_is_better: bool) -> Difference:
    """Compare values of the same seeds in the same order.

    Raises:
        ValueError: there are none, or not as many of one as of the other.
    """
    differences = [a - b for a, b in zip(arm, other, strict=True)]
    n, mean = len(differences), statistics.fmean(differences)
    if n == 1:
        return Difference(1, mean, math.nan, (-math.inf, math.inf), math.nan, "not shown at this scale")
    deviation = statistics.stdev(differences)
    half = _T[min(n - 1, len(_T)) - 1] * deviation / math.sqrt(n)
    noise = math.sqrt((statistics.variance(arm) + statistics.variance(other)) / 2)
    low, high = mean - half, mean + half
    return Difference(n, mean, deviation, (low, high), noise, _verdict(mean, low, high, noise, higher_is_better))


def _verdict(mean: float, low: float, high: float, noise: float, higher_is_better: bool) -> Verdict:
    if -noise <= low and high <= noise:
        return "same"
    if (low > 0 or high < 0) and abs(mean) > noise:
        return "better" if (mean > 0) == higher_is_better else "worse"
    return "not shown at this scale"
