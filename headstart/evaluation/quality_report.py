"""The report of a quality run: scores by task and length, with their groups."""

import math
import os
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from headstart.errors import HeadstartError
from headstart.evaluation.machine import Machine
from headstart.evaluation.quality_results import Record

SCHEMA_VERSION = 1


class Score(BaseModel):
    """One task at one length.

    Attributes:
        task, length: length 0 where a task has none.
        unit: what `score` counts.
        metric: in words.
        count: examples behind it.
        score: the mean; None when the task was skipped.
        error: the standard error of the mean; None with fewer than two examples.
        values: means of further numbers, such as `exact` (percent).
        groups: the mean by each value of what examples can be grouped by, such as `depth` or `turn`.
        skipped: why there is no score.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    length: int
    unit: Literal["percent", "bits per byte", "nats", "as lm_eval gives it"] = "percent"
    metric: str = ""
    count: int = 0
    score: float | None = None
    error: float | None = None
    values: dict[str, float] = {}
    groups: dict[str, dict[str, float]] = {}
    skipped: str | None = None


class QualityReport(BaseModel):
    """A run: what was measured on which model under which methods, and everything needed to measure it again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    use: list[str]
    exact: bool
    settings: dict[str, Any]
    command: str
    commit: str | None
    dirty: bool
    created: datetime
    machine: Machine
    versions: dict[str, str]
    seconds: float
    complete: bool
    scores: list[Score]

    def write(self, path: Path) -> None:
        """Write the report as JSON; a reader never sees half a file.

        Raises:
            HeadstartError: the directory cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".tmp")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(self.model_dump_json(indent=2) + "\n")
                os.chmod(beside, 0o644)
                os.replace(beside, path)
            except BaseException:
                os.unlink(beside)
                raise
        except OSError as error:
            raise HeadstartError(f"the report could not be written to {path}: {error.strerror or error}") from None


def mean_score(task: str, length: int, records: Sequence[Record], metric: str) -> Score:
    """The score of a task whose records count from 0 to 100."""
    scores = [record.score for record in records]
    names = dict.fromkeys(name for record in records for name in record.values)
    values = {name: statistics.fmean(r.values[name] for r in records if name in r.values) for name in names}
    return Score(
        task=task,
        length=length,
        metric=metric,
        count=len(records),
        score=statistics.fmean(scores),
        error=standard_error(scores),
        values=values,
        groups=grouped(records),
    )


def grouped(records: Iterable[Record]) -> dict[str, dict[str, float]]:
    """Mean score by each value of each group that the records have."""
    found: dict[str, dict[Any, list[float]]] = {}
    for record in records:
        for name, value in record.groups.items():
            found.setdefault(name, {}).setdefault(value, []).append(record.score)
    return {
        name: {str(value): statistics.fmean(scores) for value, scores in sorted(by_value.items())}
        for name, by_value in found.items()
    }


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def failure(record: Record) -> str:
    """What was asked, what was expected and what came, for people."""
    got = " ".join(record.output.split())[:200] or "(nothing)"
    where = f"{record.task} at {record.length}" if record.length else record.task
    groups = "".join(f", {name} {value}" for name, value in record.groups.items())
    lines = (
        f"{where}, example {record.index}{groups}",
        f"asked:    {record.asked}",
        f"expected: {record.expected}",
        f"got:      {got}",
    )
    return "\n  ".join(lines)
