"""Percentiles, goodput and the probe's figures, against their definitions written out."""

import math

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.evaluation.load.figures import Distribution, goodput, summarize
from headstart.evaluation.load.records import RequestRecord
from headstart.evaluation.load.result import to_rows
from headstart.evaluation.load.settings import LoadSettings, Slo
from tests.evaluation.load.made_up import record, result

durations = st.floats(0, 100, allow_nan=False)


def naive_percentile(values: list[float], share: float) -> float:
    """Linear between the two neighbours in the sorted list."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@hypothesis.settings(max_examples=40, deadline=None)
@given(st.lists(durations, min_size=1, max_size=50))
def test_percentiles_are_linear_between_neighbours(values: list[float]) -> None:
    found = Distribution.of([*values, None])
    assert found is not None
    assert found.count == len(values)
    assert found.mean == pytest.approx(sum(values) / len(values))
    assert found.max == max(values)
    for share, value in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99)):
        assert value == pytest.approx(naive_percentile(values, share))


def test_nothing_has_no_percentiles() -> None:
    assert Distribution.of([]) is None
    assert Distribution.of([None]) is None


statuses = st.sampled_from(["ok", "ok", "ok", "refused", "failed", "broken", "timeout", "cut"])


@st.composite
def records(draw: st.DrawFn) -> list[RequestRecord]:
    made = []
    for index in range(draw(st.integers(1, 15))):
        at = draw(st.floats(0, 10))
        gaps = draw(st.lists(st.floats(0, 1), max_size=6))
        first = None if draw(st.booleans()) else at + draw(st.floats(0, 2))
        made.append(
            record(
                index,
                at=at,
                first=first,
                gaps=gaps if first is not None else [],
                status=draw(statuses) if first is not None else "broken",
                end=at + 9,
            )
        )
    return made


@hypothesis.settings(max_examples=40, deadline=None)
@given(records(), st.floats(0.01, 3), st.floats(0.01, 1), st.floats(0.01, 5))
def test_goodput_counts_requests_that_meet_every_bound(
    made: list[RequestRecord], ttft: float, itl: float, e2e: float
) -> None:
    expected = 0
    for item in made:
        if item.status != "ok" or item.first is None:
            continue
        quick = item.first - item.at <= ttft
        smooth = not item.gaps or naive_percentile(item.gaps, 0.99) <= itl + 1e-12
        soon = item.first + sum(item.gaps) - item.at <= e2e
        expected += quick and smooth and soon
    found = goodput(made, Slo(ttft=ttft, itl=itl, e2e=e2e), 4.0)
    assert found.share == expected / len(made)
    assert found.per_second == expected / 4.0


@hypothesis.settings(max_examples=40, deadline=None)
@given(records())
def test_a_summary_adds_up(made: list[RequestRecord]) -> None:
    summary = summarize(made, [Slo(ttft=1.0)])
    good = [item for item in made if item.status == "ok"]
    assert summary.asked == len(made) == sum(summary.outcomes.values())
    assert summary.answered == len(good)
    assert summary.seconds == max(item.end for item in made)
    assert summary.request_rate * summary.seconds == pytest.approx(len(good))
    gaps = [gap for item in good for gap in item.gaps]
    assert (summary.itl.count if summary.itl else 0) == len(gaps)
    assert summary.input_rate * summary.seconds == pytest.approx(8 * len(good))
    tokens = sum(1 + len(item.gaps) for item in made if item.first is not None)
    assert summary.output_rate * summary.seconds == pytest.approx(tokens)


def test_latencies_count_from_the_intended_arrival() -> None:
    late = record(at=1.0, sent=3.0, first=3.5, gaps=[0.5, 1.0])
    assert (late.ttft, late.e2e, late.tpot, late.last) == (2.5, 4.0, 0.75, 5.0)


def test_tokens_that_came_together_count_for_the_time_per_token() -> None:
    """Three events brought seven tokens: the gaps are between events, the time per token is over six."""
    item = record(first=1.0, gaps=[0.3, 0.3], completion_tokens=7)
    assert item.tpot == pytest.approx(0.1)
    assert item.output_tokens == 7


def test_a_single_token_has_no_time_per_token() -> None:
    item = record(gaps=[], completion_tokens=1)
    assert item.tpot is None
    assert item.meets(Slo(tpot=0.001, itl=0.001))


def test_refusals_are_told_apart_by_their_status() -> None:
    made = [record(0), record(1, status="refused", http_status=429), record(2, status="refused", http_status=503)]
    assert summarize(made, []).outcomes == {"ok": 1, "HTTP 429": 1, "HTTP 503": 1}


def test_cached_tokens_and_queue_times_are_those_of_servers_that_tell() -> None:
    told = [record(0, prompt_tokens=10, cached_tokens=4, queue=0.5), record(1, prompt_tokens=10, cached_tokens=0)]
    summary = summarize(told, [])
    assert summary.cached_share == 0.2
    assert summary.queue is not None and summary.queue.count == 1
    assert summarize([record()], []).cached_share is None
    assert summarize([record()], []).queue is None


def test_the_probe_is_split_at_the_loads_begin_and_end() -> None:
    probe = record(kind="probe", first=-0.5, gaps=[0.1, 0.2, 0.3, 2.0, 0.4, 9.0], status="cut")
    # The gaps end at -0.4, -0.2, 0.1, 2.1, 2.5 and 11.5; the load ends at 2.2.
    summary = summarize([probe, record(end=2.2)], [])
    assert summary.probe is not None and summary.probe.alone is not None and summary.probe.loaded is not None
    assert (summary.probe.alone.count, summary.probe.alone.max) == (2, 0.2)
    assert (summary.probe.loaded.count, summary.probe.loaded.max) == (3, 2.0)
    assert summary.asked == 1
    assert summarize([record()], []).probe is None


def test_an_empty_load_has_figures_too() -> None:
    summary = summarize([], [Slo(ttft=1.0)])
    assert (summary.asked, summary.request_rate, summary.goodput[0].share) == (0, 0.0, 0.0)


def test_rows_hold_a_value_per_repeat_and_what_all_have_measured() -> None:
    settings = LoadSettings(rate=1.0, slos=(Slo(ttft=0.5),))
    loads = [
        result([record(0, first=first), record(1, first=first, queue=queue)], settings=settings)
        for first, queue in ((0.4, 0.1), (0.6, None))
    ]
    rows = {row.name: row for row in to_rows(loads, "ours")}
    assert rows["TTFT p50"].values == pytest.approx([0.4, 0.6])
    assert rows["TTFT p50"].side == "ours"
    assert not rows["TTFT p99"].higher_is_better
    assert rows["goodput at ttft=0.5"].values == pytest.approx([2.0, 0.0])
    assert rows["goodput at ttft=0.5"].higher_is_better
    assert "queue time p50" not in rows
    assert "probe gap max" not in rows
    assert [row.name for row in loads[0].to_rows("ours")] != []
