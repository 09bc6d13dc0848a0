"""Learning-rate schedules: the factor of the peak at each step of a phase."""

import math
from dataclasses import dataclass
from typing import Literal

from headstart.training.seams import Schedule


@dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """Up linearly, level, then down.

    Args:
        warmup: share of the steps on the way up (MiniCPM, arXiv 2404.06395: about 0.01).
        decay: share of the steps on the way down (same source: 0.1; 0.2 to 0.4 end lower on short runs).
        final: factor at the end.
        shape: of the way down; "linear", "sqrt" (1 - sqrt, arXiv 2405.18392) or "cosine".
    """

    warmup: float = 0.01
    decay: float = 0.2
    final: float = 0.0
    shape: Literal["linear", "sqrt", "cosine"] = "linear"

    def __post_init__(self) -> None:
        _check_shares(warmup=self.warmup, decay=self.decay, both=self.warmup + self.decay)

    def factor(self, step: int, steps: int) -> float:
        up = round(self.warmup * steps)
        down = round(self.decay * steps)
        if step < up:
            return (step + 1) / up
        left = steps - step
        if down == 0 or left > down:
            return 1.0
        gone = 1.0 - left / down
        kept = {"linear": 1 - gone, "sqrt": 1 - math.sqrt(gone), "cosine": (1 + math.cos(math.pi * gone)) / 2}
        return self.final + (1 - self.final) * kept[self.shape]


@dataclass(frozen=True)
class Cosine(Schedule):
    """Up linearly, then down along half a cosine (Loshchilov & Hutter, arXiv 1608.03983).

    Args:
        warmup: share of the steps on the way up.
        final: factor at the end (Llama: 0.1).
    """

    warmup: float = 0.01
    final: float = 0.1

    def __post_init__(self) -> None:
        _check_shares(warmup=self.warmup)

    def factor(self, step: int, steps: int) -> float:
        up = round(self.warmup * steps)
        if step < up:
            return (step + 1) / up
        gone = (step - up) / max(1, steps - up)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * gone)) / 2


@dataclass(frozen=True)
class Constant(Schedule):
    """Level after a linear way up.

    Args:
        warmup: share of the steps on the way up.
        level: the factor of the peak.
    """

    warmup: float = 0.0
    level: float = 1.0

    def __post_init__(self) -> None:
        _check_shares(warmup=self.warmup)

    def factor(self, step: int, steps: int) -> float:
        up = round(self.warmup * steps)
        return self.level * min(1.0, (step + 1) / up) if up else self.level


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            what = "warmup and decay together are" if name == "both" else f"{name} is"
            raise ValueError(f"{what} a share of the steps, from 0 to 1, not {share:g}")
