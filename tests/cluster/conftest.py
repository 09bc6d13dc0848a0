"""Clusters of two small engines, each kind started once, on one event loop."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headstart.checkpoints.writer import save_checkpoint
from headstart.cluster.client import ClusterEngine
from headstart.cluster.disaggregated import DisaggregatedEngine
from headstart.cluster.launch import Disaggregation, start_disaggregated, start_replicas
from headstart.cluster.replicas import ReplicatedEngine
from headstart.engine.args import EngineArgs
from headstart.engine.async_engine import AsyncEngine
from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams
from tests.conformance import models

SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "page_size": 4,
    "num_pages": 128,
    "max_num_seqs": 6,
    "skip_tokenizer_init": True,
}


@dataclass
class Running:
    """A cluster, and the loop on which all of its requests run."""

    engine: Any
    runner: asyncio.Runner

    def ask(
        self, asked: list[tuple[list[int], SamplingParams]], beside: Any = None
    ) -> list[tuple[list[list[int]], str]]:
        """(token ids of each output, the last one's reason) of requests that come at once."""

        async def together() -> list[tuple[list[list[int]], str]]:
            tasks = [asyncio.ensure_future(answer(self.engine, *each)) for each in asked]
            if beside is not None:
                await beside()
            return await asyncio.wait_for(asyncio.gather(*tasks), 120)

        return self.runner.run(together())


async def answer(engine: Any, ids: list[int], params: SamplingParams) -> tuple[list[list[int]], str]:
    """A request's outputs, put together from what was streamed."""
    found: dict[int, list[int]] = {}
    reason = ""
    async for output in engine.generate(ids, params):
        for part in output.outputs:
            before = found.get(part.index, []) if params.output_kind == "delta" else []
            found[part.index] = [*before, *part.token_ids]
            reason = part.finish_reason or reason
    return [found[index] for index in sorted(found)], reason


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suite's plain model as a directory."""
    path = tmp_path_factory.mktemp("model") / "gqa"
    save_checkpoint(models.load("gqa"), path)
    return path


def _running(cluster: ClusterEngine) -> Iterator[Running]:
    with asyncio.Runner() as runner:
        yield Running(cluster, runner)
        runner.run(cluster.shutdown())


@pytest.fixture(scope="session")
def disaggregated(model: Path) -> Iterator[Running]:
    """One engine that reads, one that writes."""
    cluster = start_disaggregated(Disaggregation(1, 1), {**SETTINGS, "model": str(model)})
    assert isinstance(cluster, DisaggregatedEngine)
    yield from _running(cluster)


@pytest.fixture(scope="session")
def replicas(model: Path) -> Iterator[Running]:
    """Two equal engines."""
    cluster = start_replicas(2, {**SETTINGS, "model": str(model)})
    assert isinstance(cluster, ReplicatedEngine)
    yield from _running(cluster)


@pytest.fixture(scope="session")
def alone(model: Path) -> Iterator[Running]:
    """One engine in this process: the reference."""
    with asyncio.Runner() as runner:
        engine = AsyncEngine(Engine(EngineArgs(model=str(model), **SETTINGS)))
        yield Running(engine, runner)
        runner.run(engine.shutdown())
