"""Dual chunk attention: no distance between a query and a key that the model was not trained for."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from headstart.models.rope import Rope, RopeConfig
from headstart.ops.attention import KeyBlocks, RaggedLayout, merge_attention, paged_attention
from headstart.ops.attention.dense import batched, dense, read
from headstart.ops.rotary import apply_rotary, rotary_rows


@dataclass(frozen=True)
class Chunks:
    """How places become positions. Keys keep the rotation of their own place; queries are turned instead, once for each
    chunk of keys, so that cached keys are those of the plain model.

    Attributes:
        size: L, tokens of a chunk.
        most: c, the largest distance; the first c - L queries of a chunk are at their true distance from the chunk
            before.
        trained: tokens up to which attention is as sharp as it was trained.
    """

    size: int
    most: int
    trained: int

    def turn(self, places: Tensor, chunk: int, *, clamped: bool = True) -> Tensor:
        """How much farther along queries of one chunk are, int64 `[R]`, than they stand, when they meet a chunk of
        keys.

        Args:
            places: int64 `[R]`, of the queries.
            chunk: of the keys, their own or an earlier one.
            clamped: whether distances to earlier chunks are bounded as they are in attention, so that they stay the
                same; else they go on to grow within the queries' chunk, as estimates need them.
        """
        within, own = places % self.size, places // self.size
        before = (within + self.size).clamp(max=self.most) if clamped else within + self.size
        far = torch.full_like(within, self.most) if clamped else within + self.most
        met = torch.where(own == chunk, within, torch.where(own == chunk + 1, before, far))
        return met + chunk * self.size - places

    def sharpness(self, places: Tensor) -> Tensor:
        """float32 `[R]`: what scores are multiplied with, (1 + 0.1 ln(tokens / trained)) squared, at least 1. The
        tokens are those that the query can see, so that no result depends on what follows it."""
        return (1 + 0.1 * ((places + 1).float() / self.trained).log().clamp(min=0)).square()


class Turner:
    """Rotates heads on, by a model's RoPE."""

    def __init__(self, config: RopeConfig) -> None:
        # What scales cosines and sines has scaled the heads already.
        self._rope = Rope(replace(config, attention_factor=1.0))

    def __call__(self, x: Tensor, by: Tensor) -> Tensor:
        """`x [T, H, D]` by so many places, int64 `[T]`, forwards or backwards → the same shape and dtype."""
        return apply_rotary(x, rotary_rows(*self._rope(by), torch.float32))


@dataclass(frozen=True)
class Piece:
    """Rows of one sequence that stand in one chunk, and of its blocks of queries.

    Attributes:
        sequence: its number in the step.
        first, last: rows, counted from the sequence's first of the step; `last` is behind the last.
        place: of the first.
        chunk: where they stand.
    """

    sequence: int
    first: int
    last: int
    place: int
    chunk: int


