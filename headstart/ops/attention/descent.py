"""Which blocks of keys score highest for a block of queries, found by descending a tree of regions.

HiP (arXiv 2406.09827): the keys are cut into as many regions as blocks are wanted; each round halves every region,
scores the halves by one block of each, and keeps the better half of all. After log2(T / k) rounds a region is a block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from headstart.ops.attention.layout import RaggedLayout
from headstart.ops.attention.selection import KeyBlocks

# Numbers of keys that are gathered at a time where no kernel of ours runs.
_GATHERED = 1 << 24

Scorer = Callable[[Tensor, Tensor], Tensor]
"""First blocks and sizes of regions, int64 `[H, B, C]` each → scores `[H, B, C]`."""


@dataclass(frozen=True)
class Descent:
    """How the tree is descended.

    Attributes:
        keep: blocks that a block of queries keeps beside sink and window.
        query_block: query rows per block.
        key_block: keys per block.
        stride: every so many rows of a block of queries are asked.
        sink: first keys that are always looked at.
        window: keys before each row that are always looked at, its own among them.
        representative: the block that stands for a region: its first, or the one in its middle.
    """

    keep: int = 256
    query_block: int = 64
    key_block: int = 2
    stride: int = 2
    sink: int = 16
    window: int = 256
    representative: Literal["first", "center"] = "center"

    @property
    def sink_blocks(self) -> int:
        """Blocks that hold the sink."""
        return -(-self.sink // self.key_block)

    @property
    def capacity(self) -> int:
        """The most blocks that a list may have."""
        return self.sink_blocks + self.keep + -(-(self.window + self.query_block) // self.key_block) + 2

    def rounds(self, keys: int) -> int:
        """How often regions of so many keys are halved."""
        largest = -(-max(keys // self.key_block, 1) // self.keep)
        return (largest - 1).bit_length()

    def scored(self, queries: int, keys: int) -> int:
        """Query-key pairs that one head scores for a chunk of so many rows, up to the first blocks' shorter paths."""
        blocks, asked = -(-queries // self.query_block), -(-min(self.query_block, queries) // self.stride)
        return blocks * self.rounds(keys) * 2 * self.keep * self.key_block * asked

    def bounds(self, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For blocks of queries by the places of their first and last rows: how many blocks the sink has, where the
        window begins, and its last block."""
        newest = last // self.key_block
        sink = (newest + 1).clamp(max=self.sink_blocks)
        window = torch.div(first - self.window + 1, self.key_block, rounding_mode="floor")
        return sink, torch.maximum(window, sink), newest


def descend(
    q: Tensor, k_pages: Tensor, layout: RaggedLayout, descent: Descent, scorer: Scorer | None = None
) -> KeyBlocks:
    """What each block of queries looks at: the sink, its window, and the blocks between that the descent finds.

    Args:
        q: `[T, H, D]`, the step's rows.
        k_pages: `[P, page_size, Hkv, D]`.
        layout: which rows and pages belong together.
        descent: how.
        scorer: scores regions instead of the queries' products with representatives, for one sequence.

    Returns:
        Lists for each query head, of `descent.capacity` blocks each.
    """
    if q.is_cuda and scorer is None:
        from headstart.ops.kernels.descent import descend_on_gpu

        return descend_on_gpu(q, k_pages, layout, descent)
    return descend_reference(q, k_pages, layout, descent, scorer)


def descend_reference(
    q: Tensor, k_pages: Tensor, layout: RaggedLayout, descent: Descent, scorer: Scorer | None = None
) -> KeyBlocks:
    """`descend` in plain PyTorch, sequence by sequence."""
    size = descent.query_block
    shape = len(layout.query_lengths), q.shape[1], -(-max(layout.query_lengths) // size)
    lists = torch.zeros(*shape, descent.capacity, dtype=torch.int32, device=q.device)
    counts = torch.zeros(shape, dtype=torch.int32, device=q.device)
    for s, (start, queries) in enumerate(zip(layout.query_starts, layout.query_lengths, strict=False)):
        (keys,) = layout.gather(s, k_pages)
        sequence = _Sequence(q[start : start + queries], keys, descent)
        step = max(1, _GATHERED // (q.shape[1] * 2 * descent.keep * descent.key_block * q.shape[2]))
        for first in range(0, -(-queries // size), step):
            found, many = sequence.blocks(first, min(first + step, -(-queries // size)), scorer)
            lists[s, :, first : first + found.shape[1]] = found
            counts[s, :, first : first + found.shape[1]] = many
    return KeyBlocks(lists, counts, size, descent.key_block)


class _Sequence:
    """One sequence's rows `[Q, H, D]` and keys `[N, Hkv, D]`."""

    def __init__(self, q: Tensor, k: Tensor, descent: Descent) -> None:
        self.q, self.k, self.descent = q, k, descent

    def blocks(self, first: int, last: int, scorer: Scorer | None) -> tuple[Tensor, Tensor]:
        """The lists `[H, b, K]` of some blocks of queries, and how many of them count `[H, b]`."""
        descent, device = self.descent, self.q.device
        length, place = len(self.k), len(self.k) - len(self.q)
        begin = place + torch.arange(first, last, device=device) * descent.query_block
        end = (begin + descent.query_block).clamp(max=length) - 1
        sink, window, newest = descent.bounds(begin, end)
        start, size = self._descend(sink, window - sink, first, last, scorer)
        none = length  # greater than any block
        shape = (*start.shape[:2], -1)
        number = torch.arange(descent.capacity, device=device)
        sinks = torch.where(number < sink[:, None], number, none)
        own = window[:, None] + number
        own = torch.where(own <= newest[:, None], own, none)
        found = torch.where(size > 0, start, none)
        every = torch.cat((sinks.expand(shape), found, own.expand(shape)), -1).sort(-1).values[..., : descent.capacity]
        return every.int(), (every < none).sum(-1, dtype=torch.int32)

    def _descend(
        self, sink: Tensor, candidates: Tensor, first: int, last: int, scorer: Scorer | None
    ) -> tuple[Tensor, Tensor]:
        """The regions that are left, first blocks and sizes `[H, b, K]`; a size is 1, or 0 where there is none."""
        keep, heads = self.descent.keep, self.q.shape[1]
        part = torch.arange(keep + 1, device=self.q.device)
        edges = torch.div(part * candidates[:, None], keep, rounding_mode="floor") + sink[:, None]
        start = edges[:, :-1].expand(heads, -1, -1)
        size = edges.diff().expand(heads, -1, -1)
        score = scorer or self._scorer(first, last)
        for _ in range(self.descent.rounds(len(self.k))):
            # Children in the order of their parents, so that regions stay in order.
            half = size // 2
            start = torch.stack((start, start + half), -1).flatten(2)
            size = torch.stack((half, size - half), -1).flatten(2)
            scores = score(start, size).masked_fill(size == 0, -torch.inf)
            best = scores.topk(keep, -1).indices.sort(-1).values
            start, size = start.gather(-1, best), size.gather(-1, best)
        return start, size

    def _scorer(self, first: int, last: int) -> Scorer:
        """The largest product of the asked rows with the keys of a region's representative."""
        descent, heads = self.descent, self.q.shape[1]
        rows = torch.arange(first, last, device=self.q.device)[:, None] * descent.query_block
        rows = rows + torch.arange(0, descent.query_block, descent.stride, device=self.q.device)
        # The first row of a block is always there; it stands in for those that are not.
        rows = torch.where(rows < len(self.q), rows, rows[:, :1])
        asked = self.q[rows].permute(2, 0, 1, 3).float()  # [H, b, R, D]
        kv_head = torch.arange(heads, device=self.q.device) // (heads // self.k.shape[1])

        def score(start: Tensor, size: Tensor) -> Tensor:
            block = start + size // 2 if descent.representative == "center" else start
            place = block[..., None] * descent.key_block + torch.arange(descent.key_block, device=start.device)
            keys = self.k[place.clamp(max=len(self.k) - 1), kv_head[:, None, None, None]].float()
            products = asked @ keys.flatten(2, 3).transpose(-1, -2)  # [H, b, R, C x key_block]
            return products.amax(-2).unflatten(-1, (-1, descent.key_block)).amax(-1)

        return score
