"""Steps that raise: the request at fault ends alone, everybody else's answer is what it would have been."""

import asyncio
import random

import pytest

from headstart import AsyncEngine, SamplingParams
from headstart.engine.client import RequestFailedError
from headstart.errors import HeadstartError

GREEDY = SamplingParams(max_tokens=30, temperature=0, ignore_eos=True)
POISON = 77


@pytest.fixture(params=[False, True], ids=["step by step", "ahead"])
def engine(stories, request):
    engine = AsyncEngine.from_model(
        stories, dtype="float32", page_size=4, max_num_batched_tokens=24, async_scheduling=request.param
    )
    yield engine
    asyncio.run(engine.shutdown())


async def collect(engine, prompt, params=GREEDY):
    last = None
    async for output in engine.generate(prompt, params):
        last = output
    return last.outputs[0].token_ids


def prompts(count, seed):
    rng = random.Random(seed)
    return [[rng.randrange(100, 400) for _ in range(rng.randrange(1, 60))] for _ in range(count)]


async def survivors(engine, poisoned, healthy):
    """What `healthy` requests get while `poisoned` ones are ended with an error."""
    tasks = [asyncio.create_task(collect(engine, prompt)) for prompt in healthy + poisoned]
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
    assert all(isinstance(result, RequestFailedError) for result in results[len(healthy) :])
    await engine.drain()
    engine.engine.store.check()
    stats = engine.stats()
    assert stats.num_running == stats.num_waiting == 0
    assert stats.pages_free + stats.pages_cached == stats.pages_total
    assert engine.errored is None
    return results[: len(healthy)]


@pytest.mark.parametrize("seed", range(3))
def test_a_request_that_breaks_the_forward_pass(engine, seed):
    """The model raises whenever a poisoned token runs; two such requests among ten."""
    healthy = prompts(8, seed)
    poisoned = [[*prompts(1, 50 + i)[0], POISON, 5] for i in range(2)]

    async def main():
        alone = [await collect(engine, prompt) for prompt in healthy]
        run = engine.engine.runner.run

        def broken(batch):
            assert POISON not in batch.token_ids.tolist(), "poison"
            return run(batch)

        engine.engine.runner.run = broken
        assert await survivors(engine, poisoned, healthy) == alone

    asyncio.run(main())


def test_a_request_whose_tokens_cannot_be_taken(engine):
    """What raises after sampling, in the detokenizer or a grammar, ends its own request in that very step."""
    healthy = prompts(6, 7)
    poisoned = [[POISON, 9, 9]]

    async def main():
        alone = [await collect(engine, prompt) for prompt in healthy]
        append = engine.engine.answers.append

        def broken(sequence, drawn):
            if sequence.tokens[0] == POISON and sequence.num_output == 3:
                raise ValueError("no such character")
            append(sequence, drawn)

        engine.engine.answers.append = broken
        assert await survivors(engine, poisoned, healthy) == alone
        assert engine.stats().preemptions == 0, "nobody else noticed"

    asyncio.run(main())


def test_a_step_that_fails_once_costs_nobody_an_answer(engine):
    """After a fault that does not come again all requests go on, and give the same tokens."""
    healthy = prompts(6, 11)

    async def main():
        alone = [await collect(engine, prompt) for prompt in healthy]
        run, left = engine.engine.runner.run, [25]

        def flaky(batch):
            left[0] -= 1
            if left[0] == 0:
                raise RuntimeError("a bit fell over")
            return run(batch)

        engine.engine.runner.run = flaky
        assert await survivors(engine, [], healthy) == alone
        assert left[0] < 0 and engine.stats().preemptions > 0

    asyncio.run(main())


def test_an_engine_that_cannot_write_a_token_is_dead(engine):
    """When the canary fails too, everybody is told at once."""

    async def main():
        def broken(batch):
            raise RuntimeError("the device is gone")

        engine.engine.runner.run = broken
        tasks = [asyncio.create_task(collect(engine, prompt)) for prompt in prompts(5, 3)]
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
        assert all(isinstance(result, HeadstartError) and "device is gone" in str(result) for result in results)
        assert isinstance(engine.errored, RuntimeError)

    asyncio.run(main())


def test_a_suspect_that_leaves_is_forgotten(engine):
    """Callers may go away while their request is being examined."""

    async def main():
        run = engine.engine.runner.run
        running = engine.engine.planner.running

        def broken(batch):
            assert len(running) < 3, "three are too many"
            return run(batch)

        engine.engine.runner.run = broken
        tasks = [asyncio.create_task(collect(engine, prompt)) for prompt in prompts(6, 5)]
        await asyncio.sleep(0.1)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        assert all(isinstance(result, list | asyncio.CancelledError) for result in results)
        await engine.drain()
        engine.engine.store.check()

    asyncio.run(main())
