"""How a training method says what the rig shall measure: arms, what is measured of each, and what is expected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from headstart.evaluation.rig.runner import TrainedArm

Verdict = Literal["better", "same", "worse", "not shown at this scale"]

BASELINE = "baseline"
"""The arm that the others are compared with; the rig adds it where a bench does not define one."""


@dataclass(frozen=True)
class RigPhase:
    """A stretch of an arm's training.

    Attributes:
        share: of the arm's tokens.
        use: methods, as `--use` takes them.
        changes: other keys of the phase's recipe, over the baseline's. After the first phase, optimizer and schedule
            go on unless they are given here.
    """

    share: float = 1.0
    use: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RigArm:
    """One way to train.

    Attributes:
        phases: in order; their shares sum up to one.
        changes: keys of the recipe outside of phases, over the baseline's; `model` is merged key by key.
        tokens: factor on the baseline's tokens.
    """

    phases: tuple[RigPhase, ...] = (RigPhase(),)
    changes: Mapping[str, Any] = field(default_factory=dict)
    tokens: float = 1.0


@dataclass(frozen=True)
class Metric:
    """A figure that is compared between arms.

    Attributes:
        name: as `measure` gives it.
        unit: of its values.
        higher_is_better: which way it counts.
        arms: those that it is said of; empty is all.
    """

    name: str
    unit: str = "nats per byte"
    higher_is_better: bool = False


@dataclass(frozen=True)
class Expectation:
    """What should come out, from the paper or from reason: a verdict on an arm by a metric."""

    arm: str
    metric: str
    verdict: Verdict
    against: str = BASELINE


@dataclass(frozen=True)
class RigBench:
    """A bench of a training method.

    Attributes:
        arms: by name; the first one that is not the baseline is the method as recommended.
        metrics: what is compared, beside the held-out loss.
        measure: figures by name of a trained arm; None measures the held-out loss alone.
        expectations: what should come out.
        comparisons: pairs (arm, against) beside each arm against the baseline.
        sources: what is read: keys of `headstart.evaluation.rig.corpus.SOURCES`; empty is the standard mixture.
        phase: keys of every arm's phases, over the baseline's, such as `packing`.
        notes: what a reader of the numbers must know.
    """

    arms: Mapping[str, RigArm]
    metrics: tuple[Metric, ...] = ()
    measure: Callable[[TrainedArm], Mapping[str, float]] | None = None
    expectations: tuple[Expectation, ...] = ()
    comparisons: tuple[tuple[str, str], ...] = ()
    sources: tuple[str, ...] = ()
    phase: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
