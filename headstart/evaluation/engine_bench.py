"""The engine benchmark: this engine and its peers on one random Llama, in one run, round by round."""

import json
import platform
import random
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from headstart.evaluation import ledger
from headstart.evaluation.compare_rounds import Reporter, busy_notes, duration, interleaved
from headstart.evaluation.engine_plan import (
    Column,
    EngineBenchSettings,
    Task,
    applies,
    columns,
    tasks,
)
from headstart.evaluation.ledger import LedgerEntry, Ratio, Row, check_key
from headstart.evaluation.machine import Effort, MachinePeaks, describe_machine, measure_peaks
from headstart.evaluation.random_checkpoint import write_checkpoint, write_config, write_gguf
from headstart.evaluation.sides import PEERS_INSTALL, SideSettings, missing_packages
from headstart.evaluation.worker import SideProcess

_AGREEMENT_PROMPTS = 16
# Pages are whole, and some stay free for running sequences to grow.
_CACHE_SLACK = 1.1

# The least times faster than Transformers in bfloat16 that this engine should be, on the default shape.
_TARGETS = {
    Task("prefill", 2048): 1.0,
    Task("prefill", 8192): 1.0,
    Task("decode", 2048, 32): 1.3,
    Task("serial", 128, 64, 32): 4.0,
}


