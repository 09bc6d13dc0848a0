"""Attention of ragged query rows over a paged KV cache: a plain reference, the CPU and GPU paths, one dispatcher.

Every path returns `(out, lse)`: the log-sum-exp of each row's scores lets partial results over disjoint keys be
merged exactly (`merge_attention`). The rows of one step are grouped once into a few rectangles (`RaggedLayout`), so
that a layer costs a handful of calls however many sequences share the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from headstart.ops.linear import widening_pays_from

# Sequences with at most this many query rows share a rectangle; longer chunks fill one alone.
_SHARED_ROWS = 16
# A rectangle may hold sequences up to this much longer than its shortest, so that padding stays bounded.
_LENGTH_RATIO = 1.25
_LENGTH_SLACK = 64
# Query rows that the plain path scores at a time: bounds its memory to rows x keys.
_PLAIN_ROWS = 256


@dataclass(frozen=True)
class Selection:
    """Which pages the queries of one layer look at: the answer of a `Selector`.

    Args:
        pages: bool `[S, B, Hkv, P]`: for sequence s and its b-th block of query rows, the pages (in the order of
            the page table) that each KV head reads. Causality holds on top of it.
        query_block: query rows per block.
    """

    pages: Tensor
    query_block: int


@dataclass
class _Rectangle:
    """Sequences whose rows are computed in one call: `rows [B, Q]`, `pages [B, P]`, both padded by repetition."""

    sequences: list[int]
    rows: Tensor
    pages: Tensor
    query_lengths: list[int]
    kv_lengths: list[int]
    first_pages: list[int | None]  # where the sequence's pages follow each other: the first; None otherwise
    masks: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)


class RaggedLayout:
    """Where the query rows and the cached keys of one step lie, built once and read by every layer.

    Args:
        query_lengths: new rows of each of the S sequences, in batch order (each at least 1).
        kv_lengths: keys each sequence has once this step's rows are written (at least its query length).
        page_tables: per sequence the pages that hold its keys, in order.
        page_size: tokens per page.
        device: where the indices are wanted.
    """

    def __init__(
        self,
        query_lengths: Sequence[int],
        kv_lengths: Sequence[int],
        page_tables: Sequence[Sequence[int]],
        page_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.query_lengths = list(query_lengths)
        self.kv_lengths = list(kv_lengths)
        self.page_tables = page_tables
        self.page_size = page_size
        self.device = torch.device(device)
        self.query_starts = [0]
        for length in self.query_lengths:
            self.query_starts.append(self.query_starts[-1] + length)

    def subset(self, sequences: Sequence[int]) -> "tuple[RaggedLayout, Tensor]":
        """The layout of some of the sequences, and int64 `[T']`: their rows in this one."""
        rows = [r for s in sequences for r in range(self.query_starts[s], self.query_starts[s + 1])]
        part = RaggedLayout(
            [self.query_lengths[s] for s in sequences],
            [self.kv_lengths[s] for s in sequences],
            [self.page_tables[s] for s in sequences],
            self.page_size,
            self.device,
        )
        return part, torch.tensor(rows, dtype=torch.int64, device=self.device)

    @property
    def num_rows(self) -> int:
        """Query rows of the whole step, T."""
        return self.query_starts[-1]

    @cached_property
    def slots(self) -> Tensor:
        """int64 `[T]`: the cache slot (page x page size + offset) into which each row's key is written."""
        parts = []
        for queries, keys, table in zip(self.query_lengths, self.kv_lengths, self.page_tables, strict=True):
            first = (keys - queries) // self.page_size
            pages = torch.tensor(table[first : -(-keys // self.page_size)], dtype=torch.int64)
            index = torch.arange(keys - queries, keys)
            parts.append(pages[index // self.page_size - first] * self.page_size + index % self.page_size)
        return torch.cat(parts).to(self.device)

    @cached_property
    def rectangles(self) -> list[_Rectangle]:
        """The step's sequences in groups of like shape: short ones together, each long chunk alone."""
        groups: list[list[int]] = []
        order = sorted(range(len(self.query_lengths)), key=lambda s: (self._width(s), self.kv_lengths[s]))
        for s in order:
            first = groups[-1][0] if groups else None
            if (
                first is not None
                and self._width(s) == self._width(first) <= _SHARED_ROWS
                and self.kv_lengths[s] <= self.kv_lengths[first] * _LENGTH_RATIO + _LENGTH_SLACK
            ):
                groups[-1].append(s)
            else:
                groups.append([s])
        return [self._rectangle(group) for group in groups]

    def _width(self, s: int) -> int:
        """Rows of sequence s rounded up to a power of two, so that drafts of like length share a rectangle."""
        return 1 << (self.query_lengths[s] - 1).bit_length()

    def _rectangle(self, group: list[int]) -> _Rectangle:
        width = max(self.query_lengths[s] for s in group)
        depth = -(-max(self.kv_lengths[s] for s in group) // self.page_size)
        rows, pages, first_pages = [], [], []
        for s in group:
            start, length = self.query_starts[s], self.query_lengths[s]
            rows.append(list(range(start, start + length)) + [start + length - 1] * (width - length))
            table = list(self.page_tables[s][: -(-self.kv_lengths[s] // self.page_size)])
            pages.append(table + [table[-1]] * (depth - len(table)))
            contiguous = table == list(range(table[0], table[0] + len(table)))
            first_pages.append(table[0] if contiguous else None)
        return _Rectangle(
            sequences=group,
            rows=torch.tensor(rows, dtype=torch.int64, device=self.device),
            pages=torch.tensor(pages, dtype=torch.int64, device=self.device),
            query_lengths=[self.query_lengths[s] for s in group],
            kv_lengths=[self.kv_lengths[s] for s in group],
            first_pages=first_pages,
        )


def write_kv(k_pages: Tensor, v_pages: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """Put `k, v [T, Hkv, D]` into `k_pages, v_pages [P, page_size, Hkv, D]` at `slots [T]`."""
    k_pages.flatten(0, 1).index_copy_(0, slots, k.to(k_pages.dtype))
    v_pages.flatten(0, 1).index_copy_(0, slots, v.to(v_pages.dtype))


def merge_attention(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint key sets.

    `out_a, out_b [..., D]` with `lse_a, lse_b [...]` float32 → `(out [..., D] float32, lse [...])`. A side that saw
    no key (lse of -inf) leaves the other unchanged.
    """
    lse = torch.logaddexp(lse_a, lse_b)
    safe = torch.where(lse == -torch.inf, torch.zeros_like(lse), lse)
    weight_a = torch.exp(lse_a - safe).unsqueeze(-1)
    weight_b = torch.exp(lse_b - safe).unsqueeze(-1)
    return out_a.float() * weight_a + out_b.float() * weight_b, lse


def paged_attention(
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
    """Causal attention of each sequence's last rows over its cached keys.

    Args:
        q: `[T, H, D]`; row i of a sequence with Q rows and N keys sees keys 0 .. N - Q + i.
        k_pages, v_pages: `[P, page_size, Hkv, D]`, H a multiple of Hkv; this step's keys are already in them.
        layout: which rows and pages belong together.
        scale: factor on the scores.
        window: a row sees its own and the `window - 1` keys before it; None sees all.
        softcap: scores become `softcap * tanh(scores / softcap)`.
        selection: pages outside it are skipped.

    Returns:
        `out [T, H, D]` in q's dtype and `lse [T, H]` float32.
    """
    plain = softcap is not None or selection is not None
    if len(layout.rectangles) == 1 and not plain and len(layout.query_lengths) == 1:
        only = layout.rectangles[0]
        return _attend_chunk(q, _keys_of(k_pages, only, 0), _keys_of(v_pages, only, 0), scale, window)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    for rectangle in layout.rectangles:
        if plain:
            _attend_plainly(q, k_pages, v_pages, layout, rectangle, scale, window, softcap, selection, out, lse)
        elif len(rectangle.sequences) == 1:
            start = layout.query_starts[rectangle.sequences[0]]
            rows = slice(start, start + rectangle.query_lengths[0])
            keys = _keys_of(k_pages, rectangle, 0), _keys_of(v_pages, rectangle, 0)
            out[rows], lse[rows] = _attend_chunk(q[rows], *keys, scale, window)
        else:
            _attend_rectangle(q, k_pages, v_pages, rectangle, scale, window, out, lse)
    return out, lse


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
        return _attend_chunk(q, k, v, scale, None)
    if softcap is not None:
        return attention_among_reference(q, k, v, query_places, key_places, scale=scale, window=window, softcap=softcap)
    mask = torch.zeros(rows, keys, dtype=q.dtype, device=q.device)
    mask.masked_fill_(_unseen(query_places, key_places, window), -torch.inf)
    out, lse = _dense(_batched(q), _batched(k), _batched(v), scale, mask=mask[None, None])
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


def _keys_of(pages: Tensor, rectangle: _Rectangle, i: int) -> Tensor:
    """`[N, Hkv, D]`, the i-th sequence's keys: a view when its pages follow each other, a copy otherwise."""
    length = rectangle.kv_lengths[i]
    count, first = -(-length // pages.shape[1]), rectangle.first_pages[i]
    if first is not None:
        start = first * pages.shape[1]
        return pages.view(-1, *pages.shape[2:])[start : start + length]
    return pages.index_select(0, rectangle.pages[i, :count]).flatten(0, 1)[:length]


def _attend_chunk(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> tuple[Tensor, Tensor]:
    """One sequence: `q [Q, H, D]` over `k, v [N, Hkv, D]`, as the keys before the chunk merged with its own."""
    queries, keys = q.shape[0], k.shape[0]
    dtype, before = q.dtype, keys - queries
    if queries == 1 and (window is None or window >= keys):
        # The query heads that share a KV head become its query rows: one pass over the keys serves them all.
        folded = q.view(1, k.shape[1], -1, q.shape[2])
        out, lse = _dense(folded, _batched(k), _batched(v), scale)
        return out.reshape(q.shape), lse.reshape(1, -1)
    half = q.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16)
    if half and queries > _SHARED_ROWS and widening_pays_from(dtype) is not None:
        q, k, v = q.float(), k.float(), v.float()
    if window is not None and window < keys:
        left = max(0, before - window + 1)
        k, v = k[left:], v[left:]
        mask = _window_mask(queries, keys - left, window, q.dtype, q.device)
        out, lse = _dense(_batched(q), _batched(k), _batched(v), scale, mask=mask[None, None])
    elif before == 0:
        out, lse = _dense(_batched(q), _batched(k), _batched(v), scale, causal=True)
    else:
        own = _dense(_batched(q), _batched(k[before:]), _batched(v[before:]), scale, causal=True)
        past = _dense(_batched(q), _batched(k[:before]), _batched(v[:before]), scale)
        out, lse = merge_attention(*past, *own)
    return out[0].transpose(0, 1).to(dtype), lse[0].transpose(0, 1)


def _attend_rectangle(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    rectangle: _Rectangle,
    scale: float,
    window: int | None,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Several short sequences in one call over their gathered keys, padded and masked."""
    batch, width = rectangle.rows.shape
    heads, head_dim = q.shape[1:]
    kv_heads = k_pages.shape[2]
    k = k_pages.index_select(0, rectangle.pages.flatten()).view(batch, -1, kv_heads, head_dim)
    v = v_pages.index_select(0, rectangle.pages.flatten()).view(batch, -1, kv_heads, head_dim)
    mask = _rectangle_mask(rectangle, k.shape[1], window, q.dtype)
    rows = q[rectangle.rows]  # [B, Q, H, D]
    if width == 1:
        folded = rows.view(batch, kv_heads, heads // kv_heads, head_dim)
        part, part_lse = _dense(folded, k.transpose(1, 2), v.transpose(1, 2), scale, mask=mask)
        part, part_lse = part.reshape(batch, 1, heads, head_dim), part_lse.reshape(batch, 1, heads)
    else:
        part, part_lse = _dense(rows.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale, mask=mask)
        part, part_lse = part.transpose(1, 2), part_lse.transpose(1, 2)
    out[rectangle.rows.flatten()] = part.reshape(-1, heads, head_dim)
    lse[rectangle.rows.flatten()] = part_lse.reshape(-1, heads)


def _rectangle_mask(rectangle: _Rectangle, keys: int, window: int | None, dtype: torch.dtype) -> Tensor:
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


def _batched(x: Tensor) -> Tensor:
    """`[N, H, D]` as `[1, H, N, D]`."""
    return x.transpose(0, 1)[None]


def _dense(
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


def _attend_plainly(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    layout: RaggedLayout,
    rectangle: _Rectangle,
    scale: float,
    window: int | None,
    softcap: float | None,
    selection: Selection | None,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Each sequence of a rectangle with its scores written out: the reference, and the path for the rare features."""
    for i, s in enumerate(rectangle.sequences):
        k, v = _keys_of(k_pages, rectangle, i), _keys_of(v_pages, rectangle, i)
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
