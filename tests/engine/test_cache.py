"""The KV store's bookkeeping under random leases: nothing lost, nothing held twice, only equal tokens shared."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.engine.cache import PagedKVStore
from headstart.engine.seams import LayerKV


def make_store(num_pages: int, page_size: int) -> PagedKVStore:
    return PagedKVStore().allocate([LayerKV(1, 2, torch.float32)], num_pages, page_size)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), page_size=st.integers(1, 5), num_pages=st.integers(1, 40))
def test_random_leases_conserve_pages_and_share_only_equal_tokens(seed, page_size, num_pages):
    """Random opens, growth, commits and releases over few distinct tokens. Each page remembers, in the test's own
    book, which tokens up to its end were written; a match must hand out pages whose book agrees."""
    rng = random.Random(seed)
    store = make_store(num_pages, page_size)
    book: dict[int, tuple] = {}
    live: list[tuple] = []
    for _ in range(60):
        action = rng.random()
        if action < 0.45 or not live:
            namespace = rng.choice(["a", "b", None])
            tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 6 * page_size))]
            lease = store.open(namespace, tokens)
            assert lease.num_cached < len(tokens) and lease.num_cached % page_size == 0
            for i, page in enumerate(lease.pages):
                assert book[page] == (namespace, tuple(tokens[: (i + 1) * page_size]))
            if not lease.reserve(len(tokens)):
                assert -(-len(tokens) // page_size) - len(lease.pages) > store.num_available
                lease.release()
            else:
                live.append((namespace, tokens, lease))
        elif action < 0.75:
            namespace, tokens, lease = rng.choice(live)
            computed = rng.randrange(lease.num_cached, len(tokens) + 1)
            for i in range(lease.shared, computed // page_size):
                book[lease.pages[i]] = (namespace, tuple(tokens[: (i + 1) * page_size]))
            lease.commit(tokens, computed)
        elif action < 0.85:
            _, tokens, lease = rng.choice(live)
            more = [rng.randrange(2) for _ in range(rng.randrange(1, 2 * page_size))]
            if lease.reserve(len(tokens) + len(more)):
                tokens += more
        else:
            live.pop(rng.randrange(len(live)))[2].release()
        store.check()
        held = [set(lease.pages[lease.shared :]) for _, _, lease in live]
        assert sum(map(len, held)) == len(set().union(*held)), "a private page stands in two leases"
    for _, _, lease in live:
        lease.release()
        lease.release()
    store.check()
    assert store.num_leased == 0 and store.num_available == num_pages


def test_eviction_takes_the_least_recently_used_and_spares_what_is_held():
    """With the cache full, the oldest unheld prefix goes first; a held one never does."""
    store = make_store(6, 2)
    prompts = [[i, i, i, i, 9] for i in range(3)]
    for tokens in prompts:
        with store.open("", tokens) as lease:
            assert lease.reserve(4)
            lease.commit(tokens, 4)
    assert (store.num_cached, store.num_free) == (6, 0)
    held = store.open("", prompts[0])
    assert held.num_cached == 4
    with store.open("", [7, 7, 7]) as lease:
        assert lease.reserve(3)
    assert store.open("", prompts[1]).num_cached == 0, "the oldest that nobody held was evicted"
    assert store.open("", prompts[2]).num_cached == 4
    with store.open("", [8] * 20) as lease:
        assert not lease.reserve(20), "held pages cannot be had"
    store.check()


def test_one_token_is_always_left_to_compute():
    """A prompt that is cached to its last token still computes that one."""
    store = make_store(8, 4)
    tokens = list(range(8))
    with store.open("", tokens) as lease:
        lease.reserve(8)
        lease.commit(tokens, 8)
    with store.open("", tokens) as lease:
        assert lease.num_cached == 4
    with store.open("", [*tokens, 1]) as lease:
        assert lease.num_cached == 8


def test_two_writers_of_the_same_tokens_end_up_sharing():
    """Neighbours that computed the same prefix at once keep one copy after committing."""
    store = make_store(8, 2)
    tokens = [1, 2, 3, 4, 5]
    first, second = store.open("", tokens), store.open("", tokens)
    for lease in (first, second):
        assert lease.reserve(5)
    assert store.num_free == 2
    first.commit(tokens, 4)
    second.commit(tokens, 4)
    assert first.pages[:2] == second.pages[:2] and store.num_free == 4
    store.check()


def test_namespaces_share_nothing_and_can_be_dropped():
    """Equal tokens under another salt are not found; dropping a namespace frees its pages."""
    store = make_store(4, 2)
    tokens = [1, 2, 3, 4, 5]
    with store.open("one", tokens) as lease:
        lease.reserve(4)
        lease.commit(tokens, 4)
    with store.open("two", tokens) as lease:
        assert lease.num_cached == 0
    store.drop("one")
    assert store.num_free == 4
    store.check()


def test_a_long_output_stays_one_node_and_candidates_do_not_pile_up():
    """Growing page by page extends one node; thousands of identical requests leave a bounded heap and no roots."""
    store = make_store(64, 2)
    tokens = list(range(100))
    with store.open("", tokens) as lease:
        for length in range(2, 101):
            assert lease.reserve(length)
            lease.commit(tokens, length)
        assert len(list(store.tree.nodes())) == 1
    for _ in range(5000):
        store.open("", tokens).release()
    assert len(store.tree._oldest) < 2000
    store.drop("")
    for name in range(100):
        store.open(str(name), tokens).release()
    assert not store.tree._roots
    store.check()


def test_an_alias_takes_no_memory_of_its_own():
    """A layer that reads an earlier layer's pages is the same tensor."""
    layers = [LayerKV(2, 4, torch.float32), LayerKV(2, 4, torch.float32, alias_of=0)]
    aliased = PagedKVStore().allocate(layers, 3, 2)
    assert aliased.layer(1)[0].data_ptr() == aliased.layer(0)[0].data_ptr()
    plain = PagedKVStore().allocate([layers[0], layers[0]], 3, 2)
    assert plain.bytes_per_page == 2 * aliased.bytes_per_page


@pytest.mark.parametrize("num_pages", [1, 5, 64])
def test_a_lone_sequence_reads_its_keys_in_place(num_pages):
    """Growing alone, a lease's pages follow each other."""
    store = make_store(num_pages, 2)
    with store.open(None, [0]) as lease:
        for length in range(1, 2 * num_pages + 1):
            assert lease.reserve(length)
        assert lease.pages == list(range(num_pages))
