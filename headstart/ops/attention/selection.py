"""Which keys the queries of a layer look at: pages, lists of blocks, or the lines of a vertical-slash pattern."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from headstart.ops.attention.layout import RaggedLayout


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

    def looks(self, s: int, rows: Tensor, keys: Tensor, layout: "RaggedLayout") -> Tensor:
        """bool `[Q, Hkv, N]`: whether rows `[Q]` of sequence s look at keys `[N]`, both counted from its first."""
        return self.pages[s, rows // self.query_block][:, :, keys // layout.page_size]

    def key_blocks(self, layout: "RaggedLayout") -> "KeyBlocks":
        """The same as lists of pages, without those behind every row of their block; the host does not wait."""
        from headstart.ops.attention.lists import listed

        blocks, pages = self.pages.shape[1], self.pages.shape[3]
        starts, lengths = layout.index.query_starts, layout.index.kv_lengths
        last = torch.arange(1, blocks + 1, device=starts.device)[None] * self.query_block - 1 - starts.diff()[:, None]
        ends = torch.minimum(lengths[:, None] + last + 1, lengths[:, None])  # [S, B]: keys that the block may see
        number = torch.arange(pages, device=starts.device)
        lists, counts = listed(self.pages & (number * layout.page_size < ends[:, :, None, None]))
        return KeyBlocks(
            lists.transpose(1, 2).contiguous(), counts.transpose(1, 2).contiguous(), self.query_block, layout.page_size
        )


@dataclass(frozen=True)
class Lines:
    """Diagonals and columns, the same for all blocks of query rows of a head: a vertical-slash pattern, or an A-shape.

    A block of query rows whose first stands at place p sees bands of `key_block` keys, a band `t` being the keys from
    place p - t on, and single keys (columns) that lie in none of the bands.

    Args:
        bands: int32 `[S, Hb, K]`, each head's in descending order, so that their keys ascend; no two of them overlap.
        band_counts: int32 `[S, Hb]`, how many of them count.
        columns: int32 `[S, Hb, C]`, places of keys in ascending order.
        column_counts: int32 `[S, Hb]`, how many of them count.
        covered: uint8 `[S, Hb, L]`: 1 at `query_block + p - j` where the block at p has a band with the key at place j;
            L is at least `query_block + 1` more than any p.

    A head with neither bands nor columns has block lists instead.
    """

    bands: Tensor
    band_counts: Tensor
    columns: Tensor
    column_counts: Tensor
    covered: Tensor


@dataclass(frozen=True)
class KeyBlocks:
    """Which blocks of keys the queries of one layer look at, as lists: what the GPU kernel reads.

    Args:
        blocks: int32 `[S, Hb, B, K]`: for each sequence, head and block of query rows, the blocks of keys in ascending
            order, in units of `key_block`, each once. Hb is Hkv, or H where each query head has a list of its own.
            Causality holds on top of it.
        counts: int32 `[S, Hb, B]`: how many of each list count.
        query_block: query rows per block, counted from a sequence's first row of the step.
        key_block: keys per block.
        lines: what heads look at that have lines instead of lists (whose counts are 0).
    """

    blocks: Tensor
    counts: Tensor
    query_block: int
    key_block: int
    lines: Lines | None = None

    @property
    def kind(self) -> tuple[Hashable, ...]:
        """What tells lists apart that need launches of their own."""
        shape, strides = self.blocks.shape, (self.blocks.stride(), self.counts.stride())
        lines = self.lines
        more = () if lines is None else tuple((each.shape, each.stride()) for each in vars(lines).values())
        return shape, *strides, self.query_block, self.key_block, *more

    def key_blocks(self, layout: "RaggedLayout") -> "KeyBlocks":
        """Itself, as `Selection` becomes one."""
        return self

    def of_heads(self, heads: slice) -> "KeyBlocks":
        """Those of some heads alone."""
        lines = self.lines
        if lines is not None:
            lines = Lines(*(each[:, heads].contiguous() for each in vars(lines).values()))
        return replace(self, blocks=self.blocks[:, heads], counts=self.counts[:, heads], lines=lines)

    def runs(self, s: int, place: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Where the runs of `key_block` keys begin that the blocks `first` to `last` of query rows look at.

        Args:
            s: the sequence.
            place: of its first row.

        Returns:
            int64 `[Hb, b, R]`, which may be negative where bands reach before the first key, and bool alike: whether
            it counts.
        """
        starts = self.blocks[s, :, first:last].long() * self.key_block
        there = torch.arange(starts.shape[-1], device=starts.device) < self.counts[s, :, first:last, None]
        lines = self.lines
        if lines is None:
            return starts, there
        p = place + torch.arange(first, last, device=starts.device)[:, None] * self.query_block
        banded = p - lines.bands[s, :, None].long()  # [Hb, b, K]
        known = torch.arange(banded.shape[-1], device=starts.device) < lines.band_counts[s, :, None]
        known = known[:, None].expand(banded.shape) & (banded > -self.key_block)
        return torch.cat((starts, banded), -1), torch.cat((there, known), -1)

    def singles(self, s: int, place: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """The single keys of the blocks `first` to `last`: places int64 `[Hb, C]`, and bool `[Hb, b, C]`, whether they
        count."""
        lines = self.lines
        if lines is None:
            heads = self.blocks.shape[1]
            none = torch.empty(heads, 0, dtype=torch.int64, device=self.blocks.device)
            return none, torch.empty(heads, last - first, 0, dtype=torch.bool, device=none.device)
        columns = lines.columns[s].long()
        p = place + torch.arange(first, last, device=columns.device)[:, None] * self.query_block
        apart = self.query_block + p - columns[:, None]  # [Hb, b, C]
        covered = lines.covered[s].gather(1, apart.clamp(0, lines.covered.shape[2] - 1).flatten(1)).view(apart.shape)
        covered = (covered > 0) & (apart >= 0)
        there = torch.arange(columns.shape[1], device=columns.device) < lines.column_counts[s, :, None]
        return columns, there[:, None] & ~covered & (columns[:, None] < p + self.query_block)

    def looks(self, s: int, rows: Tensor, keys: Tensor, layout: "RaggedLayout") -> Tensor:
        """bool `[Q, Hb, N]`: whether rows `[Q]` of sequence s look at keys `[N]`, both counted from its first."""
        place = layout.kv_lengths[s] - layout.query_lengths[s]
        asked = rows // self.query_block
        first, last = int(asked.min()), int(asked.max()) + 1
        starts, there = self.runs(s, place, first, last)
        most = int(keys.max()) + 1
        # Each run begins with a step up and ends with one down.
        steps = torch.zeros(*starts.shape[:2], most + 1, dtype=torch.int32, device=keys.device)
        steps.scatter_add_(2, starts.clamp(0, most), there.int())
        steps.scatter_add_(2, (starts + self.key_block).clamp(0, most), -there.int())
        columns, single = self.singles(s, place, first, last)
        chosen = steps.cumsum(-1) > 0
        chosen.scatter_(2, torch.where(single & (columns < most)[:, None], columns[:, None], most), True)
        return chosen[:, asked - first][:, :, keys].transpose(0, 1)

    def pairs(self, layout: "RaggedLayout") -> float:
        """Causal query-key pairs that are looked at in one layer, as a mean over the heads."""
        return float(self.head_pairs(layout).double().mean())

    def head_pairs(self, layout: "RaggedLayout") -> Tensor:
        """int64 `[Hb]`: causal query-key pairs that each head looks at in one layer."""
        total = torch.zeros(self.blocks.shape[1], dtype=torch.int64, device=self.blocks.device)
        for s, (queries, keys) in enumerate(zip(layout.query_lengths, layout.kv_lengths, strict=True)):
            for first in range(0, -(-queries // self.query_block), _BLOCKS):
                last = min(first + _BLOCKS, -(-queries // self.query_block))
                place = keys - queries
                starts, there = self.runs(s, place, first, last)
                columns, single = self.singles(s, place, first, last)
                low = place + torch.arange(first, last, device=starts.device)[:, None] * self.query_block
                high = (low + self.query_block).clamp(max=keys)  # behind the block's last row
                begin, end = starts.clamp(min=0), starts + self.key_block
                seen = _below(high - begin, end - begin) - _below(low - begin, end - begin)
                total += (seen * there).sum((1, 2))
                total += ((high - torch.maximum(low, columns[:, None])).clamp(min=0) * single).sum((1, 2))
        return total


# Blocks of query rows that are looked at together where lists are written out.
_BLOCKS = 64


def _below(rows: Tensor, keys: Tensor) -> Tensor:
    """Causal pairs of so many first rows with so many first keys; row r sees r + 1 of them."""
    rows = rows.clamp(min=0)
    few = torch.minimum(rows, keys)
    return (few * (few + 1)) // 2 + (rows - few) * keys


AnySelection = Selection | KeyBlocks
"""What a `Selector` may answer."""
