"""Clusters answer what one engine answers, token for token, whoever dies meanwhile."""

import asyncio
import os
import random
import signal
from collections.abc import Callable
from typing import Any

import pytest

from headstart.cluster.launch import Disaggregation, PlacementError, start_disaggregated, start_replicas
from headstart.cluster.replicas import PrefixRouter
from headstart.engine.params import SamplingParams
from headstart.errors import HeadstartError, InvalidRequestError
from headstart.evaluation.machine import usable_cores
from tests.cluster.conftest import SETTINGS, Running
from tests.conformance import models

pytestmark = pytest.mark.skipif(usable_cores() < 2, reason="two engines need two cores")

Asked = list[tuple[list[int], SamplingParams]]


def _requests(seed: int, count: int = 12) -> Asked:
    """Every kind of stream, drawn and greedy, penalties and log-probabilities, one output and several."""
    rng = random.Random(seed)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0, "output_kind": "delta"},
        {"temperature": 1.0, "output_kind": "delta", "presence_penalty": 1.5},
        {"temperature": 1.0, "output_kind": "cumulative", "n": 2},
        {"temperature": 1.0, "output_kind": "delta", "n": 2, "frequency_penalty": 1.0},
        {"temperature": 1.0, "output_kind": "final", "logprobs": 1},
        {"temperature": 0.0, "output_kind": "delta", "max_tokens": 1},
        {"temperature": 1.0, "output_kind": "final", "best_of": 3, "n": 1},
        {"temperature": 0.0, "output_kind": "final", "prompt_logprobs": 0},
    ]
    made = []
    for number in range(count):
        kind = {"max_tokens": rng.randrange(2, 20), "seed": number, "ignore_eos": number % 2 == 0}
        made.append((models.ids(rng.randrange(1, 60), number), SamplingParams(**(kind | kinds[number % len(kinds)]))))
    return made


@pytest.mark.parametrize("kind", ["disaggregated", "replicas"])
def test_a_cluster_says_what_one_engine_says(kind: str, alone: Running, request: pytest.FixtureRequest) -> None:
    cluster: Running = request.getfixturevalue(kind)
    asked = _requests(0, 24)
    assert cluster.ask(asked) == alone.ask(asked)
    if kind == "disaggregated":
        assert cluster.engine.pulled_tokens > 100, "keys really moved"
    _assert_idle(cluster)


@pytest.mark.parametrize(("kind", "victim"), [("disaggregated", 0), ("disaggregated", 1), ("replicas", 0)])
def test_no_request_is_lost_with_an_engine(
    kind: str, victim: int, alone: Running, request: pytest.FixtureRequest
) -> None:
    """Killed in the middle: every answer is what it would have been, and nothing is said twice."""
    cluster: Running = request.getfixturevalue(kind)
    rng = random.Random(victim)
    asked = [
        (models.ids(20 + number, number), SamplingParams(max_tokens=36, seed=number, ignore_eos=True, output_kind=k))
        for number, k in enumerate(rng.choices(["delta", "cumulative", "final"], k=10))
    ]
    worker = cluster.engine.workers[victim]
    restarts, resumed = worker.restarts, cluster.engine.resumed

    async def kill() -> None:
        await asyncio.sleep(0.02)
        os.kill(worker.pid, signal.SIGKILL)

    assert cluster.ask(asked, beside=kill) == alone.ask(asked)

    async def back() -> None:
        while worker.restarts == restarts or worker.errored is not None:
            await asyncio.sleep(0.02)

    cluster.runner.run(asyncio.wait_for(back(), 120))
    assert cluster.engine.resumed >= resumed
    assert cluster.ask(asked[:3]) == alone.ask(asked[:3])
    _assert_idle(cluster)


def test_aborted_requests_leave_nothing(disaggregated: Running) -> None:
    """Given up by their readers, or by name, at any moment: every page is free or cached in both engines."""
    engine = disaggregated.engine

    async def give_up(number: int) -> None:
        params = SamplingParams(max_tokens=30, ignore_eos=True, output_kind="delta")
        stream = engine.generate(models.ids(40, number), params, f"given-up-{number}")
        taken = 0
        async for _ in stream:
            taken += 1
            if taken > number % 5:
                if number % 2:
                    await engine.abort(f"given-up-{number}")
                else:
                    break
        await stream.aclose()

    async def cancelled(number: int) -> None:
        task = asyncio.ensure_future(give_up(2 * number))
        await asyncio.sleep(0.001 * number)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def all_of_them() -> None:
        await asyncio.gather(
            *(give_up(number) for number in range(10)), *(cancelled(number) for number in range(20, 30))
        )

    disaggregated.runner.run(asyncio.wait_for(all_of_them(), 60))
    _assert_idle(disaggregated)


def _assert_idle(cluster: Running) -> None:
    """No engine holds a page that is not free or cached for reuse."""

    async def settled() -> None:
        for _ in range(400):
            held = [await worker.call("store.holdings") for worker in cluster.engine.workers]
            if not any(pages for each in held for pages, _ in each.values()):
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"pages are still held: {held}")

    cluster.runner.run(settled())


def test_bad_requests_are_refused_as_one_engine_does(disaggregated: Running, replicas: Running) -> None:
    for cluster in (disaggregated, replicas):
        with pytest.raises(InvalidRequestError, match="the prompt is empty"):
            cluster.ask([([], SamplingParams(max_tokens=2))])
        with pytest.raises(InvalidRequestError, match="has token id 999"):
            cluster.ask([([999], SamplingParams(max_tokens=2))])
        _assert_idle(cluster)


def test_the_router_keeps_prefixes_together_and_loads_even() -> None:
    router = PrefixRouter(3)
    first = router.choose(list(range(200)), None, [0, 1, 2])
    router.loads[first] += 2
    assert router.choose([*range(128), *([9] * 80)], None, [0, 1, 2]) == first, "most of it has been read there"
    assert router.choose(list(range(200)), "another salt", [0, 1, 2]) != first
    router.loads[first] += 5
    assert router.choose(list(range(200)), None, [0, 1, 2]) != first, "it has too much to do"
    assert router.choose(list(range(200)), None, [first]) == first, "nobody else lives"
    router.forget(first)
    router.loads[first] = 0
    assert router.choose("abc", None, [0, 1, 2]) in (0, 1, 2)


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        (lambda: Disaggregation.parse("prefill=1"), "--disaggregate takes prefill=N,decode=M, not 'prefill=1'"),
        (lambda: Disaggregation.parse("prefill=1,decode=0"), "both sides need at least 1 engine"),
        (lambda: start_replicas(0, SETTINGS), "a cluster needs at least 1 engine, not 0"),
        (lambda: start_replicas(999, SETTINGS), r"999 engines need 999 cores, and there are \d+; start fewer"),
        (
            lambda: start_disaggregated(Disaggregation(1, 1), SETTINGS | {"enable_prefix_caching": False}),
            "keys migrate by way of the prefix cache",
        ),
        (lambda: start_replicas(2, SETTINGS | {"model": "no/such/model/here"}), "there is no directory"),
        (
            lambda: start_disaggregated(Disaggregation(1, 1), SETTINGS | {"use": ["sarathi"]}),
            "sarathi and distserve both fill the scheduler slot",
        ),
    ],
)
def test_clusters_that_cannot_be(start: Callable[[], object], sentence: str) -> None:
    with pytest.raises(HeadstartError, match=sentence) as refused:
        start()
    assert isinstance(refused.value, HeadstartError) and issubclass(PlacementError, HeadstartError)
