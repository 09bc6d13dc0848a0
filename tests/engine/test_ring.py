"""Heads that keep a part of the keys: every twin is in one place, whatever leases do, and what is needed is there."""

import random

import numpy as np
import pytest
import torch

from headstart.engine.cache import PagedKVStore
from headstart.engine.seams import LayerKV
from headstart.errors import MethodError
from headstart.ops.attention import RaggedLayout
from headstart.ops.attention.reach import Reach, seen_mask

PAGE = 2


def make_store(reach: Reach, pages: int, twins: int) -> PagedKVStore:
    store = PagedKVStore()
    store.num_twins = twins
    return store.allocate([LayerKV(2, 4, torch.float32, bounded=(1,), reach=reach)], pages, PAGE)


def random_reach(rng: random.Random) -> Reach:
    return Reach(PAGE * rng.choice([1, 2, 4]), rng.randrange(3), rng.randrange(1, 4), rng.choice([0, 2, 3, 5]))


@pytest.mark.parametrize("seed", range(20))
def test_places_are_counted_as_the_mask_tells(seed: int) -> None:
    """Pages, pairs and the layout within say what the rule written out says."""
    rng = random.Random(seed)
    reach, length = random_reach(rng), rng.randrange(1, 70)
    mask = seen_mask(reach, length).numpy()
    assert reach.pairs(length) == mask.sum()
    assert not reach.whole(length) or (mask == np.tri(length, dtype=bool)).all()
    for place in range(length):
        pages = reach.pages(place, place, PAGE)
        want = np.unique(np.flatnonzero(mask[place]) // PAGE)
        # The block of the query is there up to the query itself.
        assert pages.tolist() == want.tolist()
        assert len(pages) <= reach.most_pages(length, PAGE)


@pytest.mark.parametrize("seed", range(10))
def test_rows_within_see_what_the_rule_says(seed: int) -> None:
    """Each row's keys in the layout within are, causally, exactly those that it sees."""
    rng = random.Random(seed)
    reach, length = random_reach(rng), rng.randrange(1, 60)
    store = make_store(reach, 40, 40)
    lease = store.open(None, [])
    assert lease.reserve(length)
    assert store.twins is not None
    place_of = {int(store.twins.twins[page]): number for number, page in enumerate(lease.pages)}
    rows = rng.randrange(1, length + 1)
    layout = RaggedLayout([rows], [length], [lease.pages], PAGE)
    within, mask, row = store.within(layout), seen_mask(reach, length), length - rows
    assert within.num_rows == rows
    for count, end, table in zip(within.query_lengths, within.kv_lengths, within.page_tables, strict=True):
        keys = [place_of[page] * PAGE + at for page in table for at in range(PAGE)][:end]
        for last in range(end - count, end):
            assert keys[: last + 1] == torch.nonzero(mask[row])[:, 0].tolist()
            assert within.slots[row - length + rows] == table[last // PAGE] * PAGE + last % PAGE
            row += 1
    assert row == length


@pytest.mark.parametrize("seed", range(30))
def test_twins_are_conserved(seed: int) -> None:
    """Random prompts that share beginnings, read in pieces and released at random: nothing is lost, and a lease always
    holds what its next token sees."""
    rng = random.Random(seed)
    reach = random_reach(rng)
    store = make_store(reach, 60, rng.choice([14, 24, 60]))
    running: list[tuple] = []
    for _ in range(200):
        if running and rng.random() < 0.2:
            lease, *_ = running.pop(rng.randrange(len(running)))
            lease.release()
        elif running and rng.random() < 0.8:
            lease, tokens, at = running.pop(rng.randrange(len(running)))
            end = min(len(tokens), at + rng.randrange(1, 9))
            if at < end and lease.reserve(end, end):
                lease.commit(tokens, end)
                lease.advance(end)
                at = end
            running.append((lease, tokens, at))
        else:
            start = rng.randrange(2)
            tokens = [start] * rng.randrange(1, 40) + [rng.randrange(4) for _ in range(10)]
            lease = store.open("a", tokens)
            running.append((lease, tokens, lease.num_cached))
        store.check()
        assert store.twins is not None
        for lease, _, at in running:
            seen = [number for number in store.twins.kept(at) if number < -(-at // PAGE)]
            assert set(seen) <= set(lease.twins)
            assert all(store.twins.twins[lease.pages[number]] >= 0 for number in seen)
    for lease, *_ in running:
        lease.release()
    store.check()
    assert store.twins is not None and store.twins.num_held == 0


def test_what_is_not_seen_is_free() -> None:
    """A long prompt is read in pieces through a pool far smaller than it."""
    store = make_store(Reach(4, 1, 2), 100, 8)
    lease = store.open(None, [])
    for end in range(8, 200, 8):
        assert lease.reserve(200, end)
        lease.advance(end)
        store.check()
    assert store.twins is not None and store.twins.num_held <= 2 * 3
    assert store.bytes_held == 100 * store.bytes_per_page + store.twins.num_held * store.bytes_per_twin
    lease.release()


def test_blocks_of_broken_pages_are_refused() -> None:
    with pytest.raises(MethodError, match="blocks of 3 tokens are not made of whole pages of 2: set page_size"):
        make_store(Reach(3, 1, 1), 8, 8)
    layers = [LayerKV(1, 2, torch.float32, bounded=(0,), reach=Reach(2, 1, local)) for local in (1, 2)]
    with pytest.raises(MethodError, match="must have the same reach"):
        PagedKVStore().allocate(layers, 8, PAGE)
