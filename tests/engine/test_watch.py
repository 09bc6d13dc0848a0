"""What a watcher sees: steps, requests and pages, and nothing of other tenants."""

import asyncio
import json
from itertools import pairwise

import pytest

from headstart import AsyncEngine
from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams
from headstart.engine.watch import STEPS_KEPT, tenant_digest

FIELDS = ("number", "began", "seconds", "prefill", "decode", "sequences", "waiting", "free", "cached")


@pytest.fixture(scope="module")
def engine(stories: str) -> Engine:
    return Engine(EngineArgs(model=stories, max_num_batched_tokens=32, num_pages=64, max_model_len=256))


def submit(engine: Engine, name: str, ids: list[int], salt: str | None = None, tokens: int = 4) -> None:
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    engine.submit(engine.prepare(name, {"prompt_token_ids": ids}, params, salt))


def run(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


def test_steps_add_up_to_what_was_asked(engine: Engine) -> None:
    first = engine.watch.look(0, {})["step"]
    before = engine.stats()
    submit(engine, "a", [1, *range(300, 399)])
    submit(engine, "b", [1, *range(100, 150)])
    run(engine)
    seen = engine.watch.look(first, {})
    steps = [dict(zip(FIELDS, step, strict=True)) for step in seen["steps"]]
    assert [step["number"] for step in steps] == list(range(first + 1, seen["step"] + 1))
    assert sum(step["prefill"] for step in steps) == 151
    # The first of an output's tokens comes with the end of the prompt; the others cost a row each.
    assert sum(step["decode"] for step in steps) == 6
    assert all(step["prefill"] <= 32 for step in steps)
    assert seen["budget"] == 32
    assert all(a["began"] + a["seconds"] <= b["began"] for a, b in pairwise(steps))
    after = engine.stats()
    assert after.prefill_tokens - before.prefill_tokens == 151
    assert after.decode_tokens - before.decode_tokens == 6
    assert sum(after.step_sizes) == after.steps
    assert after.step_seconds >= sum(step["seconds"] for step in steps)
    assert len(engine.watch.look(seen["step"] - 2, {})["steps"]) == 2
    assert engine.watch.look(seen["step"] + 9, {})["steps"] == []


def test_only_the_last_steps_are_kept(engine: Engine) -> None:
    planned = engine.watch.planned([])
    for _ in range(STEPS_KEPT + 5):
        engine.watch.ran(planned)
    assert len(engine.watch.look(0, {})["steps"]) == STEPS_KEPT


def test_a_request_is_watched_from_the_line_to_its_end(engine: Engine) -> None:
    ids = [1, *range(200, 290)]
    submit(engine, "watched", ids, tokens=3)

    def progress() -> tuple[str, int, int]:
        (request,) = engine.watch.look(0, {})["requests"]
        assert request["prompt"] == len(ids)
        return request["state"], request["read"], request["written"]

    assert progress() == ("waiting", 0, 0)
    engine.step()
    assert progress() == ("reading", 32, 0)
    engine.step()
    engine.step()
    assert progress() == ("writing", 91, 1)
    engine.step()
    assert progress() == ("writing", 91, 2)
    run(engine)
    assert engine.watch.look(0, {})["requests"] == []


def test_pages_by_tenant_make_up_the_whole_and_strangers_have_no_name(engine: Engine) -> None:
    for salt, first in (("red", 10), ("blue", 20), (None, 30)):
        submit(engine, f"run-{salt}", [1, *range(first, first + 70)], salt)
    submit(engine, "long", [1, *range(40, 110)], "red", tokens=40)
    for _ in range(12):
        engine.step()
    engine.watch._holdings = (-1.0, {})
    seen = engine.watch.look(0, {"red": "team red", "": "nobody"})
    pages, tenants = seen["pages"], {tenant["name"]: tenant for tenant in seen["pages"]["tenants"]}
    assert list(tenants) == ["nobody", "team red", None]
    assert sum(t["held"] + t["cached"] for t in tenants.values()) + pages["free"] == pages["total"]
    assert tenants["team red"]["held"] >= 5
    assert {request["tenant"] for request in seen["requests"]} <= {"team red", "nobody", None}
    shown = json.dumps(seen)
    assert "blue" not in shown and tenant_digest("blue") not in shown
    run(engine)
    engine.store.check()  # type: ignore[attr-defined]


def test_a_look_does_not_wait_for_work_and_outlives_the_engine(stories: str) -> None:
    async def scenario() -> None:
        engine = AsyncEngine.from_model(stories, num_pages=64, max_model_len=256)
        looks = [asyncio.create_task(engine.look()) for _ in range(3)]
        assert all(seen["step"] == 0 for seen in await asyncio.wait_for(asyncio.gather(*looks), 10))
        stream = engine.generate({"prompt_token_ids": [1, 5, 9]}, SamplingParams(max_tokens=5, ignore_eos=True))
        assert [output.finished async for output in stream][-1]
        assert (await engine.look())["step"] == 5
        await engine.shutdown()
        assert (await asyncio.wait_for(engine.look(), 10))["step"] == 5

    asyncio.run(scenario())
