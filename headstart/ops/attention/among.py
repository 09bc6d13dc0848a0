"""Attention of chosen rows of one sequence over chosen keys of its own."""

import torch
from torch import Tensor

from headstart.ops.attention.dense import attend_chunk, batched, dense


def attention_among(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_places: Tensor,
    key_places: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal attention of some rows of one sequence over some of its keys.

    Args:
        q: `[R, H, D]`.
        k, v: `[N, Hkv, D]`, H a multiple of Hkv.
        query_places: int64 `[R]`, ascending; the row at place p sees the given keys at places up to p.
        key_places: int64 `[N]`, ascending; each row's own place is among them.
        scale, window, softcap: as for `paged_attention`, the window counted in places.

    Returns:
        `out [R, H, D]` in q's dtype and `lse [R, H]` float32.
    """
    rows, keys = len(query_places), len(key_places)
    if window is None and softcap is None and torch.equal(query_places, key_places[keys - rows :]):
        return attend_chunk(q, k, v, scale, None)
    if softcap is not None:
        return attention_among_reference(q, k, v, query_places, key_places, scale=scale, window=window, softcap=softcap)
    mask = torch.zeros(rows, keys, dtype=q.dtype, device=q.device)
    mask.masked_fill_(_unseen(query_places, key_places, window), -torch.inf)
    out, lse = dense(batched(q), batched(k), batched(v), scale, mask=mask[None, None])
    return out[0].transpose(0, 1).to(q.dtype), lse[0].transpose(0, 1)


def attention_to_all(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of rows `q [R, H, D]` over every key `k, v [N, Hkv, D]`, wherever they stand.

    Returns:
        `out [R, H, D]` in q's dtype and `lse [R, H]` float32.
    """
    out, lse = dense(batched(q), batched(k), batched(v), scale)
    return out[0].transpose(0, 1).to(q.dtype), lse[0].transpose(0, 1)


def attention_among_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_places: Tensor,
    key_places: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`attention_among` with its scores written out, in float32 or wider."""
    groups, wide = q.shape[1] // k.shape[1], torch.promote_types(q.dtype, torch.float32)
    k, v = (each.to(wide).repeat_interleave(groups, 1).transpose(0, 1) for each in (k, v))  # [H, N, D]
    scores = q.to(wide).transpose(0, 1) @ k.transpose(1, 2) * scale  # [H, R, N]
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(_unseen(query_places, key_places, window), -torch.inf)
    lse = torch.logsumexp(scores, -1)
    out = torch.exp(scores - lse[..., None]) @ v
    return out.transpose(0, 1).to(q.dtype), lse.t().float()


def _unseen(query_places: Tensor, key_places: Tensor, window: int | None) -> Tensor:
    """bool `[R, N]`: which keys lie behind a row, or too far before it."""
    hidden = key_places > query_places[:, None]
    return hidden if window is None else hidden | (key_places <= query_places[:, None] - window)
