"""Engines as Ray's actors: the same answers, also when one is killed, and what is wrong said in a sentence."""

import asyncio
import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from headstart.cluster import ray_workers
from headstart.cluster.launch import Disaggregation, start_disaggregated, start_replicas
from headstart.engine.params import SamplingParams
from headstart.evaluation.machine import usable_cores
from tests.cluster.conftest import SETTINGS, Running
from tests.conformance import models

needs_ray = pytest.mark.skipif(
    find_spec("ray") is None or usable_cores() < 2, reason="Ray is not installed, or there is one core only"
)
LOCAL = ray_workers.LOCAL


def _asked(count: int) -> list[tuple[list[int], SamplingParams]]:
    kinds = ("delta", "cumulative", "final")
    return [
        (models.ids(12 + n, n), SamplingParams(max_tokens=24, seed=n, ignore_eos=True, output_kind=kinds[n % 3]))
        for n in range(count)
    ]


@needs_ray
def test_no_cluster_at_an_address_is_said() -> None:
    with pytest.raises(ray_workers.RayError, match=r"no Ray cluster answers at 'auto'.*ray start --head"):
        ray_workers.connect("auto")


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """A Ray of this machine alone."""
    ray_workers.connect(LOCAL)
    yield
    import ray

    ray.shutdown()


@needs_ray
@pytest.mark.timeout(280)
def test_actors_answer_as_one_engine_does_and_outlive_a_kill(ray: None, model: Path, alone: Running) -> None:
    """Two actors that read and write apart, one of which dies in the middle."""
    cluster = start_disaggregated(Disaggregation(1, 1), {**SETTINGS, "model": str(model)}, LOCAL)
    with asyncio.Runner() as runner:
        running = Running(cluster, runner)
        assert running.ask(_asked(8)) == alone.ask(_asked(8))
        assert running.engine.pulled_tokens > 0, "keys really moved"
        assert len({worker.pid for worker in running.engine.workers} | {os.getpid()}) == 3

        async def kill() -> None:
            await asyncio.sleep(0.02)
            os.kill(running.engine.workers[1].pid, signal.SIGKILL)

        assert running.ask(_asked(6), beside=kill) == alone.ask(_asked(6))
        runner.run(cluster.shutdown())


@needs_ray
def test_a_cluster_that_is_too_small_is_said(ray: None) -> None:
    with pytest.raises(
        ray_workers.RayError, match=r"99 engines need 99 CPUs, and the Ray cluster has \d+; start fewer"
    ):
        start_replicas(99, SETTINGS, LOCAL)


def test_ray_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_workers, "find_spec", lambda name: None)
    with pytest.raises(ray_workers.RayError, match=r"Ray is not installed: pip install 'headstart\[ray\]'"):
        start_replicas(2, SETTINGS, LOCAL)
