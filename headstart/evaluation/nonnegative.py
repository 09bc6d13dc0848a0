"""Least squares of relative errors with coefficients that cannot be negative: what cost models are fitted with."""

from collections.abc import Sequence

import numpy as np


def fit_nonnegative(features: Sequence[Sequence[float]], times: Sequence[float]) -> np.ndarray:
    """Coefficients `[K]`, none below 0, that bring `features [N, K] @ coefficients` near `times [N]`.

    Each row is divided by its time, so that short and long measurements count alike. Active sets (Lawson and Hanson,
    "Solving Least Squares Problems", 1974).
    """
    weights = np.asarray(times, dtype=float)
    a = np.asarray(features, dtype=float) / weights[:, None]
    # Columns of nanoseconds beside columns of seconds: alike in size, the solution says which matter.
    scale = np.abs(a).max(0)
    scale[scale == 0] = 1.0
    a, b = a / scale, np.ones(len(weights))
    found, active = np.zeros(a.shape[1]), np.zeros(a.shape[1], dtype=bool)
    for _ in range(3 * a.shape[1]):
        gain = a.T @ (b - a @ found)
        gain[active] = -np.inf
        if gain.max() <= 1e-10:
            break
        active[int(gain.argmax())] = True
        while True:
            trial = np.zeros_like(found)
            trial[active] = np.linalg.lstsq(a[:, active], b, rcond=None)[0]
            low = active & (trial <= 0)
            if not low.any():
                break
            step = (found[low] / (found[low] - trial[low] + 1e-300)).min()
            found += step * (trial - found)
            active &= found > 1e-14
        found = trial
    return found / scale
