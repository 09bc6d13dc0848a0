"""What a bench on the rig found: values by arm and seed, comparisons with verdicts, rows for the ledger, a table."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headstart.evaluation.ledger import Row
from headstart.evaluation.rig.runner import Costs
from headstart.evaluation.rig.spec import Metric, Verdict
from headstart.evaluation.rig.statistics import RULE, Difference


@dataclass(frozen=True)
class ArmValues:
    """An arm over all seeds.

    Attributes:
        metrics: values by name, in the order of the seeds.
        costs: means over the seeds.
    """

    metrics: Mapping[str, list[float]]
    costs: Costs


@dataclass(frozen=True)
class Comparison:
    """An arm against another by one metric.

    Attributes:
        equal: what both took the same of: `tokens`, `FLOPs` (within 2%).
        expected: the verdict that the bench expects; None where it says nothing.
    """

    arm: str
    against: str
    metric: Metric
    equal: tuple[str, ...]
    difference: Difference
    expected: Verdict | None

    @property
    def sentence(self) -> str:
        """The comparison in a line."""
        found, unit = self.difference, self.metric.unit
        low, high = found.interval
        text = (
            f"{self.arm} against {self.against} at equal {' and '.join(self.equal) or 'nothing'}, {self.metric.name}: "
            f"{found.mean:+.4f} [{low:+.4f}, {high:+.4f}] {unit}, noise {found.noise:.4f}, n {found.n}: {found.verdict}"
        )
        if self.expected is None:
            return text
        return text + (" (as expected)" if self.expected == found.verdict else f" (expected: {self.expected})")


@dataclass(frozen=True)
class RigResult:
    """A bench's result.

    Attributes:
        key: of the method.
        seeds: in the order of all values.
        metrics: what is compared.
        arms: by name, the baseline first.
        comparisons: each arm against the baseline, and what else the bench asked for.
        settings: what the numbers depend on.
        notes: what a reader must know.
    """

    key: str
    seeds: tuple[int, ...]
    metrics: tuple[Metric, ...]
    arms: Mapping[str, ArmValues]
    comparisons: tuple[Comparison, ...]
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def comparison(self, arm: str, metric: str, against: str = "baseline") -> Comparison:
        """One comparison.

        Raises:
            KeyError: it was not made.
        """
        for each in self.comparisons:
            if (each.arm, each.metric.name, each.against) == (arm, metric, against):
                return each
        raise KeyError((arm, metric, against))

    def rows(self) -> list[Row]:
        """A row of the ledger for each arm and metric, the mean, deviation, costs and differences in its details."""
        known = {metric.name: metric for metric in self.metrics}
        rows = []
        for arm, values in self.arms.items():
            for name, each in values.metrics.items():
                metric = known.get(name, Metric(name))
                details = {"mean": statistics.fmean(each), "n": float(len(each))}
                details |= {"standard_deviation": statistics.stdev(each)} if len(each) > 1 else {}
                details |= {field: float(value) for field, value in vars(values.costs).items()}
                rows.append(
                    Row.of(name, arm, metric.unit, each, higher_is_better=metric.higher_is_better, details=details)
                )
        return rows

    def sentences(self) -> list[str]:
        """Every comparison in a line, the rule of the verdicts, and the notes."""
        return [*(each.sentence for each in self.comparisons), RULE, *self.notes]

    def table(self) -> list[list[str]]:
        """Arms by metrics as text, `mean ± deviation`; the first row holds the headings."""
        names = list(dict.fromkeys(name for values in self.arms.values() for name in values.metrics))
        head = ["arm", *names, "trained tokens", "GFLOPs"]
        body = []
        for arm, values in self.arms.items():
            cells = [_cell(values.metrics.get(name)) for name in names]
            body.append([arm, *cells, f"{values.costs.trained_tokens:,}", f"{values.costs.flops / 1e9:,.0f}"])
        return [head, *body]


def _cell(values: list[float] | None) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"
