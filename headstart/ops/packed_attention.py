"""Causal attention within each document of a flat list of tokens: what training and packed scoring run."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from headstart.ops.attention.choice import forced
from headstart.ops.attention.reach import Reach, seen_mask
from headstart.ops.kernels import has_triton
from headstart.ops.packed_flash import Bounds, bounds, flash_attention

_BLOCK = 128
"""Queries and keys of one block of the GPU's kernel."""


@dataclass(frozen=True)
class Segments:
    """Where the documents of a flat list of T tokens lie.

    Attributes:
        lengths: of each, in tokens; they sum up to T.
        start: `[T]` int32, where in the list each token's document begins.
    """

    lengths: tuple[int, ...]
    start: Tensor

    @classmethod
    def of(cls, lengths: tuple[int, ...], positions: Tensor) -> "Segments":
        """Segments of these lengths, where `positions` `[T]` begin at 0 in each; the device is not waited for."""
        place = torch.arange(positions.shape[0], dtype=torch.int32, device=positions.device)
        return cls(lengths, place - positions.int())


class PackedMask:
    """What the layers of one batch share: the segments, and on a GPU a block mask or bounds for each window size.

    Args:
        segments: the documents.
        flash: attend by the project's own kernel (`packed_flash`) where it knows the rule; None says so where the
            batch is on a GPU and HEADSTART_ATTENTION is `triton`.

    Raises:
        HeadstartError: HEADSTART_ATTENTION names no path.
    """

    def __init__(self, segments: Segments, flash: bool | None = None) -> None:
        self.segments = segments
        self.flash = segments.start.is_cuda and forced() == "triton" and has_triton() if flash is None else flash
        self._blocks: dict[int | None, BlockMask] = {}
        self._bounds: dict[int | None, Bounds] = {}
        self._reached: dict[Reach, BlockMask] = {}

    def prepare(self, windows: set[int | None], reaches: AbstractSet[Reach] = frozenset()) -> None:
        """Make the block masks of these windows and reaches, outside of compiled code."""
        start = self.segments.start
        if start.is_cuda:
            self._blocks = {window: block_mask(start, window) for window in windows}
            self._reached = {reach: reach_block_mask(start, reach) for reach in reaches}
        if self.flash:
            self._bounds = {window: bounds(start, window) for window in windows}

    def block(self, window: int | None, reach: Reach | None = None) -> BlockMask:
        """The block mask of a window, or of a reach."""
        return self._blocks[window] if reach is None else self._reached[reach]

    def bounds(self, window: int | None) -> Bounds:
        """The bounds of a window."""
        return self._bounds[window]


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: PackedMask,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    reach: Reach | None = None,
) -> Tensor:
    """Exact causal attention, differentiable.

    Args:
        q: `[T, H, D]`.
        k, v: `[T, Hkv, D]`, Hkv a divisor of H.
        mask: the documents; prepared for `window` and `reach`.
        scale: factor on query-key products.
        window: how many tokens a query sees, itself included; None is all before it.
        softcap: scores become `softcap * tanh(score / softcap)`.
        reach: which blocks of its document a query sees, by their places alone; without a window.

    Returns:
        `[T, H, D]`.
    """
    if mask.flash and softcap is None and reach is None and q.shape[2] <= 256:
        return flash_attention(q, k, v, mask.bounds(window), scale=scale)[0]
    if q.is_cuda:
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        attend: Any = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
        out = attend(
            q,
            k,
            v,
            score_mod=_softcap_mod(softcap) if softcap is not None else None,
            block_mask=mask.block(window, reach),
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return out[0].transpose(0, 1)
    lengths = mask.segments.lengths
    return _each_document(q, k, v, lengths, scale, window, softcap, reach)  # pyright: ignore[reportCallIssue]


def packed_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: tuple[int, ...],
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The same by its definition, over one dense mask in float64."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(len(document))
    seen = (document[:, None] == document[None]) & (place[:, None] >= place[None])
    if window is not None:
        seen &= place[:, None] - place[None] < window
    groups = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(groups, 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.double(), k) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)


# Compiled code would be made anew for every list of lengths.
@torch.compiler.disable
def _each_document(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: tuple[int, ...],
    scale: float,
    window: int | None,
    softcap: float | None,
    reach: Reach | None,
) -> Tensor:
    parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    return torch.cat([_one_document(*part, scale, window, softcap, reach) for part in parts])


