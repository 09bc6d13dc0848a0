"""When requests arrive and how long they are."""

import itertools
import json
import math
import statistics
from pathlib import Path

import pytest

from headstart.evaluation.load.plan import arrival_times, extent, plan
from headstart.evaluation.load.settings import Lengths, LoadError, LoadSettings

DRAWS = 20_000


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("rate", [0.2, 30.0])
def test_arrivals_have_the_asked_rate_and_spread(rate: float, cv: float) -> None:
    """Both lie within 5 standard errors of what was asked: by chance wrong in fewer than 1 of 10^6 seeds."""
    times = list(itertools.islice(arrival_times(rate, cv, seed=1), DRAWS + 1))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = statistics.fmean(gaps)
    assert times[0] == 0
    assert min(gaps) >= 0
    assert abs(mean * rate - 1) <= 5 * cv / math.sqrt(DRAWS) + 1e-9
    # The standard error of a gamma distribution's sample deviation, from its kurtosis.
    error = math.sqrt((2 + 6 * cv**2) / (4 * DRAWS)) if cv else 0.0
    assert abs(statistics.stdev(gaps) / mean - cv) <= 5 * cv * error + 5 * cv**2 / math.sqrt(DRAWS) + 1e-9


def test_poisson_counts_vary_as_much_as_they_are() -> None:
    """Of a Poisson process alone the counts in windows have a variance equal to their mean (5 standard errors)."""
    windows = 4000
    times = itertools.takewhile(lambda time: time < windows, arrival_times(5.0, 1.0, seed=3))
    counts = [0] * windows
    for time in times:
        counts[int(time)] += 1
    ratio = statistics.variance(counts) / statistics.fmean(counts)
    assert abs(ratio - 1) < 5 * math.sqrt(2 / windows)


def test_the_same_seed_gives_the_same_load_and_another_one_another() -> None:
    settings = LoadSettings(rate=3.0, input_tokens=Lengths(1, 500), output_tokens=Lengths(1, 50), num_requests=30)
    assert list(plan(settings)) == list(plan(settings))
    assert list(plan(settings)) != list(plan(LoadSettings.from_json({**settings.to_json(), "seed": 1})))


def test_a_longer_load_begins_as_the_shorter_one() -> None:
    short = list(plan(LoadSettings(rate=2.0, num_requests=5)))
    assert list(plan(LoadSettings(rate=2.0, num_requests=9)))[:5] == short


def test_number_and_duration_both_bound_a_load() -> None:
    asks = list(plan(LoadSettings(rate=10.0, cv=0.0, duration=2.0)))
    assert [ask.at for ask in asks] == pytest.approx([i / 10 for i in range(20)])
    assert len(list(plan(LoadSettings(rate=10.0, cv=0.0, duration=2.0, num_requests=7)))) == 7
    assert len(list(plan(LoadSettings(rate=10.0, cv=0.0)))) == 100
    assert len(list(plan(LoadSettings(rate=0.1, cv=0.0)))) == 12


def test_lengths_cover_their_range() -> None:
    settings = LoadSettings(rate=1.0, input_tokens=Lengths(3, 6), output_tokens=Lengths(2, 2), num_requests=200)
    asks = list(plan(settings))
    assert {ask.input_tokens for ask in asks} == {3, 4, 5, 6}
    assert {ask.output_tokens for ask in asks} == {2}
    assert extent(settings).longest == (6, 2)
    assert extent(settings).typical == (4, 2)


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Requests at 10, 12 and 16 s of 1,300, 600 and 100 tokens; the first two share their first block."""
    lines = [
        {"timestamp": 10_000, "input_length": 1300, "output_length": 40, "hash_ids": [7, 8, 9]},
        {"timestamp": 11_000, "input_length": 99, "output_length": 0, "hash_ids": [7]},
        {"timestamp": 12_000, "input_length": 600, "output_length": 20, "hash_ids": [7, 3]},
        {"timestamp": 16_000, "input_length": 100, "output_length": 3, "hash_ids": [5]},
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_a_trace_begins_at_once_and_leaves_out_what_failed(trace: str) -> None:
    asks = list(plan(LoadSettings(trace=trace)))
    assert [(ask.index, ask.at, ask.input_tokens, ask.output_tokens) for ask in asks] == [
        (0, 0.0, 1300, 40),
        (1, 2.0, 600, 20),
        (2, 6.0, 100, 3),
    ]
    assert [ask.blocks for ask in asks] == [(7, 8, 9), (7, 3), (5,)]
    assert {ask.block_tokens for ask in asks} == {512}


def test_fast_forward_divides_the_times(trace: str) -> None:
    assert [ask.at for ask in plan(LoadSettings(trace=trace, fast_forward=4.0))] == [0.0, 0.5, 1.5]


def test_scaling_shrinks_blocks_with_the_lengths(trace: str) -> None:
    asks = list(plan(LoadSettings(trace=trace, length_scale=0.125)))
    assert [(ask.input_tokens, ask.output_tokens, ask.block_tokens) for ask in asks] == [
        (162, 5, 64),
        (75, 2, 64),
        (12, 1, 64),
    ]
    assert [ask.blocks for ask in asks] == [(7, 8, 9), (7, 3), (5,)]


def test_caps_cut_prompts_at_their_end(trace: str) -> None:
    asks = list(plan(LoadSettings(trace=trace, max_input=520, max_output=10)))
    assert [(ask.input_tokens, ask.output_tokens, ask.blocks) for ask in asks] == [
        (520, 10, (7, 8)),
        (520, 10, (7, 3)),
        (100, 3, (5,)),
    ]


def test_a_trace_is_bounded_by_number_and_scaled_duration(trace: str) -> None:
    assert len(list(plan(LoadSettings(trace=trace, num_requests=2)))) == 2
    assert len(list(plan(LoadSettings(trace=trace, duration=1.0, fast_forward=4.0)))) == 2
    assert extent(LoadSettings(trace=trace)).longest == (1300, 40)


def test_a_trace_in_which_everything_failed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n1,x,5,0,5,API log\n")
    with pytest.raises(LoadError, match="no request that was answered"):
        list(plan(LoadSettings(trace=str(path))))
