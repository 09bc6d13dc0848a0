"""A server under a long, rude load: does anything leak, break or change?

    python benchmarks/soak.py --minutes 20 --clients 64 --kill --out soak.json

Clients of two tenants send prompts of random lengths, whole and streamed; three in ten leave at a random moment, one in
twenty sends something malformed. Before, the same prompts are answered on a quiet server. What must hold is checked and
printed, and the exit status is 1 if something does not:

- every answer that was not abandoned is the quiet one, character by character;
- what is malformed is refused with 4xx, and nothing else is refused;
- at the end no request runs, and every page of the cache is free or cached;
- after the warm-up the resident memory of server and engine stays flat;
- with `--kill`, the engine's process is killed in the middle of 32 streams: how long until all of them were told, and
  until a token comes out again.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from headstart.checkpoints.default import default_checkpoint_path
from headstart.evaluation.load.client import Client, ConnectionFailed, Reply
from headstart.evaluation.load.served import ServedModel
from headstart.evaluation.load.stream import events
from headstart.evaluation.script_result import write_result

ABORTED, MALFORMED = 0.30, 0.05
WARM_UP = 0.25
FLAT = 0.05
PROMPTS = 64
# Tokens of prompt and output together: enough for many pages, few enough for many requests.
LONGEST = 400
STREAMS_KILLED, TOLD_WITHIN = 32, 2.0
KEYS = {"red": "sk-red", "blue": "sk-blue"}


@dataclass
class Asked:
    """A request and the text that a quiet server answers it with."""

    body: dict[str, Any]
    text: str = ""


@dataclass
class Found:
    """What happened, what should not have, and what was measured."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def fault(self, text: str) -> None:
        """Note something that must not happen."""
        self.counts["faults"] += 1
        if len(self.wrong) < 10:
            self.wrong.append(text[:300])


