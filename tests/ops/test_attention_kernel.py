"""The Triton kernel of paged attention against the written-out reference; on a CPU in Triton's interpreter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.ops.attention import KeyBlocks, PagedIndex, RaggedLayout, Selection, paged_attention_reference, write_kv

pytest.importorskip("triton")

from headstart.ops.attention.launch import Shape, attend_on_gpu
from headstart.ops.attention.library import merge_rows
from headstart.ops.attention.lists import lines_of, listed, stacked

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# On a CPU the tiles are as small as the kernel lets them be, so that short sequences fill several.
SMALL = (Shape(16, 16, 4, 2), Shape(64, 16, 4, 2))


def case(lengths, page_size, kv_heads, group, head_dim, seed, scattered=True, dtype=torch.float32):
    """Sequences of (query rows, keys before them): `q, k_pages, v_pages, layout`. Slots that hold no key are NaN."""
    generator = torch.Generator().manual_seed(seed)
    totals = [queries + before for queries, before in lengths]
    counts = [-(-total // page_size) for total in totals]
    order = torch.randperm(sum(counts), generator=generator) if scattered else torch.arange(sum(counts))
    tables = [part.tolist() for part in (order + 1).split(counts)]
    pools = torch.full((2, sum(counts) + 1, page_size, kv_heads, head_dim), torch.nan)
    k, v = torch.randn(2, sum(totals), kv_heads, head_dim, generator=generator)
    write_kv(pools[0], pools[1], k, v, RaggedLayout(totals, totals, tables, page_size).slots)
    layout = RaggedLayout([queries for queries, _ in lengths], totals, tables, page_size, DEVICE)
    q = torch.randn(layout.num_rows, kv_heads * group, head_dim, generator=generator)
    return *(x.to(DEVICE, dtype) for x in (q, *pools)), layout


def check(q, k_pages, v_pages, layout, shapes=SMALL, bound=2e-5, contiguous=False, blocks=None, tree=None, **rule):
    """The kernel's result equals the reference's in float64."""
    rule = {"scale": 0.3} | rule
    into = torch.full_like(q, torch.nan), torch.full(q.shape[:2], torch.nan, device=DEVICE)
    given = {"into": into, "shapes": shapes, "contiguous": contiguous, "blocks": blocks, "tree": tree}
    out, lse = attend_on_gpu(q, k_pages, v_pages, layout.index, **given, **rule)
    wide = (x.double() for x in (q, k_pages, v_pages))
    want, want_lse = paged_attention_reference(*wide, layout, selection=blocks, tree=tree, **rule)
    assert out.dtype == q.dtype
    torch.testing.assert_close(out.double(), want, atol=bound, rtol=bound)
    torch.testing.assert_close(lse, want_lse, atol=bound, rtol=bound)


@settings(max_examples=40 if DEVICE == "cuda" else 6, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 50)), min_size=1, max_size=3),
    page_size=st.sampled_from([1, 3, 16, 32]),
    heads=st.sampled_from([(1, 1), (2, 2), (1, 3), (1, 8)]),
    head_dim=st.sampled_from([16, 24, 32]),
    window=st.none() | st.integers(1, 50),
    softcap=st.none() | st.just(5.0),
    seed=st.integers(0, 2**31),
    scattered=st.booleans(),
    tensor_maps=st.booleans(),
)
def test_equals_the_reference(lengths, page_size, heads, head_dim, window, softcap, seed, scattered, tensor_maps):
    """Any mix of chunks and decodes, page size, grouping, window and soft cap."""
    q, k, v, layout = case(lengths, page_size, *heads, head_dim, seed, scattered)
    shapes = SMALL[0], Shape(64, 16, 4, 2, tensor_maps=tensor_maps)
    check(q, k, v, layout, shapes, window=window, softcap=softcap, contiguous=layout.is_contiguous)


@pytest.mark.parametrize("waves", [1, 4, 16])
def test_splits_of_long_contexts_merge(waves):
    """However finely the work is cut, decodes of very different lengths come out the same."""
    q, k, v, layout = case([(1, 300), (1, 5), (3, 100), (1, 0)], 16, 2, 2, 16, 0)
    check(q, k, v, layout, (Shape(16, 16, waves=waves), None))


@pytest.mark.parametrize(("window", "tensor_maps"), [(None, True), (None, False), (20, True)])
def test_half_precision(window, tensor_maps):
    """Inputs of 16 bits cost their rounding and no more, with the values multiplied a round behind the keys."""
    q, k, v, layout = case([(20, 50), (1, 70)], 16, 1, 2, 32, 0, dtype=torch.float16)
    shapes = SMALL[0], Shape(64, 16, 4, 3, tensor_maps=tensor_maps, behind=True)
    check(q, k, v, layout, shapes, bound=2e-3, window=window)


def test_rows_of_a_wider_tensor():
    """Queries may be a part of a larger tensor, as they come out of a fused projection."""
    q, k, v, layout = case([(20, 10), (1, 30)], 16, 2, 2, 16, 0)
    wide = torch.full((q.shape[0], 9, 16), torch.nan, device=DEVICE)
    wide[:, 2:6] = q
    check(wide[:, 2:6], k, v, layout)


def test_a_layout_of_device_buffers():
    """A decode step whose unused rows have no keys: their output is 0, their log-sum-exp -inf."""
    q, k, v, layout = case([(1, 40), (1, 7)], 16, 1, 2, 16, 0)
    index = layout.index
    table = torch.zeros(4, index.page_table.shape[1], dtype=torch.int32, device=DEVICE)
    table[:2] = index.page_table
    lengths = torch.tensor([41, 8, 0, 0], dtype=torch.int32, device=DEVICE)
    starts = torch.arange(5, dtype=torch.int32, device=DEVICE)
    padded = torch.cat([q, torch.full_like(q, torch.nan)])
    out, lse = attend_on_gpu(padded, k, v, PagedIndex(starts, lengths, table, 1, 512), scale=0.3, shapes=SMALL)
    want, want_lse = paged_attention_reference(q, k, v, layout, scale=0.3)
    torch.testing.assert_close(out[:2], want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse[:2], want_lse, atol=1e-5, rtol=1e-5)
    assert (out[2:] == 0).all() and (lse[2:] == -torch.inf).all()


@settings(max_examples=6, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 40)), min_size=1, max_size=2),
    page_size=st.sampled_from([4, 16]),
    query_block=st.sampled_from([4, 12, 64]),
    window=st.none() | st.integers(1, 30),
    seed=st.integers(0, 2**31),
)
def test_selected_pages(lengths, page_size, query_block, window, seed):
    """A selection of pages, per KV head and block of queries, equals masking the rest."""
    q, k, v, layout = case(lengths, page_size, 2, 2, 16, seed)
    blocks, pages = -(-layout.index.max_query // query_block), -(-layout.index.max_kv // page_size)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(len(lengths), blocks, 2, pages, generator=generator) < 0.5
    selection = Selection(chosen.to(DEVICE), query_block)
    lists = selection.key_blocks(layout)
    keys = torch.arange(layout.kv_lengths[0], device=DEVICE)
    rows = torch.arange(layout.query_lengths[0], device=DEVICE)
    causal = keys <= rows[:, None, None] + lengths[0][1]
    assert torch.equal(lists.looks(0, rows, keys, layout) & causal, selection.looks(0, rows, keys, layout) & causal)
    check(q, k, v, layout, blocks=lists, window=window)


def test_lists_of_blocks_per_query_head():
    """Lists of blocks of keys that are not pages, another for each query head."""
    q, k, v, layout = case([(40, 60), (3, 20)], 8, 2, 2, 16, 0)
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 4, (2, 4, 3), generator=generator, dtype=torch.int32)
    picks = torch.rand(2, 4, 3, 4, generator=generator).argsort(-1).sort(-1).values.int()
    blocks = KeyBlocks(picks.to(DEVICE), counts.to(DEVICE), query_block=16, key_block=32)
    check(q, k, v, layout, blocks=blocks)


@settings(max_examples=30 if DEVICE == "cuda" else 8, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 60)), min_size=1, max_size=2),
    page_size=st.sampled_from([3, 16]),
    blocks=st.sampled_from([(16, 16), (4, 4), (8, 32), (64, 16)]),
    share=st.sampled_from([0.02, 0.2]),
    window=st.none() | st.integers(1, 30),
    per_query_head=st.booleans(),
    scattered=st.booleans(),
    tensor_maps=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_bands_and_columns(lengths, page_size, blocks, share, window, per_query_head, scattered, tensor_maps, seed):
    """Heads with diagonals and columns, beside heads with lists of blocks."""
    q, k, v, layout = case(lengths, page_size, 2, 2, 16, seed, scattered)
    generator = torch.Generator().manual_seed(seed)
    heads, (query_block, key_block) = 4 if per_query_head else 2, blocks
    parts = []
    for length in layout.kv_lengths:
        distances, columns = torch.rand(2, heads, length, generator=generator) < share
        distances[0] = columns[0] = False
        places, counts = listed(columns.to(DEVICE))
        parts.append(lines_of(distances.to(DEVICE), length, places, counts, query_block, key_block))
    shape = len(lengths), heads, -(-max(layout.query_lengths) // query_block), -(-max(layout.kv_lengths) // key_block)
    chosen = torch.rand(shape, generator=generator) < 0.5
    chosen[:, 1:] = False
    lists, counts = listed(chosen.to(DEVICE))
    selection = KeyBlocks(lists, counts, query_block, key_block, stacked(parts))
    shapes = SMALL[0], Shape(64, 16, 4, 2, tensor_maps=tensor_maps)
    check(q, k, v, layout, shapes, blocks=selection, window=window, contiguous=layout.is_contiguous)


@pytest.mark.parametrize("group", [1, 2])
def test_trees(group):
    """Each row of a draft sees the context and those of its siblings that its mask names."""
    q, k, v, layout = case([(7, 30), (1, 12), (64, 3)], 16, 1, group, 16, 0)
    generator = torch.Generator().manual_seed(0)
    tree = torch.randint(-(2**63), 2**63 - 1, (layout.num_rows,), generator=generator)
    own = torch.cat([torch.arange(queries) for queries in layout.query_lengths])
    tree |= torch.ones_like(tree) << own
    check(q, k, v, layout, (Shape(16, 16), None), tree=tree.to(DEVICE))


def test_merging_rows():
    """Two results over disjoint keys become one, in another order of heads and rows; an empty side changes nothing."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 11, 24, generator=generator).to(DEVICE)
    lse_a, lse_b = torch.randn(2, 3, 11, generator=generator).to(DEVICE)
    lse_b[:, 4] = -torch.inf
    b[:, 4] = 0.0
    out, lse = torch.full((11, 3, 24), torch.nan, device=DEVICE), torch.full((11, 3), torch.nan, device=DEVICE)
    merge_rows(a, lse_a, b, lse_b, out, lse)
    whole = torch.logaddexp(lse_a, lse_b)
    want = a * (lse_a - whole).exp()[..., None] + b * (lse_b - whole).exp()[..., None]
    torch.testing.assert_close(out, want.transpose(0, 1))
    torch.testing.assert_close(lse, whole.t())
    torch.testing.assert_close(out[4], a[:, 4])
