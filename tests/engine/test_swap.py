"""Preemption by swap or by computing again: the rule, the same text either way, and no page or byte lost."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from headstart.checkpoints.writer import save_checkpoint
from headstart.engine.args import EngineArgs
from headstart.engine.engine import Engine
from headstart.engine.params import SamplingParams
from headstart.engine.swap import SwapCost
from headstart.errors import HeadstartError
from tests.conformance import models
from tests.conformance.lab import assert_conserved, assert_idle

TIGHT: dict[str, Any] = {
    "device": "cpu",
    "skip_tokenizer_init": True,
    "page_size": 4,
    "num_pages": 24,
    "max_num_seqs": 6,
    "max_num_batched_tokens": 16,
}


def _engine(prefers: bool | None, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Engine:
    """An engine whose rule always says the same; None leaves it alone."""
    if prefers is not None:
        monkeypatch.setattr(SwapCost, "prefers_swap", lambda self, pages, tokens: prefers)
    return Engine(EngineArgs(**(TIGHT | settings)), models.shared("gqa"))


def _answers(engine: Engine, seed: int, count: int = 10) -> list[list[int]]:
    """Token ids of requests that come one after the other, of which some are aborted."""
    rng, found = random.Random(seed), {}
    for number in range(count):
        params = SamplingParams(
            max_tokens=rng.randrange(10, 40), temperature=rng.choice([0.0, 1.0]), seed=number, ignore_eos=True
        )
        engine.submit(engine.prepare(str(number), models.ids(rng.randrange(1, 30), number), params))
        for _ in range(rng.randrange(3)):
            _step(engine, found)
    engine.submit(engine.prepare("given up", models.ids(9, 9), SamplingParams(max_tokens=30, ignore_eos=True)))
    for steps in range(3000):
        if not engine.has_work:
            break
        if steps == 9 and "given up" in engine.requests:
            engine.abort("given up")
        _step(engine, found)
    assert_idle(engine)
    return [found[str(number)] for number in range(count)]


def _step(engine: Engine, found: dict[str, list[int]]) -> None:
    for output in engine.step():
        found[output.request_id] = output.outputs[0].token_ids
    assert_conserved(engine)


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("use", [[], ["fastgen:budget=8"], ["prefill-first"]])
def test_swapped_or_read_again_the_text_is_the_same(
    caching: bool, ahead: bool, use: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"enable_prefix_caching": caching, "async_scheduling": ahead, "use": use}
    want = _answers(_engine(None, monkeypatch, **(settings | {"num_pages": 400})), seed=1)
    for prefers in (True, False):
        engine = _engine(prefers, monkeypatch, **settings)
        assert _answers(engine, seed=1) == want
        stats = engine.stats()
        assert stats.preemptions > 0 and (stats.swaps > 0) == prefers
        assert engine._swap is not None and engine._swap.used == 0, "the host's memory is free again"


def test_what_is_swapped_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each preemption by swap computes one token again, the last; the other way it is all of them."""
    tokens = {}
    for prefers in (True, False):
        engine = _engine(prefers, monkeypatch, enable_prefix_caching=False)
        _answers(engine, seed=2)
        stats = engine.stats()
        tokens[prefers] = stats.prefill_tokens + stats.decode_tokens
    assert tokens[True] < tokens[False]


@pytest.mark.parametrize("rate", [1e5, 1e6])
def test_the_rule_follows_what_it_weighs(rate: float) -> None:
    """Of equal cost at tokens / read_rate == 2 * bytes / copy_rate; either side of it the cheaper one is taken."""
    cost = SwapCost(page_bytes=4000, copy_rate=1e9, read_rate=rate)
    pages = 10
    even = 2 * pages * 4000 / 1e9 * rate
    assert cost.prefers_swap(pages, int(even) + 1) and not cost.prefers_swap(pages, int(even * 0.9))
    assert not SwapCost(4000, copy_rate=1e3, read_rate=rate).prefers_swap(pages, int(even) + 1), "a slow copy"
    assert SwapCost(4000, copy_rate=1e9, read_rate=rate / 100).prefers_swap(pages, int(even)), "slow reading"
    assert not SwapCost(4000, 1e9).prefers_swap(pages, 10**9), "nothing is known of reading yet"


def test_the_rule_is_fed_by_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _engine(None, monkeypatch)
    swap = engine._swap
    assert swap is not None and swap.cost.copy_rate > 0 and swap.cost.read_rate == 0
    _answers(engine, seed=3)
    assert swap.cost.read_rate > 0 and swap.cost.page_bytes == engine.store.bytes_per_page


def test_the_limit_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _engine(True, monkeypatch)
    size = engine.store.bytes_per_page
    for limit in (0, size - 1, 6 * size):
        engine = _engine(True, monkeypatch, swap_space=limit, enable_prefix_caching=False)
        most = 0
        drop = None if engine._swap is None else engine._swap.drop

        def watched(sequence: Any, engine: Engine = engine, drop: Any = drop) -> None:
            nonlocal most
            most = max(most, engine._swap.used)  # type: ignore[union-attr]
            drop(sequence)

        if engine._swap is not None:
            engine._swap.drop = watched  # type: ignore[method-assign]
        _answers(engine, seed=4)
        assert most <= limit and (engine.stats().swaps > 0) == (limit > size)
    with pytest.raises(HeadstartError, match="swap_space must be a number of bytes of at least 0, not -1"):
        EngineArgs(swap_space=-1)


def test_keys_of_a_failed_step_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step that broke has left behind is computed again, whatever the rule says."""
    engine = _engine(True, monkeypatch)
    for number in range(3):
        engine.submit(engine.prepare(str(number), models.ids(10, number), SamplingParams(max_tokens=8)))
    for _ in range(3):
        engine.step()
    engine.set_back()
    assert engine.stats().swaps == 0 and engine._swap is not None and engine._swap.used == 0
    assert_conserved(engine)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_same_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_checkpoint(models.load("gqa"), tmp_path / "gqa")
    found = {}
    for prefers in (True, False):
        monkeypatch.setattr(SwapCost, "prefers_swap", lambda self, pages, tokens, prefers=prefers: prefers)
        settings = TIGHT | {"device": "cuda", "dtype": "float32", "enforce_eager": True}
        engine = Engine(EngineArgs(model=str(tmp_path / "gqa"), **settings))
        found[prefers] = _answers(engine, seed=5)
        assert (engine.stats().swaps > 0) == prefers
    assert found[True] == found[False]
