"""What stacks of methods do to answers: generated tasks, and how far next-token distributions move from exact ones."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from headstart.engine.llm import LLM
from headstart.evaluation.compare_lengths import Called, Contender
from headstart.evaluation.compare_rounds import INTERRUPTED, Reporter, duration
from headstart.evaluation.compare_subject import Subject
from headstart.evaluation.ledger import Row
from headstart.evaluation.sides import BenchmarkError, SideSettings
from headstart.evaluation.worker import SideProcess

# Tokens that follow the prompt and are compared too: what decoding over the prompt's keys gives.
_CONTINUATION = 32
_SEQUENCES = 4
_SAY_FROM = 20.0


@dataclass(frozen=True)
class QualityAsk:
    """What is asked of every contender.

    Args:
        tasks: keys of tasks and groups, as `headstart eval --task` takes them; none measures the distance alone.
        lengths: tokens of prompt and answer together; for the distance, of prompt and continuation.
        count: examples for each task and length, and prompts for the distance.
        seed: of examples and prompts.
        data: directory with evaluation sets, for tasks over real text.
    """

    tasks: tuple[str, ...] = ()
    lengths: tuple[int, ...] = (512, 1024)
    count: int = 3
    seed: int = 0
    data: Path | None = None

    def __post_init__(self) -> None:
        if not self.lengths or min(*self.lengths, self.count) < 1:
            raise BenchmarkError("lengths and count must be at least 1")

    def settings(self, task: str, length: int) -> dict[str, Any]:
        """One cell, as JSON."""
        data = None if self.data is None else str(self.data)
        return {"tasks": [task], "lengths": [length], "count": self.count, "seed": self.seed, "data": data}


def score_tasks(llm: LLM, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Run tasks in this process; settings as `QualityAsk.settings` makes them.

    Returns:
        `Score`s as dicts.
    """
    from headstart.evaluation.quality import Run
    from headstart.evaluation.quality_results import ResultFile
    from headstart.evaluation.quality_settings import QualitySettings
    from headstart.evaluation.tasks import Sources

    sources = Sources(data=None if settings["data"] is None else Path(settings["data"]))
    asked = QualitySettings(
        tasks=tuple(settings["tasks"]),
        lengths=tuple(settings["lengths"]),
        count=settings["count"],
        seed=settings["seed"],
        sources=sources,
    )
    run = Run(llm, asked, ResultFile(None, ""), _Silent())
    return [score.model_dump(mode="json") for score in run.scores()]


class _Silent:
    """A reporter within a contender's process, whose output nobody sees."""

    def begin(self, total: int) -> None:
        """Nothing."""

    def step(self, description: str, done: int) -> None:
        """Nothing."""

    def scored(self, score: Any) -> None:
        """Nothing."""


def check_ask(ask: QualityAsk, subject: Subject, contenders: Sequence[Contender]) -> QualityAsk:
    """The ask with its groups resolved to tasks.

    Raises:
        HeadstartError: an unknown task, a length that the model does not serve, or a peer, which has no tasks here.
    """
    from headstart.evaluation.quality_settings import BITS
    from headstart.evaluation.tasks import resolve

    peer = next((contender.label for contender in contenders if contender.side != "headstart"), None)
    if peer is not None:
        raise BenchmarkError(f"quality is measured of this engine's stacks; leave out {peer}")
    tasks = tuple(resolve(ask.tasks, (BITS,)))
    if tasks and subject.tokenizer is None:
        raise BenchmarkError(f"{subject.name} has no tokenizer, which tasks need; leave the tasks out")
    beyond = max(ask.lengths)
    if beyond >= subject.longest:
        raise BenchmarkError(
            f"a length of {beyond} tokens is beyond the {subject.longest - 1} that {subject.name} serves; lower it"
        )
    return QualityAsk(tasks, tuple(sorted(set(ask.lengths))), ask.count, ask.seed, ask.data)


