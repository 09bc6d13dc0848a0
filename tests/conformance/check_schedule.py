"""Contracts on schedulers: within the budget, nobody starves, and deciding costs little. Steps and lines are counted;
nothing is timed. That the text does not change is `check_text`."""

import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

from headstart.engine.batch import TokenBatch
from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams
from headstart.engine.planner import StepPlanner
from tests.conformance import models
from tests.conformance.case import Case
from tests.conformance.lab import MOST_STEPS, assert_conserved, assert_idle

ROOMY = {"page_size": 4, "num_pages": 400}


def check_budget(case: Case) -> None:
    """A step has no more tokens than its budget, but for decodes, which are never refused. A scheduler that never
    cuts a prompt may exceed it by what the last prompt of the step is longer."""
    for seed, budget in enumerate((1, 5, 16, 40)):
        rng = random.Random(seed)
        engine = case.engine(**ROOMY, max_num_batched_tokens=budget, max_num_seqs=6)
        steps = _watch_steps(engine)
        for _ in range(MOST_STEPS):
            if len(steps) < 40 and rng.random() < 0.5 and len(engine.requests) < 12:
                _submit(engine, f"{rng.random()}", rng.randrange(1, 50), rng.randrange(1, 9), seed=rng.randrange(9))
            if engine.requests and rng.random() < 0.05:
                engine.abort(rng.choice(list(engine.requests)))
            engine.step()
            if len(steps) >= 40 and not engine.has_work:
                break
        assert_idle(engine)
        # Whoever cuts a prompt anywhere could have cut the last one of a step as well.
        cuts = any(not completes for pieces in steps for decode, _, completes in pieces if not decode)
        for pieces in steps:
            decodes = sum(tokens for decode, tokens, _ in pieces if decode)
            reads = [tokens for decode, tokens, _ in pieces if not decode]
            spent = decodes + sum(reads if cuts else reads[:-1])
            most = max(budget, decodes) if cuts or not reads else budget - 1
            assert spent <= most, (
                f"a step of {decodes} decodes and pieces of {reads} tokens goes beyond the budget of {budget}"
            )


def _watch_steps(engine: Engine) -> list[list[tuple[bool, int, bool]]]:
    """A list that fills with what each step runs: (whether a decode, tokens, whether nothing is left to compute)."""
    seen: list[list[tuple[bool, int, bool]]] = []
    run = engine.runner.run

    def watched(batch: TokenBatch) -> torch.Tensor:
        seen.append([(each.sequence.decoding, each.num_tokens, each.completes) for each in batch.allotments])
        return run(batch)

    engine.runner.run = watched
    return seen


def _submit(engine: Engine, name: str, length: int, tokens: int, seed: int = 0) -> None:
    asked = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, output_kind="final")
    engine.submit(engine.prepare(name, models.ids(length, seed), asked))


SEATS, QUEUE, BUDGET = 4, 6, 8
TARGET_LENGTH, TARGET_TOKENS = 50, 8
LONGEST = TARGET_LENGTH // (BUDGET - SEATS) + TARGET_TOKENS
"""Steps that a request takes at most while the other seats decode."""
PATIENCE = 2 * (SEATS + QUEUE + 1) * LONGEST
"""Steps within which a request ends if all who were there before it are served first, one after the other, twice."""


def check_starvation(case: Case) -> None:
    """While others arrive without end, short or long, all requests that were there, and a long one that is the last
    of them, still end after a bounded number of steps."""
    for length, tokens in ((2, 2), (2, TARGET_TOKENS), (TARGET_LENGTH, 2)):
        engine = case.engine(**ROOMY, max_num_batched_tokens=BUDGET, max_num_seqs=SEATS, enable_prefix_caching=False)
        arrived = 0

        def crowd(engine: Engine = engine, length: int = length, tokens: int = tokens) -> None:
            nonlocal arrived
            while len(engine.planner.waiting) < QUEUE:
                arrived += 1
                _submit(engine, f"{arrived}", length, tokens, seed=arrived)

        for _ in range(5):
            crowd()
            engine.step()
        _submit(engine, "target", TARGET_LENGTH, TARGET_TOKENS)
        known = set(engine.requests)
        for steps in range(PATIENCE + 1):
            left = known & set(engine.requests)
            if not left:
                break
            assert steps < PATIENCE, (
                f"{'a long request' if 'target' in left else 'a request'} has not ended after {steps} steps, while"
                f" others of {length} tokens arrive"
            )
            crowd()
            engine.step()
            assert_conserved(engine)


MOST_LINES = 250
"""Lines of Python that may be run for one decision; the first schedulers run up to 100."""


def check_decisions(case: Case) -> None:
    """Deciding takes a bounded number of lines of Python per decision, and no more when a thousand requests wait."""
    few, many = (_lines_per_step(case, waiting) for waiting in (20, 1000))
    for (lines, decisions), (more, its) in zip(few, many, strict=True):
        assert lines <= MOST_LINES * (decisions + 1), f"{lines} lines of Python are run for {decisions} decisions"
        most = 1.5 * lines + MOST_LINES * (1 + max(0, its - decisions))
        assert more <= most, f"a step takes {lines} lines of Python with 20 requests in line, and {more} with 1,000"


def _lines_per_step(case: Case, waiting: int) -> list[tuple[int, int]]:
    """(lines, decisions) of the first steps with so many requests in line; a decision is a sequence's share."""
    engine = case.engine(**ROOMY, max_num_batched_tokens=32, max_num_seqs=8, enable_prefix_caching=False)
    scheduler: Any = engine.stack.scheduler
    schedule: Callable[[StepPlanner], None] = scheduler.schedule
    lines = 0

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    counted: list[tuple[int, int]] = []

    def watched(step: StepPlanner) -> None:
        nonlocal lines
        lines = 0
        before = sys.gettrace()
        sys.settrace(count)
        try:
            schedule(step)
        finally:
            sys.settrace(before)
        counted.append((lines, len(step.allotments())))

    scheduler.schedule = watched
    for name in range(waiting):
        _submit(engine, f"{name}", 5 + name % 20, 6, seed=name % 7)
    for _ in range(12):
        engine.step()
    return counted
