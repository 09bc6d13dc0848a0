"""Attention over chosen blocks, diagonals and columns, on a processor: equal to a mask, and really less work."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from headstart.ops.attention import KeyBlocks, Lines, RaggedLayout, paged_attention, paged_attention_reference, write_kv
from headstart.ops.attention.lists import (
    bands_of,
    blocks_of_lines,
    lines_of,
    listed,
    running_max,
    running_sum,
    stacked,
    streaming,
    top,
)


def case(lengths, page_size, kv_heads, group, head_dim, seed):
    """Sequences of (query rows, keys before them), their pages scattered: `q, k_pages, v_pages, layout`."""
    generator = torch.Generator().manual_seed(seed)
    totals = [queries + before for queries, before in lengths]
    counts = [-(-total // page_size) for total in totals]
    tables = [part.tolist() for part in torch.randperm(sum(counts), generator=generator).split(counts)]
    pools = torch.full((2, sum(counts), page_size, kv_heads, head_dim), torch.nan)
    k, v = torch.randn(2, sum(totals), kv_heads, head_dim, generator=generator)
    write_kv(pools[0], pools[1], k, v, RaggedLayout(totals, totals, tables, page_size).slots)
    layout = RaggedLayout([queries for queries, _ in lengths], totals, tables, page_size)
    return torch.randn(layout.num_rows, kv_heads * group, head_dim, generator=generator), *pools, layout


def random_lists(layout, heads, query_block, key_block, share, generator):
    """Each head and block of queries looks at a share of the blocks of keys, chosen by lot."""
    blocks, keys = -(-max(layout.query_lengths) // query_block), -(-max(layout.kv_lengths) // key_block)
    chosen = torch.rand(len(layout.kv_lengths), heads, blocks, keys, generator=generator) < share
    lists, counts = listed(chosen)
    return KeyBlocks(lists, counts, query_block, key_block)


def random_lines(layout, heads, query_block, key_block, share, generator):
    """Each head has diagonals and columns of its own, chosen by lot."""
    parts = []
    for length in layout.kv_lengths:
        distances, columns = torch.rand(2, heads, length, generator=generator) < share
        places, counts = listed(columns)
        parts.append(lines_of(distances, length, places, counts, query_block, key_block))
    return blocks_of_lines(stacked(parts), layout, query_block, key_block)


def written_out(selection, s, layout):
    """bool `[Hb, Q, N]`: the pairs of a sequence, from the meaning of lists and lines alone, one by one."""
    queries, keys = layout.query_lengths[s], layout.kv_lengths[s]
    heads, size = selection.blocks.shape[1], selection.key_block
    seen = torch.zeros(heads, queries, keys, dtype=torch.int32)
    for head in range(heads):
        for row in range(queries):
            block = row // selection.query_block
            for number in selection.blocks[s, head, block, : selection.counts[s, head, block]].tolist():
                seen[head, row, number * size : number * size + size] += 1
            if selection.lines is None:
                continue
            place = keys - queries + block * selection.query_block
            lines: Lines = selection.lines
            banded = torch.zeros(keys, dtype=torch.int32)
            for band in lines.bands[s, head, : lines.band_counts[s, head]].tolist():
                banded[max(place - band, 0) : max(place - band + size, 0)] += 1
            columns = lines.columns[s, head, : lines.column_counts[s, head]].long()
            single = columns[banded[columns] == 0]
            seen[head, row] += banded
            seen[head, row, single] += 1
    assert seen.max() <= 1, "a pair is counted twice"
    causal = torch.arange(keys) <= (keys - queries + torch.arange(queries))[:, None]
    return (seen > 0) & causal


SHAPES = {
    "lengths": st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60)), min_size=1, max_size=3),
    "page_size": st.sampled_from([1, 3, 16]),
    "heads": st.sampled_from([(1, 1), (2, 2), (1, 3)]),
    "per_query_head": st.booleans(),
    "query_block": st.sampled_from([1, 4, 16]),
    "key_block": st.sampled_from([1, 3, 8]),
    "share": st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    "seed": st.integers(0, 2**31),
}


@settings(max_examples=25, deadline=None)
@given(
    **SHAPES,
    kind=st.sampled_from([random_lists, random_lines]),
    window=st.none() | st.integers(1, 30),
    cap=st.none() | st.just(5.0),
)
def test_equals_masking_the_rest(
    lengths, page_size, heads, per_query_head, query_block, key_block, share, seed, kind, window, cap
):
    """Lists and lines, per head, ragged, with windows and soft caps: the reference, and a mask made pair by pair."""
    kv_heads, group = heads
    q, k, v, layout = case(lengths, page_size, kv_heads, group, 16, seed)
    generator = torch.Generator().manual_seed(seed)
    lists = q.shape[1] if per_query_head else kv_heads
    selection = kind(layout, lists, query_block, key_block, share, generator)
    rule = {"scale": 0.3, "window": window, "softcap": cap, "selection": selection}
    out, lse = paged_attention(q, k, v, layout, **rule)
    wide_k, wide_v = k.double(), v.double()
    want, want_lse = paged_attention_reference(q.double(), wide_k, wide_v, layout, **rule)
    torch.testing.assert_close(out.double(), want, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(lse, want_lse, atol=2e-5, rtol=2e-5)
    pairs = 0.0
    for s, (queries, keys) in enumerate(zip(layout.query_lengths, layout.kv_lengths, strict=True)):
        mask = written_out(selection, s, layout)
        causal = torch.arange(keys) <= (keys - queries + torch.arange(queries))[:, None]
        looks = selection.looks(s, torch.arange(queries), torch.arange(keys), layout).transpose(0, 1)
        assert torch.equal(looks & causal, mask)
        pairs += mask.sum().item() / lists
    assert selection.pairs(layout) == pytest.approx(pairs)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 200),
    query_block=st.sampled_from([1, 4, 16]),
    key_block=st.sampled_from([1, 4, 16]),
    share=st.sampled_from([0.02, 0.2, 0.9]),
    seed=st.integers(0, 2**31),
)
def test_bands_hold_the_distances(length, query_block, key_block, share, seed):
    """Every pair at a chosen distance lies in a band, bands neither overlap nor lie ahead, and few keys are in vain."""
    distances = torch.rand(2, length, generator=torch.Generator().manual_seed(seed)) < share
    bands, counts, covered = bands_of(distances, query_block, key_block, int(distances.sum(-1).max()))
    for head in range(2):
        mine = bands[head, : counts[head]].tolist()
        assert all(a - b >= key_block for a, b in pairwise(mine))
        place = length + query_block
        held = {place - band + n for band in mine for n in range(key_block)}
        wanted = {place - t + n for t in distances[head].nonzero()[:, 0].tolist() for n in range(query_block)}
        assert wanted <= held
        assert max(held, default=0) <= place + query_block - 1
        assert len(held) <= len(wanted) + (2 * key_block - 1) * max(int(distances[head].sum()), 1)
        marks = {place + query_block - x for x in covered[head].nonzero()[:, 0].tolist()}
        assert marks == held


@pytest.mark.parametrize("length", [1, 5, 8, 40, 61])
def test_running_sums_and_maxima(length, monkeypatch):
    """In parts as in one."""
    monkeypatch.setattr("headstart.ops.attention.lists._PART", 8)
    x = torch.randint(0, 100, (2, 3, length), generator=torch.Generator().manual_seed(length), dtype=torch.int32)
    assert torch.equal(running_max(x), x.cummax(-1).values)
    assert torch.equal(running_sum(x > 50), (x > 50).cumsum(-1))


def test_an_a_shape_is_first_and_recent_keys():
    """Each row sees at least its recent keys and the sink, and no more than whole bands of others."""
    *_, layout = case([(50, 30), (7, 0)], 16, 2, 1, 16, 0)
    selection = streaming(layout, 2, sink=5, recent=20, query_block=8, key_block=8)
    for s, (queries, keys) in enumerate(zip(layout.query_lengths, layout.kv_lengths, strict=True)):
        row, key = keys - queries + torch.arange(queries)[:, None], torch.arange(keys)
        wanted = (key <= row) & ((key < 5) | (key > row - 20))
        mask = written_out(selection, s, layout)[0]
        assert (mask | ~wanted).all()
        assert not (mask & (key >= 5) & (key <= row - 20 - 16)).any()


def test_the_best_are_listed_in_order():
    """`top` names the largest scores, never -inf, as many as there are or as a budget says."""
    scores = torch.tensor([[3.0, 1.0, -torch.inf, 2.0], [-torch.inf, -torch.inf, 0.0, -torch.inf]])
    places, counts = top(scores, 2)
    assert [row[:count].tolist() for row, count in zip(places, counts, strict=True)] == [[0, 3], [2]]
    places, counts = top(scores, 3, torch.tensor([3, 0]))
    assert [row[:count].tolist() for row, count in zip(places, counts, strict=True)] == [[0, 1, 3], []]


class _Products(TorchDispatchMode):
    """Counts the query-key pairs that the library's attention is asked for."""

    pairs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            q, k = args[:2]
            self.pairs += q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [random_lists, random_lines])
def test_the_work_falls_with_what_is_left_out(kind):
    """What is multiplied is what the selection counts, up to the padding of lists; a tenth of it is a tenth."""
    q, k, v, layout = case([(1024, 1024)], 16, 2, 2, 16, 0)
    generator = torch.Generator().manual_seed(0)
    done = {}
    for share in (0.01, 1.0):
        selection = kind(layout, 4, 64, 32, share if kind is random_lists else share / 10, generator)
        with _Products() as products:
            paged_attention(q, k, v, layout, scale=0.3, selection=selection)
        asked = selection.pairs(layout) * 4
        assert asked <= products.pairs <= 2.2 * asked + 4 * 64 * 2048
        done[share] = products.pairs
    assert done[0.01] < done[1.0] / 3
