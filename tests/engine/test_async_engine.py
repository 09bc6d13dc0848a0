"""The engine behind asyncio: many callers, cancellation at any moment, draining, and death."""

import asyncio
import random
import time

import pytest

from headstart import AsyncEngine, SamplingParams
from headstart.errors import HeadstartError, InvalidRequestError

GREEDY = SamplingParams(max_tokens=40, temperature=0)


@pytest.fixture
def engine(stories):
    engine = AsyncEngine.from_model(stories, dtype="float32", page_size=4)
    yield engine
    asyncio.run(engine.shutdown())


async def collect(engine, prompt, params=GREEDY, **rest):
    last = None
    async for output in engine.generate(prompt, params, **rest):
        last = output
    return last


def idle(engine) -> bool:
    engine.engine.store.check()
    stats = engine.stats()
    return stats.num_running == stats.num_waiting == 0 and stats.pages_free + stats.pages_cached == stats.pages_total


def test_concurrent_callers_get_their_own_answers(engine):
    """Thirty callers at once get what each gets alone; deltas add up to the whole."""

    async def main():
        prompts = [f"Once upon a time there {word}" for word in ["was", "were", "lived", "came", "sat", "ran"]] * 5
        alone = [(await collect(engine, prompt)).outputs[0].text for prompt in prompts[:6]]
        together = await asyncio.gather(*(collect(engine, prompt) for prompt in prompts))
        assert [output.outputs[0].text for output in together] == alone * 5
        params = SamplingParams(max_tokens=40, temperature=0, output_kind="delta")
        pieces = [out.outputs[0].text async for out in engine.generate(prompts[0], params)]
        assert "".join(pieces) == alone[0] and len(pieces) > 10
        await engine.drain()
        assert idle(engine)

    asyncio.run(main())


def test_cancelled_callers_free_their_pages(engine):
    """Callers that go away at random moments leave nothing behind, and the others are not disturbed."""
    rng = random.Random(0)

    async def main():
        want = (await collect(engine, "Lily and Tom")).outputs[0].text

        async def fickle(i):
            task = asyncio.create_task(collect(engine, "One day " * rng.randrange(1, 30)))
            await asyncio.sleep(rng.random() * 0.1)
            task.cancel()

        steady = [asyncio.create_task(collect(engine, "Lily and Tom")) for _ in range(4)]
        await asyncio.gather(*(fickle(i) for i in range(40)))
        assert [(await task).outputs[0].text for task in steady] == [want] * 4
        await engine.drain()
        assert idle(engine)

    asyncio.run(main())


def test_abort_ends_a_request_and_says_so(engine):
    """The reader of an aborted request gets a last item with finish_reason abort."""

    async def main():
        outputs = []
        async for output in engine.generate("Once", SamplingParams(max_tokens=400, ignore_eos=True), "mine"):
            outputs.append(output)
            if len(outputs) == 3:
                await engine.abort("mine")
        assert outputs[-1].finished and outputs[-1].outputs[0].finish_reason == "abort"
        assert len(outputs[-1].outputs[0].token_ids) < 400

    asyncio.run(main())


def test_refusals_reach_the_caller(engine):
    """A bad prompt raises at the first item; a draining engine takes nothing new."""

    async def main():
        with pytest.raises(InvalidRequestError, match="vocabulary"):
            await collect(engine, [100000])
        running = asyncio.create_task(collect(engine, "Once"))
        await asyncio.sleep(0.01)
        await engine.drain()
        assert (await running).finished
        with pytest.raises(HeadstartError, match="shutting down"):
            await collect(engine, "Once")

    asyncio.run(main())


def test_a_broken_engine_fails_its_requests(stories):
    """If a step raises, everybody who waits gets one sentence, and so does everybody who comes later."""
    engine = AsyncEngine.from_model(stories, dtype="float32")

    def explode():
        raise RuntimeError("boom")

    async def main():
        engine.engine.step = explode
        for _ in range(2):
            with pytest.raises(HeadstartError, match="boom"):
                await collect(engine, "Once")

    asyncio.run(main())
    assert isinstance(engine.errored, RuntimeError)


def test_nobody_waits_for_an_engine_that_has_ended(stories):
    """Requests that arrive while the last step runs are told too, whether it raises or the engine is shut down."""
    for dies in (True, False):
        engine = AsyncEngine.from_model(stories, dtype="float32")
        step = engine.engine.step

        def slow(step=step, dies=dies):
            time.sleep(0.3)
            if dies:
                raise RuntimeError("boom")
            return step()

        async def main(engine=engine, slow=slow, dies=dies):
            engine.engine.step = slow
            tasks = [asyncio.create_task(collect(engine, "Once"))]
            await asyncio.sleep(0.1)
            tasks += [asyncio.create_task(collect(engine, "Once")) for _ in range(3)]
            await asyncio.sleep(0.05)
            if not dies:
                await engine.shutdown()
            results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
            for result in results:
                ended = not isinstance(result, BaseException) and result.outputs[0].finish_reason == "abort"
                assert isinstance(result, HeadstartError) or ended

        asyncio.run(main())


def test_an_abort_of_a_request_that_is_still_being_read_counts(engine):
    """An abort right after the call ends the request, and a second caller of the same id does not end the first."""

    async def main():
        task = asyncio.create_task(collect(engine, "Once " * 50, request_id="mine"))
        await asyncio.sleep(0)
        await engine.abort("mine")
        assert (await task).outputs[0].finish_reason == "abort"
        params = SamplingParams(max_tokens=100, temperature=0, ignore_eos=True)
        first = asyncio.create_task(collect(engine, "Once", params, request_id="twin"))
        await asyncio.sleep(0.05)
        with pytest.raises(InvalidRequestError, match="twin"):
            await collect(engine, "Once", params, request_id="twin")
        assert (await first).outputs[0].finish_reason == "length"

    asyncio.run(main())
