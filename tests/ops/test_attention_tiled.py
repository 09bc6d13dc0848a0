"""Attention by tiles of two levels, and the small mask that all tiles share."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.ops.attention import RaggedLayout, Selection, paged_attention_reference
from headstart.ops.attention.tiled import Tiling, attend_tiled
from headstart.ops.attention.tiling_mask import TilingMask


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (8, 4), (4, 8), (5, 7), (1, 8)])
def test_every_tile_of_the_causal_mask(rows, columns):
    """A tile cut from the triangle is the slice of the whole mask, wherever it lies, with keys before the rows too."""
    mask = TilingMask(8)
    whole = torch.ones(40, 60, dtype=torch.bool).tril(20)
    for top in range(40 - rows):
        for left in range(60 - columns):
            want = whole[top : top + rows, left : left + columns]
            got = mask.block(top + 20 - left, rows, columns)
            assert torch.equal(torch.as_tensor(got).expand(rows, columns), want)
            assert isinstance(got, bool) == (bool(want.all()) or not bool(want.any()))
            # No copy: a view of the one triangle.
            assert isinstance(got, bool) or got.untyped_storage().data_ptr() == mask.triangle.data_ptr()


def test_the_mask_does_not_grow():
    """Its bytes are four times the square of a tile's side."""
    assert TilingMask(64).triangle.untyped_storage().nbytes() == 4 * 64**2


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 50)), min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (2, 2), (1, 3)]),
    tiling=st.builds(Tiling, st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
    window=st.none() | st.integers(1, 50),
    softcap=st.none() | st.just(3.0),
    share=st.none() | st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_equals_the_reference(lengths, heads, tiling, window, softcap, share, seed):
    """Whatever the sizes of tiles and slices, remainders included; selected pages are the block-sparse variant."""
    generator = torch.Generator().manual_seed(seed)
    totals = [queries + before for queries, before in lengths]
    counts = [-(-total // 8) for total in totals]
    tables = [part.tolist() for part in torch.randperm(sum(counts), generator=generator).split(counts)]
    layout = RaggedLayout([queries for queries, _ in lengths], totals, tables, 8)
    k, v = torch.randn(2, sum(counts), 8, heads[0], 16, generator=generator)
    q = torch.randn(layout.num_rows, heads[0] * heads[1], 16, generator=generator)
    selection = None
    if share is not None:
        blocks = -(-max(layout.query_lengths) // 12)
        chosen = torch.rand(len(lengths), blocks, heads[0], max(counts), generator=generator) < share
        selection = Selection(chosen, query_block=12)
    rule = {"scale": 0.3, "window": window, "softcap": softcap, "selection": selection}
    out, lse = attend_tiled(q, k, v, layout, **rule, tiling=tiling)
    want, want_lse = paged_attention_reference(q.double(), k.double(), v.double(), layout, **rule)
    torch.testing.assert_close(out.double(), want, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(lse, want_lse, atol=2e-5, rtol=2e-5)


def test_no_matrix_of_all_scores():
    """The largest tensor that is made grows with the length, not with its square."""
    largest = []
    for length in (256, 1024):
        layout = RaggedLayout([length], [length], [range(length // 16)], 16)
        q, k = torch.randn(length, 1, 16), torch.randn(length // 16, 16, 1, 16)
        with torch.profiler.profile(profile_memory=True) as profile:
            attend_tiled(q, k, k, layout, scale=1.0, tiling=Tiling(32, 32, 32))
        largest.append(max(event.cpu_memory_usage for event in profile.events() or []))
    assert largest[1] <= 4 * largest[0] + 4096
