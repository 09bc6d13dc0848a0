"""Merged streams and abandoned work: everything comes, everything is closed."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message

from headstart.server.errors import ApiError, ClientGone
from headstart.server.streams import begin, merge, unless_gone


class Source:
    """A stream of `length` numbers that waits now and then, and remembers that it was closed."""

    def __init__(self, length: int, rng: random.Random, fails: bool = False) -> None:
        self.length, self.rng, self.fails = length, rng, fails
        self.opened = self.closed = 0

    async def stream(self) -> AsyncGenerator[int, None]:
        self.opened += 1
        try:
            for number in range(self.length):
                await asyncio.sleep(self.rng.choice([0, 0, 0.0005]))
                yield number
            if self.fails:
                raise ValueError("broken")
        finally:
            self.closed += 1


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    failing=st.none() | st.integers(0, 4),
    leave_after=st.none() | st.integers(0, 8),
    seed=st.integers(0, 2**32),
)
def test_merge(lengths: list[int], failing: int | None, leave_after: int | None, seed: int) -> None:
    rng = random.Random(seed)
    sources = [Source(length, rng, fails=index == failing) for index, length in enumerate(lengths)]
    received: list[list[int]] = [[] for _ in sources]

    async def consume() -> None:
        count = 0
        async with aclosing(merge([source.stream() for source in sources])) as merged:
            async for index, number in merged:
                received[index].append(number)
                count += 1
                if count == leave_after:
                    return

    broken = failing is not None and failing < len(sources)
    if broken and leave_after is None:
        with pytest.raises(ValueError, match="broken"):
            asyncio.run(consume())
    else:
        try:
            asyncio.run(consume())
        except ValueError:
            assert broken
        if leave_after is None:
            assert [len(numbers) for numbers in received] == lengths
    assert all(numbers == list(range(len(numbers))) for numbers in received)
    assert all(source.opened == source.closed for source in sources)


async def silent() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def hanging_up() -> Message:
    await asyncio.sleep(0)
    return {"type": "http.disconnect"}


def test_work_ends_with_its_client_or_the_server() -> None:
    async def scenario() -> None:
        source = Source(100, random.Random(0))
        closing = asyncio.Event()

        async def work() -> int:
            async with aclosing(source.stream()) as stream:
                return sum([number async for number in stream])

        assert await unless_gone(silent, closing, work()) == sum(range(100))
        with pytest.raises(ClientGone):
            await unless_gone(hanging_up, closing, work())
        closing.set()
        with pytest.raises(ApiError, match="shut down"):
            await unless_gone(silent, closing, work())
        assert source.opened == source.closed == 3

    asyncio.run(scenario())


def test_a_begun_stream_loses_nothing_and_closes_unread() -> None:
    async def scenario() -> None:
        closing = asyncio.Event()
        read = Source(5, random.Random(0))
        begun = await begin(read.stream(), silent, closing)
        assert [number async for number in begun] == list(range(5))
        unread = Source(5, random.Random(0))
        await (await begin(unread.stream(), silent, closing)).aclose()
        refused = Source(0, random.Random(0), fails=True)
        with pytest.raises(ValueError, match="broken"):
            await begin(refused.stream(), silent, closing)
        for source in (read, unread, refused):
            assert source.opened == source.closed == 1

    asyncio.run(scenario())
