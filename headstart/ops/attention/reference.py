"""Paged attention with its scores written out: what the other paths are held to, and the path for rare features."""

import torch
from torch import Tensor

from headstart.ops.attention.layout import RaggedLayout, Rectangle, Selection

# Query rows that are scored at a time: bounds the memory to rows x keys.
_PLAIN_ROWS = 256


def paged_attention_reference(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    layout: RaggedLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    selection: Selection | None = None,
) -> tuple[Tensor, Tensor]:
    """`paged_attention` written out sequence by sequence in the precision of q."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    for rectangle in layout.rectangles:
        _attend_plainly(q, k_pages, v_pages, layout, rectangle, scale, window, softcap, selection, out, lse)
    return out, lse


def _attend_plainly(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    layout: RaggedLayout,
    rectangle: Rectangle,
    scale: float,
    window: int | None,
    softcap: float | None,
    selection: Selection | None,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Each sequence of a rectangle with its scores written out: the reference, and the path for the rare features."""
    for i, s in enumerate(rectangle.sequences):
        k, v = rectangle.keys(k_pages, i), rectangle.keys(v_pages, i)
        groups = q.shape[1] // k.shape[1]
        wide = torch.promote_types(q.dtype, torch.float32)
        k = k.to(wide).repeat_interleave(groups, 1).transpose(0, 1)  # [H, N, D]
        v = v.to(wide).repeat_interleave(groups, 1).transpose(0, 1)
        keys, start, queries = k.shape[1], layout.query_starts[s], rectangle.query_lengths[i]
        key = torch.arange(keys, device=q.device)
        for top in range(0, queries, _PLAIN_ROWS):
            row = torch.arange(top, min(top + _PLAIN_ROWS, queries), device=q.device)
            last = (keys - queries + row)[:, None]
            scores = q[start + row].to(wide).transpose(0, 1) @ k.transpose(1, 2) * scale  # [H, Q, N]
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            hidden = (key > last)[None]
            if window is not None:
                hidden = hidden | (key <= last - window)
            if selection is not None:
                chosen = selection.pages[s, row // selection.query_block]  # [Q, Hkv, P]
                chosen = chosen[:, :, key // layout.page_size].repeat_interleave(groups, 1)
                hidden = hidden | ~chosen.transpose(0, 1)
            scores = scores.masked_fill(hidden, -torch.inf)
            total = torch.logsumexp(scores, -1)  # [H, Q]
            safe = total.masked_fill(total == -torch.inf, 0.0)
            part = torch.exp(scores - safe[..., None]) @ v
            out[start + row] = part.transpose(0, 1).to(q.dtype)
            lse[start + row] = total.t().float()
