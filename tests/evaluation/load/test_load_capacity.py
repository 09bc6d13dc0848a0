"""The search for the capacity, on servers whose capacity is known."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headstart.evaluation.load.capacity import check_searchable, find_capacity, forecast
from headstart.evaluation.load.result import LoadResult
from headstart.evaluation.load.settings import LoadError, LoadSettings, Slo
from tests.evaluation.load.made_up import record, result

SETTINGS = LoadSettings(slos=(Slo(ttft=1.0),))


class Server:
    """Meets the objective for all requests up to a rate, and above it for a share that falls."""

    def __init__(self, capacity: float, alone: float = 0.5, **end: Any) -> None:
        self.capacity, self.alone, self.end = capacity, alone, end
        self.loads: list[LoadSettings] = []

    def __call__(self, settings: LoadSettings, url: str, *, hopeless: Any, **_: Any) -> LoadResult:
        self.loads.append(settings)
        rate = settings.rate or 1 / self.alone
        number = settings.num_requests or 0
        good = number if rate <= self.capacity else round(number * max(0.0, 0.89 - 0.1 * (rate / self.capacity - 1)))
        records = []
        for index in range(number):
            late = (index * 7) % number >= good
            records.append(record(index, first=5.0 if late else 0.5))
            if hopeless(records[-1]):
                break
        return result(records, settings=replace(settings, rate=rate), **self.end)


@pytest.mark.parametrize("capacity", [0.4, 1.0, 3.3, 7.9, 60.0])
@pytest.mark.parametrize("start", [None, 0.5, 5.0])
def test_the_search_ends_within_a_tenth_of_the_capacity(capacity: float, start: float | None) -> None:
    server = Server(capacity)
    found = find_capacity(replace(SETTINGS, rate=start), "http://x", run=server)
    assert found.rate <= capacity * 1.0001
    assert found.bound is not None and found.bound > capacity
    assert len(found.loads) == len(found.met) == len(server.loads) <= 9
    if len(server.loads) < 9:
        assert found.bound / found.rate <= 1.1
    for load, met in zip(found.loads, found.met, strict=True):
        assert met == ((load.settings.rate or 0) <= capacity)


def test_every_load_has_requests_of_its_own() -> None:
    server = Server(3.0)
    find_capacity(SETTINGS, "http://x", run=server)
    assert len({load.seed for load in server.loads}) == len(server.loads)


def test_loads_last_as_long_as_asked_but_have_enough_requests() -> None:
    server = Server(30.0)
    find_capacity(replace(SETTINGS, rate=0.1, duration=10.0), "http://x", run=server)
    for load in server.loads:
        assert load.num_requests == max(20, math.ceil(10 * (load.rate or 0)))
    server = Server(30.0)
    find_capacity(replace(SETTINGS, num_requests=33), "http://x", run=server)
    assert {load.num_requests for load in server.loads} == {33}


def test_a_load_that_misses_ends_as_soon_as_that_is_certain() -> None:
    found = find_capacity(replace(SETTINGS, rate=100.0, num_requests=50), "http://x", run=Server(1.0))
    missed = [load for load, met in zip(found.loads, found.met, strict=True) if not met]
    assert all(len(load.records) < 50 for load in missed)


def test_nothing_meets_an_objective_that_is_out_of_reach() -> None:
    found = find_capacity(SETTINGS, "http://x", run=Server(1e-9))
    assert (found.rate, found.met) == (0.0, [False] * 9)


def test_a_search_ends_with_its_server_or_by_a_signal(tmp_path: Path) -> None:
    for end in ({"alive": False, "partial": "the server is gone"}, {"ended_by": 2, "partial": "Ctrl-C"}):
        found = find_capacity(SETTINGS, "http://x", run=Server(3.0, **end), directory=tmp_path)
        assert found.partial == end["partial"]
        assert found.loads == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (LoadSettings(), "needs an SLO"),
        (LoadSettings(slos=(Slo(itl=0.1),)), "growing queue"),
        (LoadSettings(slos=(Slo(ttft=1.0),), users=3), "leave out users"),
        (LoadSettings(slos=(Slo(ttft=1.0),), trace="t"), "leave out users and trace"),
    ],
)
def test_a_search_without_an_end_is_refused(settings: LoadSettings, says: str) -> None:
    with pytest.raises(LoadError, match=says):
        check_searchable(settings)
    with pytest.raises(LoadError, match=says):
        find_capacity(settings, "http://x", run=Server(1.0))


def test_it_says_how_long_it_takes() -> None:
    assert "9 loads of 20 s" in forecast(SETTINGS)
    assert "40 requests" in forecast(replace(SETTINGS, num_requests=40))
