"""The search for a capacity: on known servers, on simulated ones, and what it says where nothing meets the targets."""

from pathlib import Path

import pytest

from headstart.evaluation.capacity.loads import LoadShape
from headstart.evaluation.capacity.probes import simulated
from headstart.evaluation.capacity.search import CapacityError, Probe, Targets, search
from headstart.evaluation.load.settings import Lengths, LoadError, LoadSettings
from headstart.evaluation.simulate.cost import StepCost
from headstart.evaluation.simulate.worker import WorkerSettings

TARGETS = Targets(1.0, 0.1)


def _server(limit: float, ttft: float = 0.5, tbt: float = 0.05):
    """Meets the targets up to a rate, and is far beyond them above it."""
    return lambda rate: Probe(rate, ttft if rate <= limit else 9.0, tbt, 100.0)


@pytest.mark.parametrize("limit", [0.013, 0.5, 3.0, 77.7, 5000.0])
@pytest.mark.parametrize("start", [0.1, 10.0])
def test_the_capacity_is_found_from_anywhere(limit: float, start: float) -> None:
    found = search(_server(limit), TARGETS, start)
    assert found.rate <= limit <= (found.bound or 0) and (found.bound or 0) / found.rate <= 1.05
    assert len(found.probes) <= 24 and found.best is not None and found.best.rate == found.rate
    assert f"{found.rate:.3g} requests per second meet ttft=1s,tbt=100ms" in found.sentence


def test_no_rate_is_tried_beyond_the_most() -> None:
    found = search(_server(1e9), TARGETS, 1.0, most=20.0)
    assert found.rate == 20.0 and found.bound is None and "more than 20 requests per second" in found.sentence


def test_targets_that_no_rate_meets_and_the_nearest_that_is_met() -> None:
    found = search(lambda rate: Probe(rate, 0.3 + rate, 0.2501, 10.0), TARGETS, 8.0)
    assert found.rate == 0 and found.best is None
    assert "no rate meets ttft=1s,tbt=100ms; the nearest that is met" in found.sentence
    assert "is ttft=1s,tbt=251ms" in found.sentence
    broken = search(lambda rate: Probe(rate, 0.1, 0.01, 1.0, served=False), TARGETS, 8.0)
    assert "not even the lowest that was tried was served" in broken.sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ttft=2", "needs targets for both ttft and tbt"),
        ("ttft=2,itl=1", "targets are written as ttft=2,tbt=100ms, not"),
        ("ttft=2,ttft=3", "targets are written as"),
        ("ttft=0,tbt=1", "the target for ttft must be a time above 0, not 0"),
    ],
)
def test_targets_that_are_none(text: str, sentence: str) -> None:
    with pytest.raises(CapacityError, match=sentence):
        Targets.parse(text)


def test_a_trace_keeps_its_bursts_at_any_rate(tmp_path: Path) -> None:
    lines = "\n".join(f"2024-01-01 00:00:{n // 2:02d},{100 + n},{5 + n}" for n in range(40))
    path = tmp_path / "trace.csv"
    path.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{lines}\n")
    shape = LoadShape.of(LoadSettings(trace=str(path)), 30)
    assert len(shape.asks) == 30 and shape.natural == pytest.approx(29 / 14)
    for rate in (0.5, 40.0):
        asks = shape.at(rate)
        assert [(a.input_tokens, a.output_tokens) for a in asks] == [(100 + n, 5 + n) for n in range(30)]
        span = (asks[-1].at or 0) - (asks[0].at or 0)
        assert 29 / span == pytest.approx(rate)
        assert asks[2].at == asks[3].at, "what came together comes together"
        assert shape.settings_at(rate).fast_forward == pytest.approx(rate / shape.natural)
    assert shape.longest == 129 + 34
    path.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n2024-01-01 00:00:09,5,5\n{lines}\n")
    with pytest.raises(LoadError, match=r"line 3: its time is before that of the line above; sort the trace by time"):
        LoadShape.of(LoadSettings(trace=str(path)), 30)
    with pytest.raises(CapacityError, match="has 5 requests; a 99th percentile needs at least 20"):
        LoadShape.of(LoadSettings(), 5)


def test_stall_free_steps_carry_more_under_a_tight_target() -> None:
    """What the schedulers are for: with long prompts and a tight tail, whole prompts carry less than chunks."""
    cost = StepCost((1, 64, 512, 1024), (0.010, 0.012, 0.060, 0.120), 2e-8, 1e-8, 1e-5)
    settings = LoadSettings(input_tokens=Lengths(64, 1000), output_tokens=Lengths(8, 48))
    shape = LoadShape.of(settings, 60)
    worker = WorkerSettings(4000)
    found = {
        use: search(simulated(shape, use, cost, worker), Targets(3.0, 0.05), 2.0, precision=1.1).rate
        for use in ("prefill-first", "sarathi-serve:chunk=256", "default")
    }
    assert found["sarathi-serve:chunk=256"] > 1.5 * found["prefill-first"]
