"""What callers see: outputs that nobody has fetched come as one, and nothing of them is lost."""

import asyncio
import random

import pytest

from headstart import AsyncEngine, SamplingParams
from headstart.engine.client import OutputStream, RequestFailedError
from headstart.engine.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput


def delta(pieces, finished=False):
    outputs = [
        CompletionOutput(index, text, ids, logprobs=[{i: Logprob(-1.0, 1, "")} for i in ids], finish_reason=reason)
        for index, text, ids, reason in pieces
    ]
    return RequestOutput("r", None, [1], outputs, finished, RequestMetrics(0.0))


@pytest.mark.parametrize("seed", range(20))
def test_unread_deltas_are_joined_without_loss(seed):
    """Random deltas of three outputs, read at random moments, add up to the same texts, ids and log-probabilities."""
    rng = random.Random(seed)

    async def main():
        stream = OutputStream(deltas=True)
        sent = {index: ("", []) for index in range(3)}
        got = {index: ("", [], 0) for index in range(3)}
        reads = 0

        async def read():
            nonlocal reads
            item = await stream.get()
            reads += 1
            assert isinstance(item, RequestOutput)
            for output in item.outputs:
                text, ids, logprobs = got[output.index]
                got[output.index] = (text + output.text, ids + output.token_ids, logprobs + len(output.logprobs or []))
                assert [next(iter(entry)) for entry in output.logprobs or []] == output.token_ids
            return item.finished

        rounds = 40
        unread = False
        for round_ in range(rounds):
            pieces = []
            for index in rng.sample(range(3), rng.randrange(1, 4)):
                ids = [rng.randrange(1000) for _ in range(rng.randrange(3))]
                text = "".join(map(chr, (97 + i % 26 for i in ids)))
                sent[index] = (sent[index][0] + text, sent[index][1] + ids)
                pieces.append((index, text, ids, None))
            stream.add(delta(pieces, finished=round_ == rounds - 1))
            unread = True
            if rng.random() < 0.3:
                await read()
                unread = False
        if unread:
            assert await read()
        assert {index: (text, ids) for index, (text, ids, _) in got.items()} == sent
        assert all(count == len(ids) for _, ids, count in got.values())
        assert reads <= rounds

    asyncio.run(main())


def test_an_error_comes_after_what_was_written_before_it():
    async def main():
        stream = OutputStream(deltas=True)
        stream.add(delta([(0, "a", [1], None)]))
        stream.add(delta([(0, "b", [2], None)]))
        stream.add(RequestFailedError("no"))
        first = await stream.get()
        assert isinstance(first, RequestOutput) and first.outputs[0].text == "ab"
        assert isinstance(await stream.get(), RequestFailedError)

    asyncio.run(main())


def test_a_reader_that_sleeps_keeps_one_output(stories):
    """While nobody reads, the engine goes on and what it writes stays one item."""
    engine = AsyncEngine.from_model(stories, dtype="float32")
    params = SamplingParams(max_tokens=200, temperature=0, ignore_eos=True, output_kind="delta")

    async def main():
        want = [
            out async for out in engine.generate("Once", SamplingParams(max_tokens=200, temperature=0, ignore_eos=True))
        ]
        pieces = []
        async for output in engine.generate("Once", params):
            pieces.append(output.outputs[0])
            while not output.finished and engine.stats().num_running:
                await asyncio.sleep(0.01)
        assert len(pieces) < 20
        assert "".join(piece.text for piece in pieces) == want[-1].outputs[0].text
        assert [token for piece in pieces for token in piece.token_ids] == want[-1].outputs[0].token_ids
        await engine.shutdown()

    asyncio.run(main())