class _Run:
    """What one run of the benchmark holds: the checkpoint, the processes and what they measured."""

    def __init__(self, settings: EngineBenchSettings, directory: Path, reporter: Reporter, stack: ExitStack) -> None:
        self.settings = settings
        self.directory = directory
        self.reporter = reporter
        self.stack = stack
        self.columns = columns(settings)
        self.processes: dict[Column, SideProcess] = {}
        self.answers: dict[tuple[Task, Column], list[dict[str, Any]]] = defaultdict(list)

    def _side_settings(self, column: Column) -> SideSettings:
        checkpoint = self.directory / "checkpoint"
        if column.side == "llama.cpp":
            gguf = self.directory / f"{column.dtype}.gguf"
            if not gguf.exists():
                write_gguf(gguf, checkpoint, self.settings.llama, getattr(torch, column.dtype))
            checkpoint = gguf
        return SideSettings(
            side=column.side,
            dtype=column.dtype,
            checkpoint=str(checkpoint),
            threads=self.settings.threads,
            max_length=self.settings.max_length,
            max_concurrent_length=self.settings.max_concurrent_length,
            max_sequences=self.settings.max_sequences,
            engine_options=self._engine_options() if column.side == "headstart" else {},
            device=self.settings.device,
            dummy=self._dummy,
        )

    @property
    def _dummy(self) -> bool:
        return self.settings.device != "cpu"

    def _engine_options(self) -> dict[str, Any]:
        """The user's, and a cache of no more than is needed, since on a GPU a peer shares the memory."""
        settings = self.settings
        if not self._dummy:
            return settings.engine_options
        held = settings.cache_tokens * settings.llama.kv_bytes_per_token(getattr(torch, settings.dtype).itemsize)
        return {"kv_cache_memory": int(held * _CACHE_SLACK), **settings.engine_options}

    def load(self) -> None:
        """Write the weights and start one process per column."""
        checkpoint, settings = self.directory / "checkpoint", self.settings
        if self._dummy:
            write_config(checkpoint, settings.llama)
        else:
            write_checkpoint(checkpoint, settings.llama, seed=settings.seed)
        for column in self.columns:
            self.reporter.say(f"loading {column.name}")
            process = self.stack.enter_context(SideProcess(self._side_settings(column)))
            self.processes[column] = process

    def _prompts(self, task: Task, round_: int) -> list[list[int]]:
        """Random prompts of the task in a round: the same for every side, and new in every round."""
        draw = random.Random(f"{self.settings.seed} {round_} {task.requests == 1}")
        vocab = self.settings.llama.vocab
        return [[draw.randrange(3, vocab) for _ in range(task.length)] for _ in range(task.requests)]

    def measure(self) -> None:
        """Warm up, say how long it will take, then run the rounds: per group of tasks, the sides in turns."""
        settings, plan = self.settings, tasks(self.settings)
        cells = [[(t, c) for t in group for c in self.columns if applies(t, c)] for group in plan]
        count = sum(len(group) for group in cells)
        self.reporter.begin(count * (settings.repeats + 1))
        expected = 0.0
        for task, column in (cell for group in cells for cell in group):
            # A GPU chooses its kernels by what it meets, so that only the task itself prepares it.
            small = task if self._dummy else task.warm_up()
            self.reporter.step(f"warm-up, {small.name}: {column.name}")
            arguments = small.arguments(self._prompts(small, -1))
            answer = self.processes[column].call(small.operation, *arguments)
            growth = 1.0 if small is task else task.growth_from_warm_up(settings.llama)
            expected += answer["seconds"] * growth * settings.repeats
        self.reporter.say(f"the measurement will take about {duration(expected)}")
        for group in cells:
            for round_, (task, column) in interleaved(group, settings.repeats):
                self.reporter.step(f"round {round_ + 1}, {task.name}: {column.name}")
                arguments = task.arguments(self._prompts(task, round_))
                answer = self.processes[column].call(task.operation, *arguments)
                self.answers[task, column].append(answer)
        self.reporter.done()

    def agreement(self) -> list[Row]:
        """How often each side in float32 finds the next token that Transformers finds, on mixed lengths.

        Ends the processes of the columns.
        """
        sides = list(dict.fromkeys(column.side for column in self.columns))
        reference = "transformers" if "transformers" in sides else sides[0]
        draw = random.Random(f"{self.settings.seed} agreement")
        longest = min(96, self.settings.max_length - 1)
        prompts = [
            [draw.randrange(3, self.settings.llama.vocab) for _ in range(draw.randint(1, longest))]
            for _ in range(_AGREEMENT_PROMPTS)
        ]
        found: dict[str, list[tuple[int, float]]] = {}

        def ask(side: str, process: SideProcess) -> None:
            self.reporter.say(f"comparing next tokens in float32: {side}")
            found[side] = [process.call("next_token", prompt)["result"] for prompt in prompts]

        for column, process in self.processes.items():
            if column.dtype == "float32":
                ask(column.side, process)
            # Memory holds the columns, and not others beside them.
            process.close()
        for side in sides:
            if side not in found:
                with SideProcess(self._side_settings(Column(side, "float32"))) as process:
                    ask(side, process)
        return [
            _agreement_row(f"{side} float32", reference, found[side], found[reference])
            for side in sides
            if side != reference
        ]

    def rows(self, peaks: MachinePeaks) -> dict[tuple[Task, Column], Row]:
        """A row per task and column."""
        rows = {}
        for (task, column), answers in self.answers.items():
            row = Row.of(
                task.name,
                column.name,
                task.unit,
                [a["result"]["value"] for a in answers],
                higher_is_better=task.operation == "decode",
            )
            bounds = task.bounds(self.settings.llama, column.itemsize, peaks)
            details = {
                **bounds,
                **task.fraction_of_peak(row.median, bounds),
                "peak_rss_bytes": max(a["peak_rss"] for a in answers),
                "background_load": max(a["background_load"] for a in answers),
            }
            rows[task, column] = row.model_copy(update={"details": details})
        return rows

    def ratios(self, rows: dict[tuple[Task, Column], Row]) -> list[Ratio]:
        """This engine against every peer, task by task; Transformers in bfloat16 carries the targets."""
        ours = self.columns[0]
        found = []
        for (task, column), row in rows.items():
            if column == ours:
                continue
            # One by one is the peer's way of answering what this engine answers together.
            own = replace(task, operation="concurrent") if task.operation == "serial" else task
            held = column == Column("transformers", "bfloat16") and self.settings.shape == "qwen2.5-0.5b"
            target = _TARGETS.get(task) if held and ours.dtype == column.dtype else None
            found.append(Ratio.of(rows[own, ours], row, name=task.name, target=target))
        return found

    def first_tokens(self) -> list[Row]:
        """How often the first tokens of the measured requests are those of Transformers in float32."""
        together = next(task for task, _ in self.answers if task.operation == "concurrent")
        reference = Column("transformers", "float32")
        if (together, reference) not in self.answers:
            return []
        rows = []
        for column in self.columns:
            if column == reference:
                continue
            shares = [
                _share_equal(_first_tokens(answer), _first_tokens(expected))
                for answer, expected in zip(
                    self.answers[together, column], self.answers[together, reference], strict=True
                )
            ]
            name = f"first tokens equal to {reference.name}"
            rows.append(Row.of(name, column.name, "fraction", shares, higher_is_better=True))
        return rows

    def notes(self, agreement: list[Row]) -> list[str]:
        """What a reader of the figures should know."""
        settings = self.settings
        found = [
            f"random weights (seed {settings.seed}, spread {settings.llama.init_std}), greedy, end of sequence "
            "ignored; prompts are random, new in every round and the same for all sides",
            "values are wall-clock; every side has a process of its own, and only one works at a time",
            "peak memory is resident memory and includes mapped weight files",
        ]
        found += [
            f"{row.side} finds other next tokens than the reference: its speed may be that of an error"
            for row in agreement
            if row.median < 1
        ]
        found += busy_notes(answer for answers in self.answers.values() for answer in answers)
        return found


