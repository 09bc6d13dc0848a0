"""The engine in a process of its own: the same answers, errors at once when it dies, and it comes back."""

import asyncio
import os
import signal
import time
from functools import partial

import pytest

from headstart import AsyncEngine, SamplingParams
from headstart.engine.client import EngineDeadError
from headstart.engine.params import StructuredOutputs
from headstart.engine.process import ProcessEngine
from headstart.errors import CheckpointError, HeadstartError, InvalidRequestError

GREEDY = SamplingParams(max_tokens=30, temperature=0, ignore_eos=True)
LONG = SamplingParams(max_tokens=480, temperature=0, ignore_eos=True, output_kind="delta")


@pytest.fixture(scope="module")
def engine(stories):
    engine = ProcessEngine.from_model(stories, dtype="float32", page_size=4)
    yield engine
    asyncio.run(engine.shutdown())
    assert engine._child.ending == "with status 0"


async def collect(engine, prompt, params=GREEDY, **rest):
    last = None
    async for output in engine.generate(prompt, params, **rest):
        last = output
    return last


async def until(condition, seconds=60):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def test_everything_an_output_tells_is_the_same_as_in_process(stories, engine):
    """Text and id prompts, log-probabilities, grammars and several outputs, field by field."""
    local = AsyncEngine.from_model(stories, dtype="float32", page_size=4)
    asked = [
        ("Once upon a time", GREEDY),
        ([1, 300, 301, 302], SamplingParams(max_tokens=5, temperature=0, logprobs=2, prompt_logprobs=1)),
        ({"prompt": "Lily " * 1500}, SamplingParams(max_tokens=3, temperature=0)),
        ({"prompt_token_ids": [1, 320]}, SamplingParams(max_tokens=6, n=3, seed=5)),
        ("Tom", SamplingParams(max_tokens=20, structured_outputs=StructuredOutputs(regex="[a-c]{5}"), seed=1)),
    ]

    async def main():
        for prompt, params in asked:
            try:
                want = await collect(local, prompt, params, request_id="same")
            except InvalidRequestError as refusal:
                with pytest.raises(InvalidRequestError, match=str(refusal)[:40]) as caught:
                    await collect(engine, prompt, params)
                assert caught.value.param == refusal.param
                continue
            got = await collect(engine, prompt, params, request_id="same")
            for field in ("request_id", "prompt", "prompt_token_ids", "outputs", "finished", "exact"):
                assert getattr(got, field) == getattr(want, field), field
            assert (got.prompt_logprobs is None) == (want.prompt_logprobs is None)
            assert got.metrics.time_to_first_token > 0
        assert (engine.model_name, engine.max_model_len, engine.exact) == (
            local.model_name,
            local.max_model_len,
            local.exact,
        )
        assert engine.generation_config == local.generation_config
        assert engine.encode("A day") == local.encode("A day")
        assert (await engine.look())["pages"]["total"] == engine.stats().pages_total
        await local.shutdown()

    asyncio.run(main())


def test_leaving_ends_a_request_in_the_other_process(engine):
    async def main():
        before = engine.stats().finished.get("abort", 0)
        tasks = [asyncio.create_task(collect(engine, "Once", LONG)) for _ in range(8)]
        await until(lambda: engine.stats().num_running == 8)
        for task in tasks:
            task.cancel()
        await until(lambda: engine.stats().num_running == 0)
        assert engine.stats().finished["abort"] == before + 8
        stats = engine.stats()
        assert stats.pages_free + stats.pages_cached == stats.pages_total
        task = asyncio.create_task(collect(engine, "Once", LONG, request_id="mine"))
        await until(lambda: engine.stats().num_running == 1)
        with pytest.raises(InvalidRequestError, match="mine"):
            await collect(engine, "Once", LONG, request_id="mine")
        await engine.abort("mine")
        assert (await task).outputs[0].finish_reason == "abort"

    asyncio.run(main())


def test_killed_in_the_middle_of_32_streams_it_fails_them_and_comes_back(engine):
    async def main():
        want = (await collect(engine, "Once")).outputs
        tasks = [asyncio.create_task(collect(engine, f"Once {i}", LONG)) for i in range(32)]
        await until(lambda: engine.stats().num_running == 32)
        asking = asyncio.create_task(engine.call("stats"))
        restarts = engine.restarts
        os.kill(engine.pid, signal.SIGKILL)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, EngineDeadError) for result in results)
        assert engine.restarts == restarts, "they were told before anything was started again"
        with pytest.raises(EngineDeadError, match="started again"):
            await collect(engine, "Once")
        await asyncio.gather(asking, return_exceptions=True)
        assert engine.errored is not None and engine.restarting
        await until(lambda: engine.errored is None)
        assert engine.restarts == restarts + 1
        assert (await collect(engine, "Once")).outputs == want

    asyncio.run(main())


def test_what_cannot_start_says_why(tmp_path):
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        ProcessEngine.from_model(str(tmp_path))
    with pytest.raises(HeadstartError, match="page_size"):
        ProcessEngine.from_model(page_size=0)


def test_a_broken_engine_is_started_again(stories):
    """An error that stops the engine's loop ends its process, with the reason in the error."""
    engine = ProcessEngine.from_model(stories, dtype="float32", page_size=4)

    async def main():
        await engine.call("__setattr__", "step", None)
        with pytest.raises(EngineDeadError):
            await asyncio.wait_for(collect(engine, "Once"), 30)
        await until(lambda: engine.restarts == 1)
        assert (await collect(engine, "Once")).finished
        await engine.shutdown()
        with pytest.raises(HeadstartError, match="shutting down"):
            await collect(engine, "Once")

    asyncio.run(main())


class Hang:
    """Becomes, on its way to the engine's process, a step that does not end."""

    def __reduce__(self):
        return partial, (time.sleep, 1000)


def test_an_engine_that_hangs_is_started_again(stories, capfd):
    engine = ProcessEngine.from_model(stories, dtype="float32", step_timeout=2.0)
    try:

        async def main():
            assert (await collect(engine, "Once", GREEDY)).finished
            await asyncio.sleep(3)
            assert engine.restarts == 0, "an engine that has nothing to do does not hang"
            await engine.call("__setattr__", "step", Hang())
            with pytest.raises(EngineDeadError):
                await collect(engine, "Once", GREEDY)
            await until(lambda: engine.restarts == 1)
            assert (await collect(engine, "Once", GREEDY)).finished

        asyncio.run(main())
    finally:
        asyncio.run(engine.shutdown())
    said = capfd.readouterr().err
    assert "in _step" in said and "loop.py" in said, "where it hung"


def test_a_deadline_that_cannot_be_is_refused(stories):
    with pytest.raises(HeadstartError, match="above 0"):
        ProcessEngine.from_model(stories, step_timeout=0.0)
