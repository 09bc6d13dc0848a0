"""Attention through the library's dense kernels: the CPU's path, and a GPU's where no kernel of ours runs.

The sequences of a step are grouped into a few rectangles (`RaggedLayout.rectangles`), so that a layer costs a handful
of calls however many sequences share the batch.
"""

from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from headstart.ops.attention.layout import SHARED_ROWS, RaggedLayout, Rectangle
from headstart.ops.attention.merge import merge_attention
from headstart.ops.linear import widening_pays_from
from headstart.ops.quantized import widen_e4m3


def attend_densely(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    layout: RaggedLayout,
    scale: float,
    window: int | None,
    causal: bool = True,
) -> tuple[Tensor, Tensor]:
    """`paged_attention` of any layout that is on the host, without soft cap and selection."""
    if not causal:
        return attend_to_all(q, k_pages, v_pages, layout, scale)
    if len(layout.rectangles) == 1 and len(layout.query_lengths) == 1:
        keys, values = (read(x, q.dtype) for x in layout.gather(0, k_pages, v_pages))
        return attend_chunk(q, keys, values, scale, window)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    for rectangle in layout.rectangles:
        if len(rectangle.sequences) == 1:
            start = layout.query_starts[rectangle.sequences[0]]
            rows = slice(start, start + rectangle.query_lengths[0])
            gathered = layout.gather(rectangle.sequences[0], k_pages, v_pages)
            keys, values = (read(x, q.dtype) for x in gathered)
            out[rows], lse[rows] = attend_chunk(q[rows], keys, values, scale, window)
        else:
            attend_rectangle(q, k_pages, v_pages, rectangle, scale, window, out, lse)
    return out, lse


