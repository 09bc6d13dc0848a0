"""`headstart bench capacity`, as users type it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from headstart.evaluation import ledger


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


SMALL = (
    *("--shape", "tiny", "--requests", "20", "--input-len", "4..16", "--output-len", "2..4", "--steps", "40"),
    *("--max-num-seqs", "4", "--threads", "1"),
)


def test_capacities_and_placements_are_kept(headstart: Callable, tmp_path: Path) -> None:
    """In the ledger, where one is asked for; of random weights and over several links, too."""
    ran = headstart(
        *("bench", "capacity", "--slo", "ttft=30,tbt=5", "--use", "prefill-first", "--use", "fastgen", *SMALL),
        *("--ledger", str(tmp_path), "--key", "capacity-tiny"),
    )
    assert ran.code == 0, ran.err
    ran = headstart(
        *("bench", "placement", "--slo", "ttft=30,tpot=5", "--link", "1KB", "--link", "5GB", *SMALL),
        *("--ledger", str(tmp_path)),
    )
    assert ran.code == 0, ran.err
    assert "over a link of 1KB/s, it does not pay" in ran.out and "does it pay? over a link of 5GB/s" in ran.out
    found = {entry.key: entry for entry in ledger.check(tmp_path)}
    capacity, placement = found["capacity-tiny"], found["placement"]
    assert [row.side for row in capacity.rows] == ["prefill-first", "fastgen"] and len(capacity.ratios) == 1
    assert capacity.model == "random tiny" and {Path(path).name for path in capacity.sources} >= {"fastgen.py"}
    assert {row.side for row in placement.rows} == {"prefill=1,decode=1", "2 x sarathi-serve", "2 x prefill-first"}
    assert any("does it pay?" in note for note in placement.notes)


def test_the_simulator_is_held_against_a_server(headstart: Callable, tmp_path: Path) -> None:
    ran = headstart(
        *("bench", "simulator", *SMALL, "--slo", "ttft=30,tpot=5", "--rates", "20,40,60"),
        *("--ledger", str(tmp_path), "--json"),
    )
    assert ran.code == 0, ran.err
    assert [check["rate"] for check in ran.json["checks"]] == [20, 40, 60]
    for check in ran.json["checks"]:
        assert check["measured"] > 0 and check["simulated"] > 0 and check["met"] == [1.0, 1.0]
        assert check["error"] == pytest.approx(abs(check["simulated"] / check["measured"] - 1))
    (entry,) = ledger.check(tmp_path)
    assert {row.side for row in entry.rows} == {"measured", "simulated"} and "off by at most" in entry.notes[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--rates", "1,x"], "rates are numbers above 0 with commas, as 1,2,4, not '1,x'"),
        (["--use", "lazyllm"], "lazyllm is no scheduler"),
        (["--disaggregate", "prefill=1"], "--disaggregate takes prefill=N,decode=M"),
        (["some/model", "--shape", "tiny"], "a model has its own shape"),
        (["--shape", "llama-9"], "unknown shape 'llama-9'"),
        (["--slo", "ttft=1"], "goodput needs bounds for ttft and tpot"),
    ],
)
def test_bad_input_of_the_simulator_is_one_sentence(headstart: Callable, arguments: list[str], sentence: str) -> None:
    ran = headstart("bench", "simulator", *arguments)
    assert ran.code == 2 and sentence in ran.err and ran.err.count("\n") == 1
