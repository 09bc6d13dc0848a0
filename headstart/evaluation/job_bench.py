"""Offline jobs through engines in this process: what sides read, write and hold, in rounds of turns."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from headstart.checkpoints.reader import Checkpoint, load_checkpoint
from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams
from headstart.engine.seams import Piece
from headstart.evaluation.compare_lengths import LengthsResult
from headstart.evaluation.compare_rounds import INTERRUPTED, interleaved
from headstart.evaluation.ledger import Ratio, Row
from headstart.evaluation.method_bench_spec import OwnAsk

Prompts = list[list[int]]


@dataclass(frozen=True)
class Job:
    """Prompts that are all known, and how many tokens each answer has."""

    prompts: Prompts
    answers: list[int]


@dataclass(frozen=True)
class JobSide:
    """An engine that runs a job.

    Attributes:
        label: how rows name it.
        use: its methods.
        in_order: whether the prompts arrive in the order of their tokens.
        settings: of the engine, beside those that all sides have.
    """

    label: str
    use: tuple[str, ...] = ()
    in_order: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class JobFigures:
    """What a job took.

    Attributes:
        seconds: from the first request to the last answer.
        read: prompt tokens that were computed.
        decode_seconds, decoded: of the steps in which nothing was read, and the tokens they wrote.
        held: most pages held at once.
        tokens: the answers, in the order of the prompts.
    """

    seconds: float
    read: int
    decode_seconds: float
    decoded: int
    held: int
    tokens: list[list[int]]


METRICS: dict[str, tuple[str, bool, Callable[[JobFigures], float]]] = {
    "job": ("s", False, lambda figures: figures.seconds),
    "prompt tokens read": ("tokens", False, lambda figures: float(figures.read)),
    "decode": ("tokens/s", True, lambda figures: figures.decoded / max(figures.decode_seconds, 1e-9)),
    "pages held": ("pages", False, lambda figures: float(figures.held)),
}
"""What rows can show: unit, whether more is better, and where it stands in a job's figures."""


def run_jobs(
    ask: OwnAsk,
    sides: Sequence[JobSide],
    make: Callable[[int], Job],
    settings: dict[str, Any],
    metrics: Sequence[str],
    *,
    suffix: str = "",
    length: int | None = None,
    targets: dict[tuple[str, str], float] | None = None,
) -> LengthsResult:
    """Run a new job in each round through every side, and compare all with the first.

    Args:
        ask: the model, rounds, seed and reporter.
        sides: the baseline first.
        make: a job from a seed.
        settings: of all engines.
        metrics: keys of `METRICS`.
        suffix: what rows say behind the metric.
        length: tokens of context that rows are about.
        targets: least ratios, by metric and side against the first.
    """
    checkpoint = load(ask)
    figures: dict[str, list[JobFigures]] = {side.label: [] for side in sides}
    result = LengthsResult()
    ask.reporter.begin((1 + ask.repeats) * len(sides))
    try:
        for round_, side in interleaved(list(sides), 1 + ask.repeats):
            job = make(ask.seed + round_)
            figures[side.label].append(run_job(checkpoint, ask, side, job, settings))
            ask.reporter.step(f"{side.label}{suffix}")
    except KeyboardInterrupt:
        result.partial = INTERRUPTED
    ask.reporter.done()
    counts = min(map(len, figures.values()))
    if counts < 2:
        raise KeyboardInterrupt
    alike = [
        all(figures[side.label][r].tokens == figures[sides[0].label][r].tokens for r in range(counts)) for side in sides
    ]
    result.notes += [
        f"greedy answers of {side.label}{suffix} are {'the same as' if same else 'in part others than'} those of "
        f"{sides[0].label}"
        for side, same in zip(sides[1:], alike[1:], strict=True)
    ]
    for name in metrics:
        unit, more, value = METRICS[name]
        rows: list[Row] = []
        for side in sides:
            # The first round warms up.
            values = [value(each) for each in figures[side.label][1:counts]]
            labels = {"metric": name, "length": length} if length is not None else {}
            rows.append(Row.of(f"{name}{suffix}", side.label, unit, values, higher_is_better=more, **labels))
        result.rows += rows
        for row in rows[1:]:
            target = (targets or {}).get((name, row.side))
            result.ratios.append(Ratio.of(row, rows[0], target=target))
    return result


def load(ask: OwnAsk) -> Checkpoint:
    """The model, once for all sides."""
    subject = ask.subject
    return load_checkpoint(str(subject.path), subject.dtype, subject.device)


def run_job(checkpoint: Checkpoint, ask: OwnAsk, side: JobSide, job: Job, settings: dict[str, Any]) -> JobFigures:
    """One job through a new engine."""
    given = settings | side.settings
    args = EngineArgs(device=ask.subject.device, use=side.use, skip_tokenizer_init=True, **given)
    engine = Engine(args, replace(checkpoint, tokenizer=None))
    requests = [
        engine.prepare(
            str(number),
            {"prompt_token_ids": prompt},
            SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, output_kind="final"),
        )
        for number, (prompt, tokens) in enumerate(zip(job.prompts, job.answers, strict=True))
    ]
    began = time.perf_counter()
    pieces = [Piece(each.request_id, each.prompt_ids, each.max_tokens) for each in requests]
    order = engine.arrange(pieces)
    if side.in_order:
        order.sort(key=lambda place: job.prompts[place])
    for place in order:
        engine.submit(requests[place])
    figures = _steps(engine, len(requests))
    figures.seconds = time.perf_counter() - began
    figures.read = engine.stats().prefill_tokens
    engine.close()
    return figures


def _steps(engine: Engine, count: int) -> JobFigures:
    """Run to the end."""
    figures = JobFigures(0.0, 0, 0.0, 0, 0, [[] for _ in range(count)])
    store, before = engine.store, engine.stats()
    while engine.has_work:
        began = time.perf_counter()
        for output in engine.step():
            figures.tokens[int(output.request_id)] = list(output.outputs[0].token_ids)
        if engine.runner.device.type == "cuda":
            torch.cuda.synchronize()
        figures.held = max(figures.held, store.num_pages - store.num_available)
        now = engine.stats()
        if now.prefill_tokens == before.prefill_tokens:
            figures.decode_seconds += time.perf_counter() - began
            figures.decoded += now.generation_tokens - before.generation_tokens
        before = now
    return figures