@dataclass
class QualityResult:
    """Rows of scores, and what a reader should know."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    partial: str | None = None


@dataclass
class QualityRun:
    """Quality of stacks, one after another: tasks are answered greedily, so that turns would change nothing.

    Args:
        subject: the model.
        contenders: stacks of this engine.
        ask: checked by `check_ask`.
        threads: of each.
        reporter: hears how it goes on.
        launch: starts a contender.
    """

    subject: Subject
    contenders: Sequence[Contender]
    ask: QualityAsk
    threads: int
    reporter: Reporter
    launch: Callable[[SideSettings], Called] = SideProcess

    def run(self) -> QualityResult:
        """Measure; Ctrl-C keeps what is complete.

        Raises:
            BenchmarkError: a contender cannot load.
        """
        result, ask = QualityResult(), self.ask
        moved = [c for c in self.contenders if c.use]
        cells = len(ask.lengths) * (len(ask.tasks) * len(self.contenders) + len(moved))
        self.reporter.begin(cells)
        self._cells: int | None = cells
        with ExitStack() as stack:
            sides = {c.label: stack.enter_context(self._start(c)) for c in self.contenders}
            for side in sides.values():
                result.versions |= side.versions
            try:
                for length in ask.lengths:
                    for contender in moved:
                        self.reporter.step(f"distance from exact at {length:,}: {contender.label}")
                        result.rows += self._timed(lambda c=contender, n=length: self._distance(c, sides[c.label], n))
                for length, task, contender in product(ask.lengths, ask.tasks, self.contenders):
                    self.reporter.step(f"{task} at {length:,}: {contender.label}")
                    side = sides[contender.label]
                    result.rows += self._timed(lambda c=contender, s=side, t=task, n=length: self._scores(c, s, t, n))
            except KeyboardInterrupt:
                result.partial = INTERRUPTED
        self.reporter.done()
        order = [contender.label for contender in self.contenders]
        result.rows.sort(key=lambda row: order.index(row.side))
        skipped = [row.name for row in result.rows if not row.details.get("count", 1)]
        result.rows = [row for row in result.rows if row.name not in skipped]
        result.notes = [f"{name}: skipped, its data is not here" for name in dict.fromkeys(skipped)]
        if not self.subject.trained and moved:
            result.notes.append("weights are random: the distance from the exact stack is real, answers mean nothing")
        return result

    def _start(self, contender: Contender) -> Called:
        self.reporter.say(f"loading {contender.label} for quality")
        return self.launch(
            SideSettings(
                side="headstart",
                dtype=self.subject.dtype,
                checkpoint=str(contender.checkpoint or self.subject.path),
                threads=self.threads,
                max_length=max(self.ask.lengths) + 1,
                max_concurrent_length=max(self.ask.lengths) + 1,
                max_sequences=_SEQUENCES,
                engine_options={"use": list(contender.use)},
                device=self.subject.device,
                tokenizer=bool(self.ask.tasks),
            )
        )

    def _timed(self, measure: Callable[[], list[Row]]) -> list[Row]:
        """Measure a cell; after the first, say how long the others will take if that is long."""
        start = time.perf_counter()
        rows = measure()
        if self._cells is not None:
            growth = sum(self.ask.lengths) / (len(self.ask.lengths) * min(self.ask.lengths))
            expected = (time.perf_counter() - start) * growth * self._cells
            if expected > _SAY_FROM:
                self.reporter.say(f"quality will take about {duration(expected)}")
            self._cells = None
        return rows

    def _distance(self, contender: Contender, side: Called, length: int) -> list[Row]:
        """KL divergence and top-1 agreement with the exact stack, a value per prompt."""
        given = max(1, min(_CONTINUATION, length // 2))
        found = []
        for index in range(self.ask.count):
            tokens = self.subject.prompt(length, f"{self.ask.seed} distance {index}")
            found.append(side.call("divergence", tokens[:-given], tokens[-given:])["result"])

        def row(metric: str, name: str, unit: str, higher: bool) -> Row:
            values = [item[name] for item in found]
            title, details = f"{metric} at {length:,}", {"count": float(len(found))}
            return Row.of(
                title,
                contender.label,
                unit,
                values,
                higher_is_better=higher,
                details=details,
                metric=metric,
                length=length,
            )

        return [
            row("KL from exact", "kl", "nats", False),
            row("KL of the first token", "first_kl", "nats", False),
            row("top-1 agreement", "top1", "percent", True),
        ]

    def _scores(self, contender: Contender, side: Called, task: str, length: int) -> list[Row]:
        """A row per score; a task without its data has a count of 0."""
        rows = []
        for score in side.call("scores", self.ask.settings(task, length))["result"]:
            details = {"count": float(score["count"]), **score["values"]}
            if score["error"] is not None:
                details["standard_error"] = score["error"]
            rows.append(
                Row.of(
                    f"{score['task']} at {length:,}",
                    contender.label,
                    score["unit"],
                    [score["score"] or 0.0],
                    higher_is_better=score["unit"] == "percent",
                    details=details,
                    metric=score["task"],
                    length=length,
                )
            )
        return rows
