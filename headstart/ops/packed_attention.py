"""Causal attention within each document of a flat list of tokens: what training and packed scoring run."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention


@dataclass(frozen=True)
class Segments:
    """Where the documents of a flat list of T tokens lie.

    Attributes:
        lengths: of each, in tokens; they sum up to T.
        document: `[T]` int32, the number of each token's document.
    """

    lengths: tuple[int, ...]
    document: Tensor

    @classmethod
    def of(cls, lengths: tuple[int, ...], positions: Tensor) -> "Segments":
        """Segments of these lengths, where `positions` `[T]` begin at 0 in each; the device is not waited for."""
        return cls(lengths, (positions == 0).cumsum(0, dtype=torch.int32) - 1)


class PackedMask:
    """What the layers of one batch share: the segments, and on a GPU a block mask for each window size."""

    def __init__(self, segments: Segments) -> None:
        self.segments = segments
        self._blocks: dict[int | None, BlockMask] = {}

    def prepare(self, windows: set[int | None]) -> None:
        """Make the block masks of these windows, outside of compiled code."""
        document = self.segments.document
        if document.is_cuda:
            self._blocks = {window: _block_mask(document, window) for window in windows}

    def block(self, window: int | None) -> BlockMask:
        """The block mask of a window."""
        return self._blocks[window]


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: PackedMask,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Exact causal attention, differentiable.

    Args:
        q: `[T, H, D]`.
        k, v: `[T, Hkv, D]`, Hkv a divisor of H.
        mask: the documents; prepared for `window`.
        scale: factor on query-key products.
        window: how many tokens a query sees, itself included; None is all before it.
        softcap: scores become `softcap * tanh(score / softcap)`.

    Returns:
        `[T, H, D]`.
    """
    if q.is_cuda:
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        attend: Any = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
        out = attend(
            q,
            k,
            v,
            score_mod=_softcap_mod(softcap) if softcap is not None else None,
            block_mask=mask.block(window),
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return out[0].transpose(0, 1)
    return _each_document(q, k, v, mask.segments.lengths, scale, window, softcap)  # pyright: ignore[reportCallIssue]


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
) -> Tensor:
    parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    return torch.cat([_one_document(*part, scale, window, softcap) for part in parts])


def _one_document(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """One document on a CPU."""
    length, heads = q.shape[:2]
    if softcap is None and (window is None or window >= length):
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=heads != k.shape[1])
        return out[0].transpose(0, 1)
    groups = heads // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    place = torch.arange(length)
    distance = place[:, None] - place[None]
    seen = (distance >= 0) & (distance < (window or length))
    scores = torch.einsum("qhd,khd->hqk", q, k).float() * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights.to(v.dtype), v)


def _block_mask(document: Tensor, window: int | None) -> BlockMask:
    def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = (query >= key) & (document[query] == document[key])
        return same if window is None else same & (query - key < window)

    size = document.shape[0]
    return _compiled_block_mask()(seen, None, None, size, size, device=document.device)


@cache
def _softcap_mod(softcap: float) -> Any:
    def bend(score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return bend


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=False)


@cache
def _compiled_block_mask() -> Any:
    return torch.compile(create_block_mask, dynamic=False)
