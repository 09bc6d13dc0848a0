"""`headstart bench capacity`, as users type it."""

from collections.abc import Callable

import pytest


def test_capacities_are_simulated_from_measured_steps(headstart: Callable) -> None:
    ran = headstart(
        *("bench", "capacity", "--slo", "ttft=30,tbt=5", "--use", "sarathi-serve", "--use", "prefill-first"),
        *("--requests", "20", "--input-len", "4..16", "--output-len", "2..4", "--steps", "40", "--threads", "1"),
        *("--max-num-batched-tokens", "32", "--max-num-seqs", "4", "--json"),
    )
    assert ran.code == 0, ran.err
    assert set(ran.json["schedulers"]) == {"sarathi-serve", "prefill-first"}
    for both in ran.json["schedulers"].values():
        assert both["simulated"]["rate"] > 0 and "requests per second" in both["simulated"]["sentence"]
    assert ran.json["cost"]["median_error"] >= 0 and "off by" in ran.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--slo", "ttft=1"], "a capacity needs targets for both ttft and tbt"),
        (["--use", "lazyllm"], "lazyllm is no scheduler"),
        (["--requests", "3"], "has 3 requests; a 99th percentile needs at least 20"),
        (["--trace", "missing.csv"], "the trace missing.csv cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(headstart: Callable, arguments: list[str], sentence: str) -> None:
    ran = headstart("bench", "capacity", *arguments)
    assert ran.code == 2 and sentence in ran.err and ran.err.count("\n") == 1


def test_a_placement_is_chosen_and_the_verdict_said(headstart: Callable) -> None:
    ran = headstart(
        *("bench", "placement", "--slo", "ttft=30,tpot=5", "--requests", "20", "--input-len", "4..16"),
        *("--output-len", "2..4", "--steps", "40", "--max-num-seqs", "4"),
    )
    assert ran.code == 0, ran.err
    assert "prefill=1,decode=1" in ran.out and "2 x sarathi-serve" in ran.out and "pay" in ran.out


def test_goodput_needs_its_two_bounds(headstart: Callable) -> None:
    ran = headstart("bench", "placement", "--slo", "ttft=1,itl=1")
    assert ran.code == 2 and "goodput needs bounds for ttft and tpot" in ran.err
