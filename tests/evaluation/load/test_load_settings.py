"""Settings of a load: what is understood, and the sentence for what is not."""

from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.evaluation.load.settings import Lengths, LoadError, LoadSettings, Slo


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("ttft=0.5", {"ttft": 0.5}),
        ("ttft=.5,itl=100ms", {"ttft": 0.5, "itl": 0.1}),
        (" tpot = 20 ms , e2e = 3s", {"tpot": 0.02, "e2e": 3.0}),
    ],
)
def test_an_slo_is_seconds_or_names_its_unit(text: str, bounds: dict[str, float]) -> None:
    slo = Slo.parse(text)
    assert slo.bounds == bounds
    assert Slo.parse(str(slo)) == slo


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tftt=1", "did you mean 'ttft'"),
        ("ttft", "must be a time such as"),
        ("ttft=fast", "not 'fast'"),
        ("ttft=-1", "not '-1'"),
        ("ttft=0", "above 0"),
        ("", "no bound ''"),
    ],
)
def test_an_slo_that_is_none_gets_a_sentence(text: str, says: str) -> None:
    with pytest.raises(LoadError, match=says):
        Slo.parse(text)


@pytest.mark.parametrize(("text", "lengths"), [("256", Lengths(256, 256)), ("64..512", Lengths(64, 512))])
def test_lengths_are_a_number_or_a_range(text: str, lengths: Lengths) -> None:
    assert Lengths.parse(text) == lengths
    assert str(lengths) == text


@pytest.mark.parametrize("text", ["", "many", "0", "9..3", "1...3", "-4", "1.5"])
def test_lengths_that_are_none_get_a_sentence(text: str) -> None:
    with pytest.raises(LoadError, match="length"):
        Lengths.parse(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"rate": 1.0, "users": 2},
        {"users": 1, "trace": "x"},
        {"rate": 0.0},
        {"rate": float("nan")},
        {"rate": float("inf")},
        {"duration": -1.0},
        {"users": 0},
        {"num_requests": 0},
        {"warmup": 0},
        {"fast_forward": 0.0},
        {"length_scale": -1.0},
        {"max_input": 0},
        {"cv": -0.1},
        {"cv": float("nan")},
        {"seed": -1},
        {"text": True, "vocab": 100},
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(LoadError):
        LoadSettings(**changes)


@hypothesis.settings(max_examples=40, deadline=None)
@given(
    rate=st.none() | st.floats(0.01, 100),
    low=st.integers(1, 100),
    more=st.integers(0, 100),
    bound=st.floats(0.001, 10),
    probe=st.booleans(),
)
def test_settings_come_back_from_json(rate: float | None, low: int, more: int, bound: float, probe: bool) -> None:
    settings = LoadSettings(
        rate=rate, input_tokens=Lengths(low, low + more), slos=(Slo(ttft=bound), Slo(itl=bound)), probe=probe
    )
    assert LoadSettings.from_json(settings.to_json()) == settings


def test_without_a_number_or_a_duration_a_load_ends_by_itself() -> None:
    assert LoadSettings(rate=1.0).most_requests == 100
    assert LoadSettings(rate=1.0).last_arrival == 120
    assert LoadSettings(trace="x").most_requests is None
    assert LoadSettings(trace="x").last_arrival == 60
    assert LoadSettings(rate=1.0, duration=5.0).most_requests is None
    assert LoadSettings(rate=1.0, num_requests=7).last_arrival is None