def _one_document(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    reach: Reach | None,
) -> Tensor:
    """One document on a CPU."""
    length, heads = q.shape[:2]
    if reach is not None and reach.whole(length):
        reach = None
    if softcap is None and reach is None and (window is None or window >= length):
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=heads != k.shape[1])
        return out[0].transpose(0, 1)
    groups = heads // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    place = torch.arange(length)
    distance = place[:, None] - place[None]
    seen = (distance >= 0) & (distance < (window or length))
    if reach is not None:
        seen &= seen_mask(reach, length)
    scores = torch.einsum("qhd,khd->hqk", q, k).float() * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights.to(v.dtype), v)


def block_mask(start: Tensor, window: int | None) -> BlockMask:
    """Which blocks of keys a block of queries meets, from where documents begin: no pair of tokens is looked at.

    Args:
        start: `[T]` int32, where each token's document begins.
        window: how many tokens a query sees, itself included; None is all before it.
    """
    size = start.shape[0]
    place = torch.arange(size, dtype=torch.int32, device=start.device)
    # The first key that each query sees. It never falls from one query to the next, so a block's ends tell all of it.
    first = start if window is None else torch.maximum(start, place - (window - 1))

    def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= first[query])

    block = place[: -(-size // _BLOCK)]
    lowest = first[block * _BLOCK] // _BLOCK
    # From here up to the diagonal, every query of the block sees every key.
    whole = (first[(block * _BLOCK + _BLOCK - 1).clamp(max=size - 1)] + _BLOCK - 1) // _BLOCK
    whole = torch.minimum(whole, block)
    if size % _BLOCK:
        # Queries that are not there see nothing.
        whole[-1] = block[-1]
    column = block[None]
    partial = torch.where(column < (whole - lowest)[:, None], lowest[:, None] + column, block[:, None])
    last = block.shape[0] - 1
    return BlockMask.from_kv_blocks(
        (whole - lowest + 1)[None, None],
        partial[None, None],
        (block - whole)[None, None],
        (whole[:, None] + column).clamp(max=last)[None, None],
        BLOCK_SIZE=_BLOCK,
        mask_mod=seen,
        seq_lengths=(size, size),
    )


def reach_block_mask(start: Tensor, reach: Reach) -> BlockMask:
    """The same for a reach: blocks that hold no visible pair are left out, and the rule decides within the others.

    Args:
        start: `[T]` int32, where each token's document begins.
        reach: counted from there.
    """
    size = start.shape[0]
    place = torch.arange(size, dtype=torch.int32, device=start.device)

    # Compiled code takes plain numbers; no block has the number of a stride beyond all places.
    size_of, sink, local, stride = reach.block, reach.sink, reach.local, reach.stride or size + 1

    def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        begin = start[query]
        far = (key - begin) // size_of
        wanted = (far < sink) | ((query - begin) // size_of - far < local) | ((far + 1) % stride == 0)
        return (key <= query) & (key >= begin) & wanted

    first = place[: -(-size // _BLOCK)] * _BLOCK
    last = (first + _BLOCK - 1).clamp(max=size - 1)
    block = (place - start) // size_of
    wide = (block < sink) | ((block + 1) % stride == 0)
    wide = F.pad(wide, (0, len(first) * _BLOCK - size)).view(-1, _BLOCK).any(1)
    near = first[:, None] - last[None] < local * size_of
    looks = (first[None] <= first[:, None]) & (last[None] >= start[first][:, None]) & (wide[None] | near)
    return BlockMask.from_kv_blocks(
        looks.sum(-1, dtype=torch.int32)[None, None],
        (~looks).byte().argsort(stable=True, dim=-1).int()[None, None],
        BLOCK_SIZE=_BLOCK,
        mask_mod=seen,
        seq_lengths=(size, size),
    )


@cache
def _softcap_mod(softcap: float) -> Any:
    def bend(score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return bend


@cache
def _compiled_flex() -> Any:
    config: Any = torch._dynamo.config
    # Each window, reach and length is compiled for, with and without gradients; beyond the limit there would be scores
    # of every pair in memory.
    config.recompile_limit = max(config.recompile_limit, 64)
    return torch.compile(flex_attention, dynamic=False)
