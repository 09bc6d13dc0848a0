"""Attention within packed documents against one dense mask in float64, forward and backward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from headstart.ops.packed_attention import (
    PackedMask,
    Segments,
    block_mask,
    packed_attention,
    packed_attention_reference,
)


def mask_of(lengths: tuple[int, ...]) -> PackedMask:
    positions = torch.cat([torch.arange(length) for length in lengths])
    return PackedMask(Segments.of(lengths, positions))


def heads(tokens: int, count: int, size: int, seed: int) -> Tensor:
    return torch.randn(tokens, count, size, generator=torch.Generator().manual_seed(seed))


def naive(
    q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], window: int | None, softcap: float | None
) -> Tensor:
    """Query by query, without any mask."""
    rows, start = [], 0
    groups = q.shape[1] // k.shape[1]
    for length in lengths:
        for place in range(start, start + length):
            first = start if window is None else max(start, place - window + 1)
            keys, values = (x[first : place + 1].repeat_interleave(groups, 1) for x in (k, v))
            scores = (q[place] * keys).sum(-1) * 0.3
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            rows.append((scores.softmax(0)[..., None] * values).sum(0))
        start += length
    return torch.stack(rows)


@given(
    lengths=st.lists(st.integers(1, 17), min_size=1, max_size=6).map(tuple),
    kv_heads=st.sampled_from([1, 2, 3]),
    groups=st.sampled_from([1, 2, 4]),
    window=st.sampled_from([None, 1, 2, 5, 40]),
    softcap=st.sampled_from([None, 2.0]),
    seed=st.integers(0, 5),
)
@settings(max_examples=50, deadline=None)
def test_equals_the_definition(
    lengths: tuple[int, ...], kv_heads: int, groups: int, window: int | None, softcap: float | None, seed: int
) -> None:
    tokens = sum(lengths)
    inputs = [heads(tokens, count, 8, seed + i) for i, count in enumerate((kv_heads * groups, kv_heads, kv_heads))]
    options = {"scale": 0.3, "window": window, "softcap": softcap}
    narrow = [x.clone().requires_grad_() for x in inputs]
    wide = [x.double().requires_grad_() for x in inputs]
    out = packed_attention(*narrow, mask_of(lengths), **options)
    expected = packed_attention_reference(*wide, lengths, **options)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(expected, naive(*wide, lengths, window, softcap))
    outer = heads(*out.shape, seed=99)
    ours = torch.autograd.grad(out, narrow, outer)
    for mine, theirs in zip(ours, torch.autograd.grad(expected, wide, outer.double()), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-5)


def test_documents_do_not_see_one_another() -> None:
    lengths = (5, 1, 9)
    q, k, v = (heads(15, 2, 4, seed) for seed in range(3))
    before = packed_attention(q, k, v, mask_of(lengths), scale=0.5)
    for x in (q, k, v):
        x[5] += 100.0
    after = packed_attention(q, k, v, mask_of(lengths), scale=0.5)
    others = torch.arange(15) != 5
    assert torch.equal(before[others], after[others])
    assert torch.equal(after[5], v[5])


def test_segments_tell_where_each_document_begins() -> None:
    segments = mask_of((2, 1, 3)).segments
    assert segments.start.tolist() == [0, 0, 2, 3, 3, 3]
    assert segments.start.dtype == torch.int32


@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=6),
    aligned=st.booleans(),
    window=st.sampled_from([None, 1, 127, 128, 129, 300, 5000]),
)
@settings(max_examples=40, deadline=None)
def test_the_block_mask_is_what_trying_every_pair_gives(lengths: list[int], aligned: bool, window: int | None) -> None:
    if aligned:
        lengths = [*lengths, 128 - sum(lengths) % 128]
    start = mask_of(tuple(lengths)).segments.start
    size = len(start)

    def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = (query >= key) & (start[query] == start[key])
        return same if window is None else same & (query - key < window)

    ours, tried = block_mask(start, window), create_block_mask(seen, None, None, size, size, device="cpu")
    for kind in ("kv", "q", "full_kv", "full_q"):
        assert torch.equal(blocks(ours, kind), blocks(tried, kind)), kind
    query, key = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    nought = torch.zeros((), dtype=torch.int64)
    assert torch.equal(ours.mask_mod(nought, nought, query, key), seen(nought, nought, query, key))


def blocks(mask: BlockMask, kind: str) -> Tensor:
    """Which blocks are named, as a matrix: the kernel reads so many of the indices as the count says."""
    count, indices = getattr(mask, f"{kind}_num_blocks")[0, 0], getattr(mask, f"{kind}_indices")[0, 0].long()
    named = torch.arange(indices.shape[1]) < count[:, None]
    return torch.zeros(indices.shape, dtype=torch.int32).scatter_add_(1, indices, named.int())


@pytest.mark.parametrize("window", [None, 3])
def test_bfloat16_rounds_and_does_no_worse(window: int | None) -> None:
    lengths = (20, 7)
    inputs = [heads(27, count, 8, i) for i, count in enumerate((4, 2, 2))]
    out = packed_attention(*(x.bfloat16() for x in inputs), mask_of(lengths), scale=0.3, window=window)
    assert out.dtype == torch.bfloat16
    expected = packed_attention_reference(*(x.bfloat16() for x in inputs), lengths, scale=0.3, window=window)
    torch.testing.assert_close(out.float(), expected.float(), rtol=0.03, atol=0.03)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (64, None), (None, 20.0)])
@pytest.mark.parametrize("lengths", [(100, 1, 300, 111, 512), (700, 3, 250)])
def test_the_gpu_kernel_equals_the_definition(
    lengths: tuple[int, ...], window: int | None, softcap: float | None
) -> None:
    inputs = [heads(sum(lengths), count, 64, i) for i, count in enumerate((8, 2, 2))]
    there = [x.cuda().requires_grad_() for x in inputs]
    positions = torch.cat([torch.arange(length) for length in lengths]).cuda()
    mask = PackedMask(Segments.of(lengths, positions))
    mask.prepare({window})
    out = packed_attention(*there, mask, scale=0.125, window=window, softcap=softcap)
    wide = [x.double().requires_grad_() for x in inputs]
    expected = packed_attention_reference(*wide, lengths, scale=0.125, window=window, softcap=softcap)
    torch.testing.assert_close(out.cpu().double(), expected, rtol=5e-3, atol=5e-3)
    outer = heads(*out.shape, seed=99)
    ours = torch.autograd.grad(out, there, outer.cuda())
    for mine, theirs in zip(ours, torch.autograd.grad(expected, wide, outer.double()), strict=True):
        torch.testing.assert_close(mine.cpu().double(), theirs, rtol=2e-2, atol=2e-2)