def requests(rng: random.Random, longest: int) -> list[Asked]:
    """Greedy requests of random lengths, in families that begin alike."""
    stems = [[1, *(rng.randrange(100, 400) for _ in range(rng.randrange(longest // 2)))] for _ in range(12)]
    found: list[Asked] = []
    for _ in range(PROMPTS):
        stem = rng.choice(stems)
        prompt = [*stem, *(rng.randrange(100, 400) for _ in range(rng.randrange(longest // 4)))]
        body = {"prompt": prompt, "max_tokens": rng.randrange(1, longest - len(prompt)), "temperature": 0}
        found.append(Asked(body | {"ignore_eos": rng.random() < 0.5}))
    return found


def malformed(rng: random.Random) -> bytes:
    """Something that no server should answer with 200 or 5xx."""
    return rng.choice(
        [
            b"",
            b"{",
            b"[1, 2",
            b"\xff\xfe\x00",
            b'{"prompt": "x", "max_tokens": "many"}',
            b'{"prompt": "x", "temperature": -1}',
            b'{"prompt": "x", "no_such_field": 1}',
            b'{"prompt": [99999999]}',
            b'{"prompt": [1, "two"]}',
            b'{"prompt": "x", "n": 1000}',
            b'{"prompt": "x", "response_format": {"type": "json_schema"}}',
            b'{"prompt": "x", "structured_outputs": {"regex": "("}}',
            b'{"prompt": "' + b"word " * 20000 + b'"}',
            b"[" * 5000,
            bytes(rng.randrange(256) for _ in range(rng.randrange(200))),
        ]
    )


async def answer(client: Client, body: dict[str, Any]) -> tuple[int, str]:
    """Status and text of a request, whole or streamed as its body says."""
    reply = await client.ask("POST", "/v1/completions", json.dumps(body).encode())
    await asyncio.wait_for(reply.done, 300)
    return reply.status, text_of(reply, bool(body.get("stream")))


def text_of(reply: Reply, streamed: bool) -> str:
    """The text in a complete reply; of an error, its message."""
    if reply.status != 200:
        return reply.body.decode(errors="replace")
    if not streamed:
        return json.loads(reply.body)["choices"][0]["text"]
    text = ""
    for _, data in events(reply.pieces):
        if data == b"[DONE]":
            return text
        event = json.loads(data)
        if "error" in event:
            return f"error event: {event['error']['message']}"
        text += "".join(choice["text"] for choice in event["choices"])
    return "the stream ended without [DONE]"


async def visit(client: Client, asked: list[Asked], rng: random.Random, found: Found) -> None:
    """One request of one client."""
    chance = rng.random()
    if chance < MALFORMED:
        reply = await client.ask("POST", rng.choice(["/v1/completions", "/v1/chat/completions"]), malformed(rng))
        await asyncio.wait_for(reply.done, 60)
        found.counts["malformed"] += 1
        if not 400 <= reply.status < 500:
            found.fault(f"a malformed request got {reply.status}: {reply.body!r}")
        return
    chosen = rng.choice(asked)
    body = chosen.body | {"stream": rng.random() < 0.5}
    if chance < MALFORMED + ABORTED:
        await abandon(client, body, rng)
        found.counts["aborted"] += 1
        return
    status, text = await answer(client, body)
    found.counts["answered"] += 1
    if status != 200 or text != chosen.text:
        found.fault(f"status {status}, {text!r} instead of {chosen.text!r}")


async def abandon(client: Client, body: dict[str, Any], rng: random.Random) -> None:
    """Send a request and leave at a random moment, be it before the first token or after the last."""
    body = body | ({"n": 3, "temperature": 1.0} if rng.random() < 0.3 else {})
    reply = await client.ask("POST", "/v1/completions", json.dumps(body).encode())
    try:
        await asyncio.wait_for(asyncio.shield(reply.done), rng.expovariate(1 / 0.3))
    except (TimeoutError, ConnectionFailed):
        pass
    finally:
        if not reply.done.done():
            reply.done.cancel()
        reply.close()


async def live(url: str, asked: list[Asked], rng: random.Random, until: float, found: Found) -> None:
    """One client, from the first request to the last."""
    clients = [Client(url, key) for key in KEYS.values()]
    while time.monotonic() < until:
        try:
            await visit(rng.choice(clients), asked, rng, found)
        except (ConnectionFailed, TimeoutError) as error:
            found.fault(f"{type(error).__name__}: {error}")
    for client in clients:
        client.close()


def processes(server: int) -> list[psutil.Process]:
    """The server's process and those that it has started."""
    root = psutil.Process(server)
    return [root, *root.children(recursive=True)]


def resident(server: int) -> float:
    """Resident memory of the server and its engine, in MB."""
    total = 0
    for process in processes(server):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 1e6


async def watch(server: int, until: float, sizes: list[tuple[float, float]]) -> None:
    """Sample the memory every second."""
    began = time.monotonic()
    while time.monotonic() < until:
        sizes.append((time.monotonic() - began, resident(server)))
        await asyncio.sleep(1)


async def metrics(client: Client) -> dict[str, float]:
    """The server's metrics, added up over labels."""
    _, body = await client.whole("GET", "/metrics")
    found: dict[str, float] = {}
    for name, value in re.findall(r"^(headstart:\w+)(?:{[^}]*})? (\S+)$", body.decode(), re.MULTILINE):
        found[name.removeprefix("headstart:")] = found.get(name.removeprefix("headstart:"), 0) + float(value)
    return found


async def settled(client: Client) -> dict[str, float]:
    """The metrics once nothing runs or waits."""
    while True:
        now = await metrics(client)
        if not now["num_requests_running"] and not now["num_requests_waiting"]:
            return now
        await asyncio.sleep(0.1)


async def kill(url: str, server: int, found: Found) -> None:
    """Kill the engine in the middle of 32 streams; tell what its clients and the next ones saw."""
    client = Client(url, KEYS["red"])
    body = {"prompt": [1], "max_tokens": 400, "ignore_eos": True, "stream": True}
    replies = [
        await client.ask("POST", "/v1/completions", json.dumps(body | {"prompt": [1, 100 + i]}).encode())
        for i in range(STREAMS_KILLED)
    ]
    while not all(reply.pieces for reply in replies):
        await asyncio.sleep(0.005)
    engine = max(processes(server)[1:], key=lambda process: process.memory_info().rss)
    began = time.monotonic()
    os.kill(engine.pid, signal.SIGKILL)
    await asyncio.gather(*(reply.done for reply in replies), return_exceptions=True)
    told = time.monotonic() - began
    cut = sum("error event" in text_of(reply, True) for reply in replies)
    while (await client.whole("GET", "/health_generate"))[0] != 200:
        await asyncio.sleep(0.05)
    back = time.monotonic() - began
    if told > TOLD_WITHIN or not cut:
        found.fault(f"{cut} of {STREAMS_KILLED} streams were told of the engine's death within {told:.2f} s")
    found.figures["kill"] = {"streams": STREAMS_KILLED, "told": cut, "told_after_s": told, "back_after_s": back}
    print(
        f"kill -9     {cut} of {STREAMS_KILLED} streams got an error event, the last after {told:.3f} s; "
        f"back after {back:.1f} s"
    )


async def soak(url: str, server: int, options: argparse.Namespace) -> Found:
    """The whole of it."""
    found, rng = Found(), random.Random(options.seed)
    client = Client(url, KEYS["red"])
    models = json.loads((await client.whole("GET", "/v1/models"))[1])
    asked = requests(rng, min(LONGEST, models["data"][0]["max_model_len"]))
    for item in asked:
        status, item.text = await answer(client, item.body)
        if status != 200:
            found.fault(f"on the quiet server: {status}, {item.text}")
    print("quiet       answered", len(asked), "prompts", flush=True)
    until = time.monotonic() + options.minutes * 60
    sizes: list[tuple[float, float]] = []
    clients = [live(url, asked, random.Random(rng.random()), until, found) for _ in range(options.clients)]
    await asyncio.gather(watch(server, until, sizes), *clients)
    end = await settled(client)
    print("requests   ", ", ".join(f"{count} {name}" for name, count in sorted(found.counts.items())))
    found.figures |= {
        "pages": end["kv_cache_pages"],
        "pages_held_at_the_end": end["kv_cache_usage_perc"],
        "preemptions": end["num_preemptions_total"],
        "restarts": end["engine_restarts_total"],
    }
    print(f"pages       {end['kv_cache_pages']:.0f}, held at the end {end['kv_cache_usage_perc']:.0%}")
    print(f"preemptions {end['num_preemptions_total']:.0f}, restarts {end['engine_restarts_total']:.0f}")
    if end["kv_cache_usage_perc"] or end["engine_restarts_total"]:
        found.fault("pages are held by nobody, or the engine was started again")
    check_memory(sizes, options.minutes * 60 * WARM_UP, found)
    if options.kill:
        await kill(url, server, found)
        for item in asked[:8]:
            if (await answer(client, item.body))[1] != item.text:
                found.fault("after the engine came back an answer was another one")
    return found


def check_memory(sizes: list[tuple[float, float]], warm_up: float, found: Found) -> None:
    """Whether the memory stayed flat after the warm-up: its last quarter against what came right after it."""
    later = [size for at, size in sizes if at >= warm_up]
    quarter = max(1, len(later) // 4)
    first, last = sorted(later[:quarter])[quarter // 2], sorted(later[-quarter:])[quarter // 2]
    print(f"memory      {first:.1f} MB after the warm-up, {last:.1f} MB at the end ({last / first - 1:+.1%})")
    found.figures["memory_mb"] = {"after_the_warm_up": first, "at_the_end": last}
    if last > first * (1 + FLAT):
        found.fault(f"memory grew from {first:.1f} to {last:.1f} MB")


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--model", default=None, help="checkpoint directory (default: the built-in model)")
    parser.add_argument("--pages", type=int, default=600, help="of the KV cache: few, so that it is always full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kill", action="store_true", help="at the end, kill the engine in the middle of 32 streams")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        tenants = Path(directory) / "tenants.yaml"
        tenants.write_text(yaml.safe_dump({"tenants": {name: {"keys": [key]} for name, key in KEYS.items()}}))
        model = options.model or str(default_checkpoint_path())
        tier = f"cpu=2MB,disk={directory}/kv:50MB"
        arguments = ["--model", model, "--num-pages", str(options.pages), "--tenants", str(tenants), "--kv-tier", tier]
        with ServedModel(arguments, threads=1) as served:
            print(f"soaking     {model}: {options.minutes:g} minutes, {options.clients} clients", flush=True)
            server = next(child.pid for child in psutil.Process().children() if "serve" in child.cmdline())
            found = asyncio.run(soak(served.url, server, options))
    print("verdict    ", "it holds" if not found.wrong else f"{found.counts['faults']} faults")
    for line in found.wrong:
        print("  ", line)
    if options.out is not None:
        content = {"holds": not found.wrong, "requests": dict(found.counts), "faults": found.wrong, **found.figures}
        write_result(options.out, "benchmarks/soak.py", content)
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
