"""Paged attention against a dense reference on random ragged batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.ops.attention import (
    RaggedLayout,
    Selection,
    attention_among,
    merge_attention,
    paged_attention,
    paged_attention_reference,
    write_kv,
)


def dense_attention(q, k, v, scale, window=None, softcap=None):
    """One sequence in float64: `q [Q, H, D]`, `k, v [N, Hkv, D]`, looped over heads and rows."""
    queries, heads, _ = q.shape
    group = heads // k.shape[1]
    out, lse = torch.zeros(q.shape, dtype=torch.float64), torch.zeros(queries, heads, dtype=torch.float64)
    for h in range(heads):
        for i in range(queries):
            last = k.shape[0] - queries + i
            first = 0 if window is None else max(0, last - window + 1)
            keys = k[first : last + 1, h // group].double()
            scores = keys @ q[i, h].double() * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            lse[i, h] = torch.logsumexp(scores, 0)
            out[i, h] = torch.softmax(scores, 0) @ v[first : last + 1, h // group].double()
    return out, lse


def ragged_case(lengths, page_size, kv_heads, group, head_dim, seed, scattered=True):
    """Sequences of (query rows, keys before them) in pages: `q, k_pages, v_pages, layout, [(k, v)]`."""
    generator = torch.Generator().manual_seed(seed)
    totals = [queries + before for queries, before in lengths]
    counts = [-(-total // page_size) for total in totals]
    order = torch.randperm(sum(counts), generator=generator) if scattered else torch.arange(sum(counts))
    tables, at = [], 0
    for count in counts:
        tables.append((order[at : at + count] + 1).tolist())
        at += count
    layout = RaggedLayout([q for q, _ in lengths], totals, tables, page_size)
    k_pages = torch.randn(sum(counts) + 1, page_size, kv_heads, head_dim, generator=generator)
    v_pages = torch.randn(k_pages.shape, generator=generator)
    everything = RaggedLayout(totals, totals, tables, page_size)
    k, v = torch.randn(2, sum(totals), kv_heads, head_dim, generator=generator)
    write_kv(k_pages, v_pages, k, v, everything.slots)
    q = torch.randn(layout.num_rows, kv_heads * group, head_dim, generator=generator)
    return q, k_pages, v_pages, layout, list(zip(k.split(totals), v.split(totals), strict=True))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 70)), min_size=1, max_size=6),
    decodes=st.lists(st.integers(0, 90), max_size=6),
    page_size=st.sampled_from([1, 3, 16]),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    head_dim=st.sampled_from([8, 24, 64]),
    window=st.none() | st.integers(1, 50),
    softcap=st.none() | st.just(5.0),
    seed=st.integers(0, 2**31),
    scattered=st.booleans(),
)
def test_equals_dense(lengths, decodes, page_size, kv_heads, group, head_dim, window, softcap, seed, scattered):
    """Any mix of chunks and decodes, any page size, grouping, window and soft cap equals the looped reference."""
    lengths = lengths + [(1, before) for before in decodes]
    q, k_pages, v_pages, layout, sequences = ragged_case(lengths, page_size, kv_heads, group, head_dim, seed, scattered)
    rule = {"scale": 0.3, "window": window, "softcap": softcap}
    for op in (paged_attention, paged_attention_reference):
        out, lse = op(q, k_pages, v_pages, layout, **rule)
        for part, part_lse, rows, (k, v) in zip(
            out.split(layout.query_lengths),
            lse.split(layout.query_lengths),
            q.split(layout.query_lengths),
            sequences,
            strict=True,
        ):
            want, want_lse = dense_attention(rows, k, v, **rule)
            torch.testing.assert_close(part.double(), want, atol=2e-5, rtol=2e-5)
            torch.testing.assert_close(part_lse.double(), want_lse, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_error_is_the_inputs(dtype):
    """Half-precision paths stay within the rounding of their inputs and output."""
    q, k_pages, v_pages, layout, _ = ragged_case([(50, 30), (1, 90), (1, 80), (3, 9)], 16, 2, 3, 32, 0)
    q, k_pages, v_pages = (x.to(dtype) for x in (q, k_pages, v_pages))
    out, _ = paged_attention(q, k_pages, v_pages, layout, scale=0.2)
    want, _ = paged_attention_reference(q.double(), k_pages.double(), v_pages.double(), layout, scale=0.2)
    assert (out.double() - want).abs().max() < 4 * torch.finfo(dtype).eps


def test_selecting_all_pages_is_dense_and_some_pages_skip_keys():
    """A full selection changes nothing; a partial one equals attention over the chosen keys only."""
    q, k_pages, v_pages, layout, _ = ragged_case([(1, 31), (5, 11)], 4, 2, 2, 16, 1)
    every = Selection(torch.ones(2, 1, 2, 8, dtype=torch.bool), query_block=64)
    dense = paged_attention(q, k_pages, v_pages, layout, scale=0.25)
    chosen = paged_attention(q, k_pages, v_pages, layout, scale=0.25, selection=every)
    torch.testing.assert_close(chosen, dense, atol=1e-5, rtol=1e-5)

    some = Selection(every.pages.clone(), query_block=64)
    some.pages[0, :, :, 2:6] = False
    out, _ = paged_attention(q, k_pages, v_pages, layout, scale=0.25, selection=some)
    table = layout.page_tables[0]
    kept = torch.tensor([table[0], table[1], table[6], table[7]])
    k, v = (pages[kept].flatten(0, 1) for pages in (k_pages, v_pages))
    want, _ = dense_attention(q[:1], k, v, 0.25)
    torch.testing.assert_close(out[:1].double(), want, atol=1e-5, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 70)), min_size=1, max_size=6),
    page_size=st.sampled_from([1, 3, 16]),
    seed=st.integers(0, 2**31),
)
def test_the_index_says_where_everything_lies(lengths, page_size, seed):
    """Starts, lengths and pages as given; a row's slot is where its sequence's table puts its place."""
    *_, layout, _ = ragged_case(lengths, page_size, 1, 1, 1, seed)
    index = layout.index
    assert index.query_starts.tolist() == layout.query_starts
    assert index.kv_lengths.tolist() == layout.kv_lengths
    assert (index.max_query, index.max_kv) == (max(layout.query_lengths), max(layout.kv_lengths))
    for row, table in zip(index.page_table.tolist(), layout.page_tables, strict=True):
        assert row[: len(table)] == table
    places = [
        table[at // page_size] * page_size + at % page_size
        for (queries, before), table in zip(lengths, layout.page_tables, strict=True)
        for at in range(before, before + queries)
    ]
    assert layout.slots.tolist() == places
    alone = RaggedLayout.of_index(index, layout.slots, page_size)
    assert alone.index is index and alone.slots is layout.slots and alone.num_rows == layout.num_rows


def test_merge_of_halves_is_the_whole():
    """Attention over two disjoint key sets merges to attention over both; an empty side changes nothing."""
    q, k, v = torch.randn(3, 2, 8), torch.randn(20, 1, 8), torch.randn(20, 1, 8)
    whole, whole_lse = dense_attention(q[-1:], k, v, 0.5)
    left, right = dense_attention(q[-1:], k[:7], v[:7], 0.5), dense_attention(q[-1:], k[7:], v[7:], 0.5)
    merged, lse = merge_attention(left[0].float(), left[1].float(), right[0].float(), right[1].float())
    torch.testing.assert_close(merged.double(), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), whole_lse, atol=1e-5, rtol=1e-5)
    empty = torch.full_like(lse, -torch.inf)
    same, same_lse = merge_attention(merged, lse, torch.zeros_like(merged), empty)
    torch.testing.assert_close(same, merged)
    torch.testing.assert_close(same_lse, lse)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("rows", [[9], [5, 9], [0, 2, 3, 9], [0, 2, 3, 5, 6, 9], [2]])
def test_among_chosen_keys(rows, window, softcap):
    """Rows over some keys, each up to its own place: as a dense computation that masks all others."""
    keys = torch.tensor([0, 2, 3, 5, 6, 9])
    places = torch.tensor(rows)
    q, k, v = torch.randn(len(rows), 4, 8), torch.randn(6, 2, 8), torch.randn(6, 2, 8)
    given = {"scale": 0.3, "window": window, "softcap": softcap}
    out, lse = attention_among(q, k, v, places, keys, **given)
    for row, place in enumerate(rows):
        for head in range(4):
            scores = k[:, head // 2] @ q[row, head] * 0.3
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            seen = (keys <= place) & (keys > place - (window or 100))
            weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), 0)
            torch.testing.assert_close(out[row, head], weights @ v[:, head // 2])
            torch.testing.assert_close(lse[row, head], scores[seen].logsumexp(0))
