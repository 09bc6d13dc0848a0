"""Attention tile by tile in plain PyTorch: the algorithm of the GPU's kernel where one can read it, on any device.

No more than one tile of scores exists at a time, so that memory grows with the length and not with its square
(FlashAttention, arXiv 2205.14135). Tiles have two levels (FastAttention, arXiv 2410.16663): large ones for the two
products, and slices of their rows for the softmax between.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from headstart.ops.attention.layout import RaggedLayout
from headstart.ops.attention.selection import AnySelection
from headstart.ops.attention.tiling_mask import TilingMask


@dataclass(frozen=True)
class Tiling:
    """The sizes of tiles: rows, keys, and the rows of a slice whose softmax is computed at a time."""

    rows: int = 128
    keys: int = 256
    slices: int = 128


def attend_tiled(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    layout: RaggedLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    selection: AnySelection | None = None,
    tiling: Tiling = Tiling(),
) -> tuple[Tensor, Tensor]:
    """`paged_attention` without trees, in float32 or wider; a tile that nobody looks at is skipped."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    mask = _mask(max(tiling.rows, tiling.keys), q.device)
    for s, queries in enumerate(layout.query_lengths):
        k, v = (x.transpose(0, 1) for x in layout.gather(s, k_pages, v_pages))  # [Hkv, N, D]
        for top in range(0, queries, tiling.rows):
            rows = slice(layout.query_starts[s] + top, layout.query_starts[s] + min(top + tiling.rows, queries))
            tile = _RowTile(q[rows], k.shape[0], scale, softcap)
            place = layout.kv_lengths[s] - queries + top
            last = place + tile.rows
            first = 0 if window is None else max(0, place - window + 1)
            for left in range(first // tiling.keys * tiling.keys, last, tiling.keys):
                right = min(left + tiling.keys, last)
                hidden = _hidden(mask, place - left, tile.rows, right - left, window)
                if selection is not None:
                    row, key = (
                        torch.arange(*ends, device=q.device) for ends in ((top, top + tile.rows), (left, right))
                    )
                    looks = selection.looks(s, row, key, layout)  # [R, Hkv or H, C]
                    if not looks.any():
                        continue
                    unseen = ~looks.repeat_interleave(q.shape[1] // looks.shape[1], 1).transpose(0, 1)
                    hidden = unseen if hidden is None else hidden | unseen
                tile.take(k[:, left:right], v[:, left:right], hidden, tiling.slices)
            out[rows], lse[rows] = tile.result(q.dtype)
    return out, lse


def _hidden(mask: TilingMask, ahead: int, rows: int, columns: int, window: int | None) -> Tensor | None:
    """bool `[R, C]`, which keys of a tile its rows must not see; None where they see all."""
    seen = mask.block(ahead, rows, columns)
    hidden = None if seen is True else ~torch.as_tensor(seen, device=mask.triangle.device).expand(rows, columns)
    # What has left the window is a triangle too.
    gone = False if window is None else mask.block(ahead - window, rows, columns)
    if gone is False:
        return hidden
    gone = torch.as_tensor(gone, device=mask.triangle.device).expand(rows, columns)
    return gone if hidden is None else hidden | gone


class _RowTile:
    """The running sums of one tile of rows `[R, H, D]`."""

    def __init__(self, q: Tensor, kv_heads: int, scale: float, softcap: float | None) -> None:
        self.rows, self.heads, head_dim = q.shape
        self.softcap = softcap
        wide = torch.promote_types(q.dtype, torch.float32)
        self.q = (q.to(wide) * scale).transpose(0, 1).reshape(kv_heads, -1, head_dim)  # [Hkv, G x R, D]
        self.acc = torch.zeros_like(self.q)
        self.top = torch.full((self.heads, self.rows, 1), -torch.inf, dtype=wide, device=q.device)
        self.total = torch.zeros_like(self.top)

    def take(self, k: Tensor, v: Tensor, hidden: Tensor | None, slices: int) -> None:
        """Take a tile of keys `[Hkv, C, D]` in: one product, the softmax by slices, one product."""
        product = self.q @ k.to(self.q.dtype).transpose(1, 2)
        scores = product.view(self.heads, self.rows, -1)
        if self.softcap is not None:
            scores.div_(self.softcap).tanh_().mul_(self.softcap)
        if hidden is not None:
            scores.masked_fill_(hidden, -torch.inf)
        shrink = torch.empty_like(self.top)
        for start in range(0, self.rows, slices):
            part = slice(start, start + slices)
            top = torch.maximum(self.top[:, part], scores[:, part].amax(-1, keepdim=True))
            # A row that has seen nothing yet has no largest score to subtract.
            base = top.masked_fill(top == -torch.inf, 0.0)
            shrink[:, part] = torch.exp(self.top[:, part] - base)
            weights = scores[:, part].sub_(base).exp_()
            self.total[:, part] = self.total[:, part] * shrink[:, part] + weights.sum(-1, keepdim=True)
            self.top[:, part] = top
        self.acc = torch.baddbmm(self.acc * shrink.view(self.q.shape[0], -1, 1), product, v.to(self.q.dtype))

    def result(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """`out [R, H, D]` and `lse [R, H]` float32."""
        safe = self.total.masked_fill(self.total == 0.0, 1.0)
        out = self.acc.view(self.heads, self.rows, -1) / safe
        return out.transpose(0, 1).to(dtype), (self.top + safe.log())[..., 0].t().float()


@lru_cache(maxsize=4)
def _mask(side: int, device: torch.device) -> TilingMask:
    """Kept for all layers and steps."""
    with torch.inference_mode(False):
        return TilingMask(side, device)
