"""The report against plain arithmetic, and merged streams against what was split."""

import random
import statistics
import sys
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.cli.report import Report, peak_memory, seconds
from headstart.cli.stream import follow
from headstart.engine.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput


def request(rng: random.Random) -> RequestOutput:
    prompt = rng.randint(1, 50)
    arrival = rng.uniform(0, 5)
    first = arrival + rng.uniform(0.01, 1)
    outputs = [
        CompletionOutput(i, "x", list(range(rng.randint(1, 9))), finish_reason="length")
        for i in range(rng.randint(1, 3))
    ]
    metrics = RequestMetrics(arrival, arrival, first, first + rng.uniform(0.01, 3))
    return RequestOutput(
        "id",
        "p",
        list(range(prompt)),
        outputs,
        True,
        metrics,
        num_cached_tokens=rng.randint(0, prompt - 1),
        exact=rng.random() < 0.8,
    )


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_report_is_plain_arithmetic(seed: int, count: int) -> None:
    rng = random.Random(seed)
    results = [request(rng) for _ in range(count)]
    report = Report.of(results)
    tokens = [len(output.token_ids) for result in results for output in result.outputs]
    metrics = [result.metrics for result in results]
    firsts = [m.first_token_time or 0 for m in metrics]
    start, end = min(m.arrival_time for m in metrics), max(m.last_token_time or 0 for m in metrics)
    computed = sum(len(r.prompt_token_ids) - r.num_cached_tokens for r in results)
    assert report.requests == count
    assert report.output_tokens == sum(tokens)
    assert report.prompt_tokens - report.cached_tokens == computed
    assert report.time_to_first_token == statistics.median(
        first - m.arrival_time for first, m in zip(firsts, metrics, strict=True)
    )
    assert report.prefill_tokens_per_second == computed / (max(firsts) - start)
    assert report.output_tokens_per_second == sum(tokens) / (end - start)
    after = sum(tokens) - len(tokens)
    assert report.decode_tokens_per_second == (after / (end - min(firsts)) if after else None)
    assert report.exact == all(result.exact for result in results)
    assert str(report.prompt_tokens) in report.line()


def test_a_report_of_nothing_has_no_rates() -> None:
    report = Report.of([])
    assert report.requests == report.output_tokens == 0
    assert report.time_to_first_token is None
    assert report.prefill_tokens_per_second is report.decode_tokens_per_second is None
    assert "0 generated" in report.line()


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_memory()
    held = bytearray(before + 2**24)
    assert peak_memory() >= before + 2**23
    assert len(held) > before


def test_peak_memory_on_windows_is_the_peak_working_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: SimpleNamespace(rss=5, peak_wset=1234))
    assert peak_memory() == 1234


def test_durations_read_well() -> None:
    assert [seconds(s) for s in (0.00081, 0.0353, 1.239)] == ["0.8 ms", "35 ms", "1.24 s"]


@given(st.text(max_size=40), st.integers(0, 2**32), st.booleans())
def test_follow_puts_a_stream_together(text: str, seed: int, with_logprobs: bool) -> None:
    rng = random.Random(seed)
    cuts = sorted(rng.randint(0, len(text)) for _ in range(rng.randint(0, 5)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    ids = [[rng.randint(0, 99) for _ in range(rng.randint(0, 3))] for _ in pieces]

    def delta(index: int) -> RequestOutput:
        last = index == len(pieces) - 1
        logprobs = [{i: Logprob(-1.0, 1, "x")} for i in ids[index]] if with_logprobs else None
        output = CompletionOutput(
            0, pieces[index], ids[index], logprobs=logprobs, finish_reason="length" if last else None
        )
        return RequestOutput("id", "p", [1, 2], [output], last, RequestMetrics(0.0))

    shown: list[str] = []
    whole = follow((delta(i) for i in range(len(pieces))), shown.append)
    assert whole is not None
    assert whole.finished
    assert whole.outputs[0].text == "".join(shown) == text
    assert whole.outputs[0].token_ids == [i for part in ids for i in part]
    assert whole.outputs[0].finish_reason == "length"
    assert len(whole.outputs[0].logprobs or []) == (sum(map(len, ids)) if with_logprobs else 0)
    assert all(shown)


def test_follow_of_nothing_is_none() -> None:
    assert follow(iter(()), lambda _: None) is None
