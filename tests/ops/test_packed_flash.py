"""FlashAttention's kernels, forward and backward, against the definition in float64; on a CPU in the interpreter."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.errors import HeadstartError

pytest.importorskip("triton")

from headstart.ops.packed_attention import PackedMask, Segments, packed_attention, packed_attention_reference
from headstart.ops.packed_flash import BlockLists, Tiles, bounds, flash_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCALE = 0.3


# So small that short documents fill several, and of different heights.
SMALL = Tiles(16, 16, 4, 1), Tiles(32, 16, 4, 1), Tiles(16, 32, 4, 1)


def definition(q, k, v, seen):
    """Attention with a dense mask `seen [H, T, T]`, where rows without a key give 0 and -inf."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = (torch.einsum("qhd,khd->hqk", q, k) * SCALE).masked_fill(~seen, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - torch.where(lse.isinf(), 0.0, lse)[..., None])
    return torch.einsum("hqk,khd->qhd", weights, v), lse


def documents(lengths, window=None):
    """`start [T]` and the mask `[T, T]` of documents of these lengths."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(len(document))
    start = (torch.tensor([0, *lengths]).cumsum(0)[:-1])[document]
    distance = place[:, None] - place
    seen = (document[:, None] == document) & (distance >= 0)
    return start.int().to(DEVICE), seen if window is None else seen & (distance < window)


def check(q: Any, k: Any, v: Any, start, window, seen, blocks=None, bound=2e-5):
    """Results and gradients, those by way of the log-sum-exp too, equal the definition's."""
    generator = torch.Generator().manual_seed(1)
    out_weight = torch.randn(q.shape, generator=generator).double().to(DEVICE)
    lse_weight = torch.randn(q.shape[1], q.shape[0], generator=generator).double().to(DEVICE)
    seen = seen.expand(q.shape[1], -1, -1).to(DEVICE)
    narrow, wide = (
        [x.detach().to(DEVICE, dtype).requires_grad_() for x in (q, k, v)] for dtype in (q.dtype, torch.double)
    )
    results = []
    for inputs in (narrow, wide):
        if inputs is narrow:
            out, lse = flash_attention(*inputs, bounds(start, window), scale=SCALE, blocks=blocks, tiles=SMALL)  # pyright: ignore[reportCallIssue]
        else:
            out, lse = definition(*inputs, seen)  # pyright: ignore[reportCallIssue]
        lse = lse.masked_fill(~seen.any(-1), 0.0)
        ((out * out_weight).sum() + (lse * lse_weight).sum()).backward()
        results.append([out, lse, *(x.grad for x in inputs)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), want, atol=bound, rtol=bound)


@settings(max_examples=40 if DEVICE == "cuda" else 8, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    heads=st.sampled_from([(1, 1), (2, 2), (1, 3)]),
    head_dim=st.sampled_from([8, 16, 24]),
    window=st.none() | st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_equals_the_definition(lengths, heads, head_dim, window, seed):
    """Documents that begin anywhere in a tile, grouped heads, windows, head sizes that fill no power of two."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    q, k, v = (torch.randn(tokens, n, head_dim, generator=generator) for n in (heads[0] * heads[1], heads[0], heads[0]))
    start, seen = documents(lengths, window)
    check(q, k, v, start, window, seen)


def test_half_precision_and_slices_of_one_projection():
    """Inputs of 16 bits that lie in one wider tensor."""
    wide = torch.randn(70, 4, 32, generator=torch.Generator().manual_seed(0)).half().to(DEVICE)
    start, seen = documents([33, 37])
    check(wide[:, :2], wide[:, 2:3], wide[:, 3:], start, None, seen, bound=1e-2)


@pytest.mark.parametrize("list_heads", [1, 2])
def test_chosen_blocks(list_heads):
    """Blocks that are left out count neither forward nor backward, and tokens to which nothing is left get zeros."""
    generator = torch.Generator().manual_seed(list_heads)
    lengths, size = [150, 200, 1], 128
    start, seen = documents(lengths)
    mask = torch.rand(list_heads, 3, 3, generator=generator) < 0.6
    mask[0, 1] = False
    whole = mask.repeat_interleave(size, 1).repeat_interleave(size, 2)[:, : len(seen), : len(seen)]
    q, k, v = (torch.randn(len(seen), n, 16, generator=generator) for n in (2, 1, 1))
    seen = seen & whole.repeat_interleave(2 // list_heads, 0)
    check(q, k, v, start, None, seen, BlockLists.of(mask.to(DEVICE), size))


def test_large_scores_do_not_overflow():
    """Scores of ten thousand and more give finite results."""
    q, k, v = (torch.randn(40, 1, 16, generator=torch.Generator().manual_seed(i)) * 100 for i in range(3))
    q, k, v = (x.to(DEVICE).requires_grad_() for x in (q, k, v))
    out, lse = flash_attention(q, k, v, bounds(documents([40])[0]), scale=1.0)
    out.sum().backward()
    assert all(x is not None and x.isfinite().all() for x in (out, lse, q.grad, k.grad, v.grad))


def test_refuses_blocks_that_no_tile_fits():
    with pytest.raises(HeadstartError, match="128"):
        BlockLists.of(torch.ones(1, 4, 4, dtype=torch.bool), 48)


@pytest.mark.parametrize("window", [None, 9])
def test_a_path_of_packed_attention(window):
    """Training attends through the kernel where the mask says so."""
    lengths = (30, 1, 20)
    q, k, v = (torch.randn(51, n, 16, generator=torch.Generator().manual_seed(n)).to(DEVICE) for n in (4, 2, 2))
    positions = torch.cat([torch.arange(length) for length in lengths]).to(DEVICE)
    mask = PackedMask(Segments.of(lengths, positions), flash=True)
    mask.prepare({window})
    out = packed_attention(q, k, v, mask, scale=SCALE, window=window)
    want = packed_attention_reference(q.cpu(), k.cpu(), v.cpu(), lengths, scale=SCALE, window=window)
    torch.testing.assert_close(out.cpu(), want, atol=2e-5, rtol=2e-5)