def pieces_of(layout: RaggedLayout, size: int, query_block: int | None = None) -> list[Piece]:
    """The step's rows, cut where chunks of `size` tokens end, and behind that where the next block of query rows
    begins, if they are in blocks."""
    found = []
    for s, (count, length) in enumerate(zip(layout.query_lengths, layout.kv_lengths, strict=True)):
        start, row = length - count, 0
        while row < count:
            last = min(count, row + size - (start + row) % size)
            if query_block is not None and row % query_block:
                last = min(last, row + query_block - row % query_block)
            found.append(Piece(s, row, last, start + row, (start + row) // size))
            row = last
    return found


class DualChunkAttention:
    """Attention of a step's rows, a piece at a time over a chunk of keys at a time, put together by log-sum-exp.

    Args:
        chunks: the rule; its size is a multiple of the page size.
        turner: of the model.
        scale: factor on the scores, before they are sharpened.
    """

    def __init__(self, chunks: Chunks, turner: Turner, scale: float) -> None:
        self.chunks, self.turner, self.scale = chunks, turner, scale

    def attend(
        self, q: Tensor, keys: Tensor, values: Tensor, layout: RaggedLayout, selection: KeyBlocks | None
    ) -> tuple[Tensor, Tensor]:
        """`q [T, H, D]`, `keys, values [P, page_size, Hkv, D]` → `out [T, H, D]`, `lse [T, H]` float32."""
        out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
        lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        for piece in pieces_of(layout, self.chunks.size, None if selection is None else selection.query_block):
            begin = layout.query_starts[piece.sequence]
            rows = slice(begin + piece.first, begin + piece.last)
            out[rows], lse[rows] = self._piece(q[rows], keys, values, layout, piece, selection)
        return out.to(q.dtype), lse

    def _piece(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        layout: RaggedLayout,
        piece: Piece,
        selection: KeyBlocks | None,
    ) -> tuple[Tensor, Tensor]:
        places = torch.arange(piece.place, piece.place + len(q), device=q.device)
        if piece.place + len(q) > self.chunks.trained:
            q = (q.float() * self.chunks.sharpness(places)[:, None, None]).to(q.dtype)
        found: tuple[Tensor, Tensor] | None = None
        for chunk in range(piece.chunk, -1, -1):
            turned = q if chunk == piece.chunk else self.turner(q, self.chunks.turn(places, chunk))
            part = self._over(turned, keys, values, layout, piece, chunk, selection)
            found = part if found is None else merge_attention(*found, *part)
        assert found is not None
        return found

    def _over(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        layout: RaggedLayout,
        piece: Piece,
        chunk: int,
        selection: KeyBlocks | None,
    ) -> tuple[Tensor, Tensor]:
        """The piece's rows over one chunk: their own causally, of an earlier one all of it."""
        size = layout.page_size
        first = chunk * self.chunks.size
        own = chunk == piece.chunk
        end = piece.place + len(q) if own else first + self.chunks.size
        pages = list(layout.page_tables[piece.sequence][first // size : -(-end // size)])
        if selection is None and not own:
            part = RaggedLayout([1], [end - first], [pages], size, layout.device)
            k, v = (read(x, q.dtype) for x in part.gather(0, keys, values))
            out, lse = dense(batched(q), batched(k), batched(v), self.scale)
            return out[0].transpose(0, 1), lse[0].transpose(0, 1)
        chosen = None if selection is None else _within(selection, piece, first, end)
        length = end - first
        if not own:
            # Behind the chunk's keys stand the rows themselves, which no list names.
            pages += [pages[0]] * (-(-(length + len(q)) // size) - len(pages))
            length += len(q)
        part = RaggedLayout([len(q)], [length], [pages], size, layout.device)
        return paged_attention(q, keys, values, part, scale=self.scale, selection=chosen)


def _within(selection: KeyBlocks, piece: Piece, first: int, end: int) -> KeyBlocks:
    """The lists of a piece's rows, of the keys from `first` to `end` alone, counted from there."""
    size, s = selection.key_block, piece.sequence
    rows = slice(piece.first // selection.query_block, -(-piece.last // selection.query_block))
    blocks, counts = selection.blocks[s, :, rows], selection.counts[s, :, rows]
    listed = torch.arange(blocks.shape[-1], device=blocks.device) < counts[..., None]
    inside = listed & (blocks >= first // size) & (blocks < -(-end // size))
    # Lists ascend: what is inside lies together.
    start = (listed & (blocks < first // size)).sum(-1, keepdim=True)
    moved = (torch.arange(blocks.shape[-1], device=blocks.device) + start).clamp(max=max(blocks.shape[-1] - 1, 0))
    shifted = blocks.gather(-1, moved) - first // size
    total = inside.sum(-1, dtype=torch.int32)
    return KeyBlocks(shifted[None].contiguous(), total[None].contiguous(), selection.query_block, size)


def default_chunks(trained: int, unit: int, chunk: int | None = None, local: int | None = None) -> Chunks:
    """The rule for a model of this length: distances up to it, and a 32nd of it exact towards the chunk before (the
    1M models: 262,144 and 8,192).

    Args:
        trained: tokens that the model was made for.
        unit: tokens of which chunks have a multiple.
        chunk: c, instead of `trained`.
        local: c - L at least, instead of a 32nd of c.
    """
    most = trained if chunk is None else chunk
    near = max(1, most // 32) if local is None else local
    size = (most - near) // unit * unit
    return Chunks(size, most, trained)
