"""Attention over pages in the host's memory; where there is a GPU the queries are there."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.ops.attention import RaggedLayout, paged_attention_reference
from headstart.ops.attention.host import attend_host_pages
from tests.ops.test_attention import ragged_case

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 70)), min_size=1, max_size=4)
    | st.lists(st.tuples(st.integers(1, 3), st.integers(0, 70)), min_size=1, max_size=4),
    page_size=st.sampled_from([1, 3, 16]),
    window=st.none() | st.integers(1, 50),
    scattered=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_equals_the_reference(lengths, page_size, window, scattered, seed):
    """Chunks bring the keys, decodes go to them; both see each layer's own keys, though they share a step's layout."""
    q, k, v, layout, _ = ragged_case(lengths, page_size, 2, 2, 16, seed, scattered)
    there = RaggedLayout(layout.query_lengths, layout.kv_lengths, layout.page_tables, page_size, DEVICE)
    for factor in (1.0, 0.5):
        out, lse = attend_host_pages(q.to(DEVICE), k * factor, v * factor, there, scale=0.2, window=window)
        expected, expected_lse = paged_attention_reference(q, k * factor, v * factor, layout, scale=0.2, window=window)
        assert out.device.type == lse.device.type == DEVICE
        torch.testing.assert_close(out.cpu(), expected, atol=3e-5, rtol=3e-5)
        torch.testing.assert_close(lse.cpu(), expected_lse, atol=3e-5, rtol=3e-5)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_a_cache_on_two_devices():
    """A layer on the host and one on the device hold the same after writes and moves."""
    from headstart.engine.cache import PagedKVStore
    from headstart.engine.seams import LayerKV

    layers = [LayerKV(2, 8, torch.float32), LayerKV(2, 8, torch.float32, on_host=True)]
    store = PagedKVStore().allocate(layers, 6, 4, DEVICE)
    k, v = torch.randn(2, 7, 2, 8, device=DEVICE)
    slots = torch.tensor([3, 5, 8, 9, 17, 20, 23], device=DEVICE)
    for layer in range(2):
        store.write(layer, k, v, slots)
    store.move([2, 5], torch.tensor([0, 1, 4, 7]), [1])
    for here, there in zip(store.layer(0), store.layer(1), strict=True):
        assert here.device.type == DEVICE and there.device.type == "cpu"
        assert torch.equal(here.cpu(), there)