def _first_tokens(answer: dict[str, Any]) -> list[int]:
    return [ids[0] for ids in answer["result"]["token_ids"]]


def _share_equal(found: Sequence[int], expected: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(found, expected, strict=True)) / len(expected)


def _agreement_row(side: str, reference: str, found: list[tuple[int, float]], expected: list[tuple[int, float]]) -> Row:
    """The share of equal next tokens, and the largest difference of the likeliest token's log-probability."""
    share = _share_equal([token for token, _ in found], [token for token, _ in expected])
    gap = max(abs(a - b) for (_, a), (_, b) in zip(found, expected, strict=True))
    return Row.of(
        f"next tokens equal to {reference} float32",
        side,
        "fraction",
        [share],
        higher_is_better=True,
        details={"prompts": len(expected), "max_logprob_difference": gap},
    )


def available(settings: EngineBenchSettings, reporter: Reporter) -> EngineBenchSettings:
    """The settings without the peers that are not installed, each named in a sentence."""
    sides = []
    for side in settings.sides:
        missing = missing_packages(side)
        if missing:
            reporter.say(f"{side} is skipped: {' and '.join(missing)} not installed; get it with: {PEERS_INSTALL}")
        else:
            sides.append(side)
    return replace(settings, sides=tuple(sides))


def run_engine_bench(
    settings: EngineBenchSettings,
    reporter: Reporter,
    *,
    command: str,
    key: str = "engine",
    quick: bool = False,
) -> LedgerEntry:
    """Measure the machine's peaks and all sides, and compare.

    Args:
        settings: what to measure.
        reporter: hears how it goes on.
        command: what a user types to measure again.
        key: of the entry.
        quick: measure the machine's peaks on small buffers.

    Raises:
        LedgerError: the key is none, said before anything runs.
        BenchmarkError: a side failed; the sentence says which and why.
    """
    check_key(key)
    # Now, since the checkout may move on while the measurement runs.
    commit, dirty = ledger.code_version()
    settings = available(settings, reporter)
    effort: Effort = "quick" if quick else "full"
    reporter.say("measuring the machine's peaks")
    peaks = measure_peaks(settings.threads, effort, settings.device)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headstart-bench-")))
        reporter.say(f"making {settings.llama.params:,} random weights")
        run = _Run(settings, directory, reporter, stack)
        run.load()
        run.measure()
        versions = {"python": platform.python_version()}
        for process in run.processes.values():
            versions |= process.versions
        # Where each side draws its own weights, they have nothing to agree on.
        agreement = run.agreement() if settings.device == "cpu" else []
    if not quick:
        reporter.say("measuring the machine's peaks again")
        peaks = peaks.best_of(measure_peaks(settings.threads, effort, settings.device))
    rows = run.rows(peaks)
    return LedgerEntry(
        kind="engine",
        key=key,
        command=command,
        commit=commit,
        dirty=dirty,
        created=ledger.now(),
        machine=describe_machine(),
        peaks=peaks,
        versions=versions,
        seeds=[settings.seed],
        settings=json.loads(json.dumps(asdict(settings))),
        rows=[*rows.values(), *run.first_tokens(), *agreement],
        ratios=run.ratios(rows),
        notes=run.notes(agreement),
    )
