"""Keys that go from one store to another: layer by layer while they are written, through a mirror, and never half."""

import os
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headstart.cluster import shared_store
from headstart.cluster.shared_store import MIGRATES, Held, SharedKVStore
from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams
from headstart.engine.seams import LayerKV
from headstart.errors import HeadstartError
from headstart.methods import registry
from tests.conformance import models
from tests.conformance.lab import make_engine

PAGE, LAYERS, PAGES = 4, 3, 16
TOKENS = list(range(10, 22))


def _store(directory: Path, **more: Any) -> SharedKVStore:
    layers = [LayerKV(2, 8, torch.float32) for _ in range(LAYERS)]
    return SharedKVStore(str(directory), **more).allocate(layers, PAGES, PAGE)


def _rows(layer: int) -> torch.Tensor:
    return torch.arange(len(TOKENS) * 16, dtype=torch.float32).view(-1, 2, 8) + 1000 * layer


def _fill(store: SharedKVStore, layer: int, pages: list[int]) -> None:
    slots = torch.tensor([page * PAGE + offset for page in pages for offset in range(PAGE)])
    store.write(layer, _rows(layer), -_rows(layer), slots)


def _reading(source: SharedKVStore) -> Held:
    """A prompt of three pages that the next step is about to compute."""
    source.step += 1
    lease = source.open("n", [*TOKENS, 0])
    assert lease.reserve(len(TOKENS))
    return Held("n", TOKENS, lease.pages[:3], source.pools, source.step, ready=False)


def _found(store: SharedKVStore) -> int:
    lease = store.open("n", [*TOKENS, 0])
    found = lease.num_cached
    lease.release()
    return found


def test_a_layer_is_copied_once_it_is_written(tmp_path: Path) -> None:
    """While the step still runs: layers that are there arrive, those that are not are waited for."""
    source, target = _store(tmp_path), _store(tmp_path)
    reading = _reading(source)
    done = target.pull(reading, "a")
    lease = target._arriving["a"].lease
    for layer in range(LAYERS):
        assert not done.done()
        _fill(source, layer, reading.pages)
        keys, values = target.layer(layer)
        for _ in range(2000):
            if torch.equal(values[lease.pages[:3]].flatten(0, 1), -_rows(layer)):
                break
            shared_store.time.sleep(0.001)
        assert torch.equal(keys[lease.pages[:3]].flatten(0, 1), _rows(layer))
    assert done.result(10)
    target.settle()
    assert _found(target) == 0, "the step has not ended yet, and may fail"
    target.confirm("a")
    target.settle()
    assert _found(target) == len(TOKENS)
    target.let_go("a")
    target.check()
    assert target.num_leased == 0 and target.moved_tokens == len(TOKENS)


def test_what_is_not_wanted_any_more_is_freed(tmp_path: Path) -> None:
    source, target = _store(tmp_path), _store(tmp_path)
    reading = _reading(source)
    waiting = target.pull(reading, "a")
    target.let_go("a")
    assert waiting.result(10) is False
    target.settle()
    assert target.num_free == PAGES and _found(target) == 0


def test_few_wait_at_once_and_the_dead_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = _store(tmp_path), _store(tmp_path)
    reading = _reading(source)
    pulls: list[Future[bool]] = [
        target.pull(replace(reading, namespace=str(number)), str(number)) for number in range(3)
    ]
    assert pulls[2].result(1) is False, "two others wait already"
    monkeypatch.setattr(shared_store, "_lives", lambda process: False)
    for pull in pulls[:2]:
        with pytest.raises(HeadstartError, match="the keys are gone with the process that held them"):
            pull.result(10)
    target.settle()
    assert target.num_free == PAGES


def test_no_room_is_no_failure(tmp_path: Path) -> None:
    source, target = _store(tmp_path), _store(tmp_path)
    lease = target.open(None, [])
    assert lease.reserve(PAGE * (PAGES - 1))
    assert target.pull(_reading(source), "a").result(1) is False
    lease.release()


@pytest.mark.parametrize("whole_pages", [False, True])
def test_an_engine_goes_on_with_anothers_keys(whole_pages: bool, tmp_path: Path) -> None:
    """In memory that both map, and through a mirror of whole pages as from GPU to GPU: the same text, and little to
    read."""
    stores = [SharedKVStore(str(tmp_path), whole_pages=whole_pages) for _ in range(2)]
    roles = [registry.build(f"distserve:role={role},tokens=64") for role in ("prefill", "decode")]
    prefill, decode = (
        make_engine("gqa", role, store, page_size=4, num_pages=64) for role, store in zip(roles, stores, strict=True)
    )
    prompt = models.ids(41, 3)
    first = _run(prefill, f"{MIGRATES}a", prompt, 1)
    held = stores[0].take_held(f"{MIGRATES}a")
    assert held is not None and len(held.tokens) == 40 and bool(held.pools.layers) != whole_pages
    assert stores[1].pull(held, "a").result(10)
    stores[1].settle()
    rest = _run(decode, "b", [*prompt, *first], 12)
    assert decode.stats().prefill_tokens <= 2
    stores[0].let_go(f"{MIGRATES}a")
    stores[1].let_go("a")
    want = _run(make_engine("gqa", page_size=4, num_pages=64), "c", prompt, 13)
    assert first + rest == want
    for engine in (prefill, decode):
        engine.store.check()  # type: ignore[attr-defined]
        assert not any(pages for pages, _ in engine.store.holdings().values())


def test_a_prompt_that_is_being_read_is_announced(tmp_path: Path) -> None:
    """With the pages and the step that then hold it, so that what was pulled ahead can be told from what was not."""
    store = SharedKVStore(str(tmp_path))
    engine = make_engine("gqa", registry.build("distserve:role=prefill,tokens=64"), store, page_size=4, num_pages=64)
    run, seen = engine.runner.run, []

    def watched(batch: Any) -> torch.Tensor:
        seen.append(store.take_reading(f"{MIGRATES}a"))
        return run(batch)

    engine.runner.run = watched
    _run(engine, f"{MIGRATES}a", models.ids(30, 1), 1)
    held = store.take_held(f"{MIGRATES}a")
    assert held is not None and seen[0] is not None
    assert held.same(seen[0]) and not seen[0].ready and held.ready
    assert not held.same(replace(held, step=held.step + 1)) and seen[0].pools.process == os.getpid()


def test_a_cache_beyond_shared_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_store.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100})())
    with pytest.raises(HeadstartError, match=r"they need [\d,]+ bytes in .*, and 100 are free there"):
        _store(tmp_path)


def _run(engine: Engine, name: str, prompt: list[int], tokens: int) -> list[int]:
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, output_kind="final")
    engine.submit(engine.prepare(name, prompt, params))
    found: list[int] = []
    while engine.has_work:
        for output in engine.step():
            found = output.outputs[0].token_ids
    return found
