"""What each scheduler promises beyond the contracts of all: the shape of its steps, and what it finds by itself."""

import random
from typing import Any

import pytest

from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams
from headstart.errors import MethodError
from headstart.methods import registry
from headstart.methods.schedule import profile
from headstart.methods.schedule.profile import StepProfile, knee, largest_step
from tests.conformance import models
from tests.conformance.lab import make_engine

Step = list[tuple[str, bool, int]]
ROOMY: dict[str, Any] = {"page_size": 4, "num_pages": 800, "enable_prefix_caching": False}


def _serve(use: str, load: list[tuple[int, int]], **settings: Any) -> list[Step]:
    """(request, whether a decode, tokens) of each step's shares, for requests of (prompt, answer) that come at once."""
    engine: Engine = make_engine("gqa", registry.build(use), **(ROOMY | settings))
    for number, (prompt, answer) in enumerate(load):
        params = SamplingParams(max_tokens=answer, temperature=0, ignore_eos=True)
        engine.submit(engine.prepare(str(number), models.ids(prompt, number), params))
    scheduler: Any = engine.stack.scheduler
    schedule, steps = scheduler.schedule, []

    def watched(step: Any) -> None:
        schedule(step)
        steps.append([(a.sequence.request.request_id, a.sequence.decoding, a.num_tokens) for a in step.allotments()])

    scheduler.schedule = watched
    while engine.has_work:
        engine.step()
    return steps


def _tokens(step: Step) -> int:
    return sum(tokens for _, _, tokens in step)


@pytest.mark.parametrize("budget", [3, 10, 17])
def test_fastgen_fills_its_budget_exactly(budget: int) -> None:
    """As long as prompts wait every step has exactly so many tokens, and each prompt's chunks are its prompt."""
    rng = random.Random(budget)
    load = [(rng.randrange(1, 60), rng.randrange(1, 6)) for _ in range(14)]
    steps = _serve(f"fastgen:budget={budget}", load, max_num_seqs=64)
    reads = [number for number, step in enumerate(steps) if any(not decode for _, decode, _ in step)]
    assert all(_tokens(step) == budget for step in steps[: reads[-1]])
    assert all(_tokens(step) <= budget for step in steps)
    for number, (prompt, _) in enumerate(load):
        assert sum(t for step in steps for r, decode, t in step if r == str(number) and not decode) == prompt


def test_fastgen_decodes_are_never_more_than_its_budget() -> None:
    steps = _serve("fastgen:budget=3", [(1, 12)] * 8, max_num_seqs=8)
    assert max(len(step) for step in steps) == 3
    assert all(sum(r == str(number) for step in steps for r, _, _ in step) == 12 for number in range(8))


def test_fastgen_gets_out_of_a_full_cache() -> None:
    """A pool that two growing answers overfill: the last admitted gives way and goes to the end of the line."""
    steps = _serve("fastgen:budget=32", [(20, 40), (20, 40), (8, 4)], num_pages=24, max_num_seqs=2)
    assert steps and sum(1 for step in steps for r, decode, _ in step if r == "0" and decode) == 39


def test_orca_mixes_whole_prompts_and_keeps_room_for_answers() -> None:
    steps = _serve("orca", [(30, 6), (25, 6), (8, 6)], max_num_batched_tokens=40)
    assert [(r, t) for r, _, t in steps[0]] == [("0", 30), ("1", 25)]
    assert ("2", False, 8) in steps[1] and sum(decode for _, decode, _ in steps[1]) == 2
    tight = _serve("orca", [(30, 20), (25, 20)], num_pages=20)
    assert all(len(step) == 1 for step in tight), "80 places hold one prompt with its answer, not two"


def test_request_batches_begin_and_end_together() -> None:
    steps = _serve("request-batches:batch=2", [(9, 2), (9, 8), (9, 2), (9, 2)], max_num_batched_tokens=64)
    first = next(n for n, step in enumerate(steps) if any(r == "2" for r, _, _ in step))
    assert all(r in "01" for step in steps[:first] for r, _, _ in step)
    assert sum(1 for step in steps[:first] for r, _, _ in step if r == "1") == 8
    assert all(not any(d for _, d, _ in step) or all(d for _, d, _ in step) for step in steps), "never mixed"


def test_short_prompts_pass_a_long_one_that_still_gets_half() -> None:
    load = [(90, 2), *[(6, 2)] * 12]
    plain = _serve("sarathi-serve:chunk=8", load, max_num_seqs=4)
    limited = _serve("sarathi-serve:chunk=8,long=40", load, max_num_seqs=4)

    def first_read(steps: list[Step], name: str) -> int:
        return next(n for n, step in enumerate(steps) if any(r == name for r, _, _ in step))

    assert first_read(limited, "1") < first_read(plain, "1")
    until = max(n for n, step in enumerate(limited) if any(r == "0" and not d for r, d, _ in step))
    for step in limited[:until]:
        decodes = sum(d for _, d, _ in step)
        assert sum(t for r, _, t in step if r == "0") >= (8 - decodes + 1) // 2


def test_only_so_many_long_prompts_at_once() -> None:
    steps = _serve("sarathi-serve:chunk=16,long=30,most_long=1", [(60, 1), (60, 1), (60, 1), (5, 1)], max_num_seqs=8)
    for step in steps:
        assert len({r for r, decode, _ in step if r in "012" and not decode}) <= 1


class _Known(StepProfile):
    """A profile with a known time per token."""

    def __init__(self, seconds: Any, tile: int = 16, context: int = 4096) -> None:
        self.tile, self.context, self._seconds = tile, context, seconds

    def seconds(self, tokens: int) -> float:
        return self._seconds(tokens)


@pytest.mark.parametrize("allowed", [16, 17, 100, 511, 512, 4000])
def test_the_largest_step_is_found(allowed: int) -> None:
    found = largest_step(_Known(lambda tokens: tokens / 1000), allowed / 1000, 2048)
    assert found == min(allowed, 2048) // 16 * 16
    assert largest_step(_Known(lambda tokens: 1.0), 0.5, 2048) is None


def test_the_knee_is_where_throughput_is_near_its_best() -> None:
    assert knee(_Known(lambda tokens: max(0.01, tokens * 1e-4)), 2048) == 128
    assert knee(_Known(lambda tokens: 1.0 + tokens * 1e-9), 2048) == 2048


def test_profiles_time_a_real_model() -> None:
    timed = StepProfile(models.shared("gqa"), context=64)
    assert 0 < timed.seconds(16) < 60 and timed.context == 64
    found = registry.build("sarathi-serve:tbt_ms=60000,context=64")
    engine = make_engine("gqa", found)
    assert found.chunk == engine.planner.max_num_batched_tokens == 64 // 16 * 16
    auto = registry.build("fastgen:budget=0,context=64")
    engine = make_engine("gqa", auto)
    assert auto.budget in (16, 32, 64) and engine.planner.max_num_batched_tokens == auto.budget


def test_a_target_that_no_step_meets_is_said() -> None:
    with pytest.raises(
        MethodError, match=r"no step meets tbt_ms=1e-06: 16 tokens behind 64 take .* ms here; ask for at"
    ):
        make_engine("gqa", registry.build("sarathi-serve:tbt_ms=0.000001,context=64"))
    with pytest.raises(MethodError, match="tbt_ms must be a number of milliseconds above 0, not -1"):
        registry.build("sarathi-serve:tbt_ms=-1")
    with pytest.raises(MethodError, match="budget must be at least 0"):
        registry.build("fastgen:budget=-4")
    assert profile.TILES["cuda"] == 128
