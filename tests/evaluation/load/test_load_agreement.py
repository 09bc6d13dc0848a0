"""Comparing with the server's own counters."""

import pytest

from headstart.evaluation.load.agreement import compare, counters
from tests.evaluation.load.made_up import record

METRICS = """# HELP headstart:prompt_tokens_total Prompt tokens processed.
# TYPE headstart:prompt_tokens_total counter
headstart:prompt_tokens_total{model_name="m"} 20.0
headstart:prompt_tokens_total{model_name="n"} 12.0
# TYPE headstart:time_to_first_token_seconds histogram
headstart:time_to_first_token_seconds_bucket{le="+Inf",model_name="m"} 3.0
headstart:time_to_first_token_seconds_count{model_name="m"} 3.0
headstart:time_to_first_token_seconds_sum{model_name="m"} 1.5
# TYPE process_open_fds gauge
process_open_fds 11.0
"""


def test_counters_are_added_up_over_their_labels() -> None:
    expected = {
        "prompt_tokens_total": 32.0,
        "time_to_first_token_seconds_count": 3.0,
        "time_to_first_token_seconds_sum": 1.5,
    }
    assert counters(METRICS) == expected
    assert counters(METRICS.replace("headstart:", "vllm:")) == expected
    assert counters("<html>not found</html>") == {}


BEFORE = {"prompt_tokens_total": 100.0, "e2e_request_latency_seconds_sum": 7.0}
AFTER = {
    "e2e_request_latency_seconds_count": 2.0,
    "e2e_request_latency_seconds_sum": 8.8,
    "prompt_tokens_total": 116.0,
    "generation_tokens_total": 10.0,
    "time_to_first_token_seconds_count": 2.0,
    "time_to_first_token_seconds_sum": 0.99,
    "inter_token_latency_seconds_count": 8.0,
    "inter_token_latency_seconds_sum": 0.8,
}


def answered(number: int) -> list:
    return [record(index, prompt_tokens=8, completion_tokens=5, cached_tokens=0) for index in range(number)]


def test_equal_counts_and_near_durations_agree() -> None:
    found = compare(answered(2), BEFORE, AFTER)
    assert [item.name for item in found] == [
        "requests answered",
        "prompt tokens",
        "generated tokens",
        "sending to first token, mean",
        "sending to last token, mean",
        "between tokens, mean",
    ]
    assert all(item.agrees for item in found)
    assert [item.server for item in found] == pytest.approx([2, 16, 10, 0.495, 0.9, 0.1])


def test_a_server_that_others_use_too_does_not_agree() -> None:
    found = {item.name: item for item in compare(answered(2), BEFORE, {**AFTER, "prompt_tokens_total": 117.0})}
    assert not found["prompt tokens"].agrees
    assert found["generated tokens"].agrees


def test_what_was_cut_off_may_have_gone_on_in_the_server() -> None:
    """Of the cut request two of five tokens had arrived: the server may count up to three more, but not four."""
    cut = record(9, kind="probe", status="cut", gaps=[0.1], cached_tokens=None)
    for extra, agrees in ((2, True), (5, True), (6, False), (1, False)):
        found = compare([*answered(2), cut], BEFORE, {**AFTER, "generation_tokens_total": 10.0 + extra})
        assert {item.name: item.agrees for item in found}["generated tokens"] is agrees


def test_servers_without_counters_are_not_compared() -> None:
    assert compare(answered(2), {}, {}) == []
    without_usage = [record(index) for index in range(2)]
    names = {item.name for item in compare(without_usage, BEFORE, AFTER)}
    assert "prompt tokens" not in names
    assert "requests answered" in names
