"""Paged attention with its scores written out: what the other paths are held to, and the path for rare features."""

import torch
from torch import Tensor

from headstart.ops.attention.layout import RaggedLayout
from headstart.ops.attention.selection import AnySelection

TREE_ROWS = 64
"""Rows that a tree's masks have bits for; sequences with more are causal whatever theirs say."""
# Query rows that are scored at a time: bounds the memory to rows x keys.
_ROWS = 256


def paged_attention_reference(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    layout: RaggedLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    selection: AnySelection | None = None,
    tree: Tensor | None = None,
    causal: bool = True,
) -> tuple[Tensor, Tensor]:
    """`paged_attention` written out sequence by sequence, in float32 or wider."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    wide, heads = torch.promote_types(q.dtype, torch.float32), q.shape[1]
    for s, queries in enumerate(layout.query_lengths):
        gathered = layout.gather(s, k_pages, v_pages)
        k, v = (x.to(wide).repeat_interleave(heads // x.shape[1], 1).transpose(0, 1) for x in gathered)  # [H, N, D]
        keys, start = k.shape[1], layout.query_starts[s]
        key = torch.arange(keys, device=q.device)
        for top in range(0, queries, _ROWS):
            row = torch.arange(top, min(top + _ROWS, queries), device=q.device)
            scores = q[start + row].to(wide).transpose(0, 1) @ k.transpose(1, 2) * scale  # [H, Q, N]
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            bits = tree[start + row] if tree is not None and queries <= TREE_ROWS else None
            # Every row sees what the last one does where there is no causality.
            place = row if causal else torch.full_like(row, queries - 1)
            seen = _seen(place, key, keys - queries, window, bits)[None]
            if selection is not None:
                looks = selection.looks(s, row, key, layout)  # [Q, Hkv or H, N]
                seen = seen & looks.repeat_interleave(heads // looks.shape[1], 1).transpose(0, 1)
            scores = scores.masked_fill(~seen, -torch.inf)
            total = torch.logsumexp(scores, -1)  # [H, Q]
            safe = total.masked_fill(total == -torch.inf, 0.0)
            part = torch.exp(scores - safe[..., None]) @ v
            out[start + row] = part.transpose(0, 1).to(q.dtype)
            lse[start + row] = total.t().float()
    return out, lse


def _seen(row: Tensor, key: Tensor, before: int, window: int | None, bits: Tensor | None) -> Tensor:
    """bool `[Q, N]`: which keys the rows see, the first of which stands at place `before`."""
    last = (before + row)[:, None]
    if bits is None:
        seen = key <= last
    else:
        chosen = (bits[:, None] >> (key - before).clamp(0, TREE_ROWS - 1)) & 1 == 1
        seen = (key < before) | chosen
    return seen if window is None else seen & (key > last - window)
