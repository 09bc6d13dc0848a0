"""Attention over chosen keys without a kernel of ours: what is not looked at is neither read nor multiplied."""

import torch
from torch import Tensor

from headstart.ops.attention.dense import dense, read
from headstart.ops.attention.layout import RaggedLayout
from headstart.ops.attention.merge import merge_attention
from headstart.ops.attention.selection import KeyBlocks

# Numbers of keys, values and masks that are gathered at a time: what a core's caches and the allocator bear well.
_GATHERED = 1 << 22
# Blocks of query rows whose lists are written out at a time.
_BLOCKS = 64


def attend_sparsely(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    layout: RaggedLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    selection: KeyBlocks,
) -> tuple[Tensor, Tensor]:
    """`paged_attention` with a selection; the work falls with what it leaves out."""
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.full(q.shape[:2], -torch.inf, dtype=torch.float32, device=q.device)
    for s, (queries, length) in enumerate(zip(layout.query_lengths, layout.kv_lengths, strict=True)):
        start = layout.query_starts[s]
        k, v = layout.gather(s, k_pages, v_pages)
        sequence = _Sequence(q[start : start + queries], k, v, length - queries, scale, window, softcap)
        for first in range(0, -(-queries // selection.query_block), _BLOCKS):
            last = min(first + _BLOCKS, -(-queries // selection.query_block))
            rows = slice(start + first * selection.query_block, start + min(last * selection.query_block, queries))
            sequence.attend(selection, s, first, last, out[rows], lse[rows])
    return out, lse


class _Sequence:
    """One sequence's rows `[Q, H, D]`, its keys and values `[N, Hkv, D]`, and how they meet."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        place: int,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> None:
        self.q, self.place = q, place
        self.scale, self.window, self.softcap = scale, window, softcap
        self.length, self.kv_heads = k.shape[:2]
        self.k, self.v = k.reshape(-1, k.shape[2]), v.reshape(-1, v.shape[2])

    def attend(self, selection: KeyBlocks, s: int, first: int, last: int, out: Tensor, lse: Tensor) -> None:
        """The blocks `first` to `last` of query rows, into their rows of `out [R, H, D]` and `lse [R, H]`."""
        queries, size = len(out), selection.query_block
        heads, head_dim = self.q.shape[1:]
        lists, blocks = selection.blocks.shape[1], last - first
        width = min(size, queries)
        rows = torch.arange(blocks * width, device=out.device).view(blocks, width)
        inside = rows < queries
        rows = rows.clamp(max=queries - 1)
        # A list's heads and its block's rows: [Hb x b, H / Hb, R, D].
        asked = self.q[first * size : first * size + queries][rows].unflatten(2, (lists, heads // lists))
        asked = asked.permute(2, 0, 3, 1, 4).flatten(0, 1)
        last_seen = (self.place + first * size + rows).repeat(lists, 1)  # [Hb x b, R]
        kv_head = torch.arange(lists, device=out.device).repeat_interleave(blocks) * self.kv_heads // lists
        found = torch.zeros(asked.shape, dtype=torch.float32, device=out.device)
        found_lse = torch.full(asked.shape[:3], -torch.inf, dtype=torch.float32, device=out.device)
        every, some = self._keys(selection, s, first, last)
        for keys, rows_differ in ((every, False), (some, True)):
            counts = (keys < self.length).sum(-1)
            for part, most in _parts(counts, width + 2 * head_dim):
                places = keys[part, :most]
                seen = (places < self.length)[:, None]
                if rows_differ:
                    seen = seen & (places[:, None] <= last_seen[part][..., None])
                    if self.window is not None:
                        seen &= places[:, None] > last_seen[part][..., None] - self.window
                slots = (places.clamp(max=self.length - 1) * self.kv_heads + kv_head[part, None]).flatten()
                k, v = (
                    read(pool.index_select(0, slots), self.q.dtype).view(len(part), 1, most, head_dim)
                    for pool in (self.k, self.v)
                )
                met = self._meet(asked[part], k, v, seen[:, None])
                found[part], found_lse[part] = merge_attention(found[part], found_lse[part], *met)
        # Back to rows and heads; rows behind the last are left out.
        found = found.view(lists, blocks, heads // lists, width, head_dim).permute(1, 3, 0, 2, 4)
        out.copy_(found[inside].flatten(1, 2))
        lse.copy_(found_lse.view(lists, blocks, heads // lists, width).permute(1, 3, 0, 2)[inside].flatten(1, 2))

    def _keys(self, selection: KeyBlocks, s: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """The places of the keys that each block looks at, int64 `[Hb x b, M]`: those that all its rows see, and those
        that some see. What counts comes in front; the rest is `length`."""
        low = self.place + torch.arange(first, last, device=self.q.device)[:, None] * selection.query_block
        high = (low + selection.query_block).clamp(max=self.length) - 1
        starts, there = selection.runs(s, self.place, first, last)
        starts = _in_front(starts, there & (starts <= high), self.length)
        within = torch.arange(selection.key_block, device=starts.device)
        columns, single = selection.singles(s, self.place, first, last)
        singles = _in_front(columns[:, None].expand(single.shape), single, self.length)
        keys = torch.cat((singles, (starts[..., None] + within).flatten(2)), -1)
        seen, every = (keys >= 0) & (keys <= high), keys <= low
        if self.window is not None:
            seen, every = seen & (keys > low - self.window), every & (keys > high - self.window)
        whole, part = (_in_front(keys, chosen, self.length) for chosen in (seen & every, seen & ~every))
        return whole.flatten(0, 1), part.flatten(0, 1)

    def _meet(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """`q [n, G, R, D]`, `k, v [n, 1, M, D]`, `seen [n, 1, R or 1, M]` → `out [n, G, R, D]`, `lse [n, G, R]`."""
        if q.dtype in (torch.bfloat16, torch.float16) and q.device.type == "cpu":
            q, k, v = q.float(), k.float(), v.float()
        if self.softcap is None:
            mask = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill_(~seen, -torch.inf)
            out, lse = dense(q, k, v, self.scale, mask=mask.expand(-1, -1, q.shape[2], -1))
        else:
            scores = self.softcap * torch.tanh((q @ k.transpose(-1, -2)).float() * self.scale / self.softcap)
            scores = scores.masked_fill(~seen, -torch.inf)
            lse = torch.logsumexp(scores, -1)
            out = torch.exp(scores - lse[..., None].clamp(min=torch.finfo(scores.dtype).min)).to(v.dtype) @ v
        nothing = ~seen.any(-1).expand(lse.shape)
        return out.masked_fill(nothing[..., None], 0.0), lse.masked_fill(nothing, -torch.inf).float()


def _in_front(keys: Tensor, chosen: Tensor, none: int) -> Tensor:
    """The chosen of int64 `[..., M]` in front, in their order, cut behind the longest; `none` stands for the others."""
    places = torch.where(chosen, chosen.cumsum(-1) - 1, keys.shape[-1])
    front = torch.full((*keys.shape[:-1], keys.shape[-1] + 1), none, dtype=keys.dtype, device=keys.device)
    return front.scatter_(-1, places, keys)[..., : max(int(chosen.sum(-1).max()), 1)]


def _parts(counts: Tensor, width: int) -> list[tuple[Tensor, int]]:
    """Lists of about equal length together, as int64 numbers, with the longest's length; empty ones are left out.

    Args:
        counts: int64 `[n]`, the lengths of the lists.
        width: numbers that are gathered or written for each key.
    """
    order = counts.argsort(descending=True)
    lengths = counts[order].tolist()
    parts, at = [], 0
    while at < len(lengths) and lengths[at]:
        most = lengths[at]
        end, room = at + 1, max(1, _GATHERED // (most * width))
        while end < len(lengths) and end - at < room and lengths[end] * 2 > most:
            end += 1
        parts.append((order[at:end], most))
        at = end
    return parts
