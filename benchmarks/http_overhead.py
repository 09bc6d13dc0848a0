"""What HTTP and the second process cost: the server beside the engine in this process, in turns.

    python benchmarks/http_overhead.py --model DIR --out overhead.json

The same greedy streams run on an engine in this process and on `headstart serve`, round by round in turns: tokens per
second of many streams at once, and time to first token of one request alone. Then a thousand streams wait in the
server's line, and its memory is compared with what it was before.
"""

import argparse
import asyncio
import json
import math
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import torch

from headstart.checkpoints.default import default_checkpoint_path
from headstart.engine.async_engine import AsyncEngine
from headstart.engine.params import SamplingParams
from headstart.evaluation.load.client import Client
from headstart.evaluation.load.served import ServedModel
from headstart.evaluation.script_result import write_result

STREAMS, TOKENS, PROMPT = 32, 256, 32
SINGLES = 30
IDLE = 1000

# Runs one stream of so many tokens on a prompt; returns seconds to its first token.
Stream = Callable[[list[int], int], Awaitable[float]]


def prompt(number: int) -> list[int]:
    """A prompt like no other, so that nothing is found in a cache."""
    return [1, *(100 + number // 300**place % 300 for place in range(3)), *range(100, 100 + PROMPT - 4)]


def local(engine: AsyncEngine) -> Stream:
    """Streams on the engine in this process."""

    async def run(token_ids: list[int], tokens: int) -> float:
        params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, output_kind="delta")
        began, first = time.perf_counter(), math.inf
        async for _ in engine.generate({"prompt_token_ids": token_ids}, params):
            first = min(first, time.perf_counter() - began)
        return first

    return run


def remote(client: Client) -> Stream:
    """Streams on the server."""

    async def run(token_ids: list[int], tokens: int) -> float:
        body = {"prompt": token_ids, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        began = time.perf_counter()
        reply = await client.ask("POST", "/v1/completions", json.dumps(body).encode())
        await reply.done
        assert reply.status == 200 and reply.body.endswith(b"data: [DONE]\n\n"), reply.body[-200:]
        return reply.pieces[0][0] - began

    return run


async def throughput(run: Stream, first: int) -> float:
    """Tokens per second of all streams together."""
    began = time.perf_counter()
    await asyncio.gather(*(run(prompt(first + i), TOKENS) for i in range(STREAMS)))
    return STREAMS * TOKENS / (time.perf_counter() - began)


async def first_token(run: Stream, first: int) -> float:
    """Median seconds to the first token, one request after another."""
    return statistics.median([await run(prompt(first + i), 2) for i in range(SINGLES)])


def resident(pid: int) -> float:
    """Resident memory of a process and its children, in MB."""
    root = psutil.Process(pid)
    return sum(process.memory_info().rss for process in [root, *root.children(recursive=True)]) / 1e6


async def idle(client: Client, pid: int) -> tuple[float, float]:
    """Memory in MB before and with a thousand streams that wait for their first token."""
    before = resident(pid)
    body = json.dumps({"prompt": [1, 2, 3], "max_tokens": 400, "ignore_eos": True, "stream": True}).encode()
    replies = [await client.ask("POST", "/v1/completions", body) for _ in range(IDLE)]
    waiting = 0.0
    while waiting < IDLE * 0.9:
        _, text = await client.whole("GET", "/metrics")
        found = [line for line in text.decode().splitlines() if line.startswith("headstart:num_requests_waiting{")]
        waiting = float(found[0].rpartition(" ")[2])
        assert not any(reply.done.done() and reply.status != 200 for reply in replies)
    after = resident(pid)
    for reply in replies:
        reply.done.cancel()
        reply.close()
    return before, after


async def measure(url: str, pid: int, model: str, rounds: int) -> list[tuple[float, float, float, float]]:
    """Per round: throughput in process and over HTTP, time to first token in process and over HTTP."""
    engine = AsyncEngine.from_model(model)
    client = Client(url)
    sides = [local(engine), remote(client)]
    found: list[tuple[float, float, float, float]] = []
    number = 0
    for round_ in range(rounds + 1):
        values: list[float] = []
        for task, count in ((throughput, STREAMS), (first_token, SINGLES)):
            # Who goes first alternates, for the machine may be doing something else.
            pair: dict[int, float] = {}
            for side in (0, 1) if round_ % 2 else (1, 0):
                pair[side] = await task(sides[side], number)
                number += count
            values += [pair[0], pair[1]]
        # The first round warms up.
        if round_:
            found.append((values[0], values[1], values[2], values[3]))
            print(
                f"round {round_}: {values[0]:.0f} tokens/s in process, {values[1]:.0f} over HTTP; first token "
                f"{values[2] * 1e3:.2f} and {values[3] * 1e3:.2f} ms",
                flush=True,
            )
    await engine.shutdown()
    return found


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default=str(default_checkpoint_path()))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with ServedModel(["--model", options.model], threads=1) as served:
        pid = next(child.pid for child in psutil.Process().children() if "serve" in child.cmdline())
        found = asyncio.run(measure(served.url, pid, options.model, options.rounds))
    with ServedModel(["--model", options.model, "--max-num-seqs", "1"], threads=1) as served:
        pid = next(child.pid for child in psutil.Process().children() if "serve" in child.cmdline())
        before, after = asyncio.run(idle(Client(served.url), pid))
    ratios = [http / here for here, http, _, _ in found]
    added = [(http - here) * 1e3 for _, _, here, http in found]
    print(f"throughput over HTTP / in process: median {statistics.median(ratios):.3f} of {len(found)} rounds", end="")
    print(f" ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"added to the first token: median {statistics.median(added):.2f} ms ({min(added):.2f} to {max(added):.2f})")
    print(f"{IDLE} waiting streams: {after - before:.1f} MB ({before:.1f} to {after:.1f} MB)")
    if options.out is not None:
        names = ("tokens_per_s_in_process", "tokens_per_s_over_http", "ttft_s_in_process", "ttft_s_over_http")
        content = {
            "streams": STREAMS,
            "rounds": [dict(zip(names, values, strict=True)) for values in found],
            "throughput_ratio": statistics.median(ratios),
            "added_to_ttft_ms": statistics.median(added),
            "waiting_streams": {"count": IDLE, "mb_before": before, "mb_after": after},
        }
        write_result(options.out, "benchmarks/http_overhead.py", content)


if __name__ == "__main__":
    main()