def attend_to_all(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, layout: RaggedLayout, scale: float
) -> tuple[Tensor, Tensor]:
    """Every row of a sequence over all of its keys, one call a sequence."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    heads, head_dim = q.shape[1:]
    kv_heads = k_pages.shape[2]
    for s, (first, last) in enumerate(pairwise(layout.query_starts)):
        keys, values = (read(x, q.dtype) for x in layout.gather(s, k_pages, v_pages))
        # The query heads that share a KV head become its query rows, as in a decode.
        folded = q[first:last].view(-1, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3)
        part, part_lse = dense(folded.reshape(1, kv_heads, -1, head_dim), batched(keys), batched(values), scale)
        out[first:last] = part.view(heads, -1, head_dim).transpose(0, 1)
        lse[first:last] = part_lse.reshape(heads, -1).t()
    return out, lse


def read(kept: Tensor, dtype: torch.dtype) -> Tensor:
    """Keys or values as the cache keeps them, in the dtype of the queries."""
    if kept.dtype == torch.float8_e4m3fn and kept.device.type == "cpu":
        return widen_e4m3(kept, torch.empty(kept.shape, dtype=dtype))
    return kept.to(dtype)


def attend_chunk(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> tuple[Tensor, Tensor]:
    """One sequence: `q [Q, H, D]` over `k, v [N, Hkv, D]`, as the keys before the chunk merged with its own."""
    queries, keys = q.shape[0], k.shape[0]
    dtype, before = q.dtype, keys - queries
    if queries == 1 and (window is None or window >= keys):
        # The query heads that share a KV head become its query rows: one pass over the keys serves them all.
        folded = q.view(1, k.shape[1], -1, q.shape[2])
        out, lse = dense(folded, batched(k), batched(v), scale)
        return out.reshape(q.shape), lse.reshape(1, -1)
    half = q.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16)
    if half and queries > SHARED_ROWS and widening_pays_from(dtype) is not None:
        q, k, v = q.float(), k.float(), v.float()
    if window is not None and window < keys:
        left = max(0, before - window + 1)
        k, v = k[left:], v[left:]
        mask = _window_mask(queries, keys - left, window, q.dtype, q.device)
        out, lse = dense(batched(q), batched(k), batched(v), scale, mask=mask[None, None])
    elif before == 0:
        out, lse = dense(batched(q), batched(k), batched(v), scale, causal=True)
    else:
        own = dense(batched(q), batched(k[before:]), batched(v[before:]), scale, causal=True)
        past = dense(batched(q), batched(k[:before]), batched(v[:before]), scale)
        out, lse = merge_attention(*past, *own)
    return out[0].transpose(0, 1).to(dtype), lse[0].transpose(0, 1)


def attend_rectangle(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    rectangle: Rectangle,
    scale: float,
    window: int | None,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Several short sequences in one call over their gathered keys, padded and masked."""
    batch, width = rectangle.rows.shape
    heads, head_dim = q.shape[1:]
    kv_heads = k_pages.shape[2]
    k = read(k_pages.index_select(0, rectangle.pages.flatten()), q.dtype).view(batch, -1, kv_heads, head_dim)
    v = read(v_pages.index_select(0, rectangle.pages.flatten()), q.dtype).view(batch, -1, kv_heads, head_dim)
    mask = _rectangle_mask(rectangle, k.shape[1], window, q.dtype)
    rows = q[rectangle.rows]  # [B, Q, H, D]
    if width == 1:
        folded = rows.view(batch, kv_heads, heads // kv_heads, head_dim)
        part, part_lse = dense(folded, k.transpose(1, 2), v.transpose(1, 2), scale, mask=mask)
        part, part_lse = part.reshape(batch, 1, heads, head_dim), part_lse.reshape(batch, 1, heads)
    else:
        part, part_lse = dense(rows.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale, mask=mask)
        part, part_lse = part.transpose(1, 2), part_lse.transpose(1, 2)
    out[rectangle.rows.flatten()] = part.reshape(-1, heads, head_dim)
    lse[rectangle.rows.flatten()] = part_lse.reshape(-1, heads)


def _rectangle_mask(rectangle: Rectangle, keys: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """Additive `[B, 1, Q, N]`: causal, window and padding; the same for all layers of a step that share a window."""
    if (window, dtype) not in rectangle.masks:
        device = rectangle.rows.device
        lengths = torch.tensor(rectangle.query_lengths, device=device)
        row = torch.arange(rectangle.rows.shape[1], device=device).minimum(lengths[:, None] - 1)
        last = torch.tensor(rectangle.kv_lengths, device=device)[:, None] - lengths[:, None] + row  # [B, Q]
        key = torch.arange(keys, device=device)
        seen = key <= last[..., None]
        if window is not None:
            seen &= key > last[..., None] - window
        mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf)
        rectangle.masks[window, dtype] = mask[:, None]
    return rectangle.masks[window, dtype]


@lru_cache(maxsize=4)
def _window_mask(queries: int, keys: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive `[Q, N]` for the last Q of N positions: causal, and no further back than the window.

    Kept between calls, since the layers of a step ask for the same.
    """
    with torch.inference_mode(False):
        last = torch.arange(keys - queries, keys, device=device)[:, None]
        key = torch.arange(keys, device=device)
        hidden = (key > last) | (key <= last - window)
        return torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)


def batched(x: Tensor) -> Tensor:
    """`[N, H, D]` as `[1, H, N, D]`."""
    return x.transpose(0, 1)[None]


def dense(
    q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`q [B, H, Q, D]`, `k, v [B, Hkv, N, D]` → `out [B, H, Q, D]`, `lse [B, H, Q]` float32; causal wants Q = N."""
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=mask, scale=scale
        )
        return out, lse.float()
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if mask is None and q.dtype in (torch.bfloat16, torch.float16):
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)
        return out, lse
    scores = (q @ k.transpose(-1, -2)).float() * scale
    if causal:
        hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
        scores.masked_fill_(hidden, -torch.inf)
    if mask is not None:
        scores += mask
    lse = torch.logsumexp(scores, -1)
    return torch.exp(scores - lse[..., None]).to(v.dtype) @ v, lse
