"""Which blocks of keys a decoding head reads: bounds of what each could score, kept beside the pages."""

from dataclasses import dataclass
from math import gcd
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from headstart.ops.attention import KeyBlocks, RaggedLayout
from headstart.ops.attention.lists import top


@dataclass
class _Choice:
    """What a sequence reads at a layer: `blocks` int32 `[H, K]` and `counts` `[H]`, as of so many keys."""

    length: int
    blocks: Tensor
    counts: Tensor


class PageBounds:
    """Elementwise least and greatest keys of small runs of tokens, for every page of one layer.

    Args:
        logical: tokens of a run whose bounds are one.
    """

    def __init__(self, logical: int) -> None:
        self.logical = logical
        self.bounds: Tensor | None = None

    def update(self, keys: Tensor, layout: RaggedLayout, dtype: torch.dtype) -> None:
        """Find the bounds of the pages anew that hold the step's rows.

        Args:
            keys: `[P, page_size, h, D]`.
            layout: the step.
            dtype: of the bounds.
        """
        pages, filled, size = [], [], layout.page_size
        for count, length, table in zip(layout.query_lengths, layout.kv_lengths, layout.page_tables, strict=True):
            first, last = (length - count) // size, (length - 1) // size
            pages += table[first : last + 1]
            filled += [size] * (last - first) + [length - last * size]
        run = gcd(self.logical, size)
        if self.bounds is None:
            shape = (keys.shape[0], size // run, keys.shape[2], 2, keys.shape[3])
            self.bounds = torch.zeros(shape, dtype=dtype, device=keys.device)
        index = layout.upload(pages)
        read = _gather(keys, index, dtype)  # [n, page_size, h, D]
        there = torch.arange(size, device=keys.device) < layout.upload(filled)[:, None]
        # An empty place repeats the page's first key, which is always there.
        read = torch.where(there[..., None, None], read, read[:, :1]).unflatten(1, (-1, run))
        self.bounds[index] = torch.stack((read.amax(2), read.amin(2)), -2)

    def scores(self, q: Tensor, table: Tensor, block: int, page_size: int) -> Tensor:
        """The most that any key of a block could score, but for the scale.

        Args:
            q: `[S, H, D]`.
            table: int64 `[S, P]`, pages in order.
            block: tokens, a multiple of `logical` and of the page size.
            page_size: tokens per page.

        Returns:
            `[S, H, B]` float32.
        """
        assert self.bounds is not None
        run = gcd(self.logical, page_size)
        runs = self.bounds[table].flatten(1, 2)  # [S, P x runs, h, 2, D]
        runs = torch.nn.functional.pad(runs, (0, 0, 0, 0, 0, 0, 0, -runs.shape[1] % (block // run)))
        if run != self.logical:
            runs = runs.unflatten(1, (-1, self.logical // run))
            runs = torch.stack((runs[..., 0, :].amax(2), runs[..., 1, :].amin(2)), -2)
        heads = q.unflatten(1, (runs.shape[2], -1))  # [S, h, G, D]
        # Where an element of the query is negative, the least key scores most.
        signed = torch.cat((heads.clamp(min=0), heads.clamp(max=0)), -1)
        scores = torch.einsum("shgd,snhd->shgn", signed, runs.flatten(3))
        return scores.unflatten(-1, (-1, block // self.logical)).amax(-1).flatten(1, 2).float()


class PageSelector:
    """Chooses for every query head of one layer, and remembers for a few steps.

    Args:
        logical: tokens of a run whose bounds are one.
        block: tokens that are read together.
        budget: tokens that a head reads.
        interval: a choice serves so many steps.
    """

    def __init__(self, logical: int, block: int, budget: int, interval: int) -> None:
        self.block, self.keep, self.interval = block, budget // block, interval
        self.bounds = PageBounds(logical)
        self.chosen = self.reused = 0
        self._kept: WeakKeyDictionary[object, _Choice] = WeakKeyDictionary()

    def decode(self, q: Tensor, layout: RaggedLayout) -> KeyBlocks | None:
        """What the rows `[T, H, D]` look at, once the bounds are up to date; None where all fit into the budget."""
        if max(layout.kv_lengths) <= self.keep * self.block:
            return None
        rows = [
            (s, row, length - count + row + 1)
            for s, (count, length) in enumerate(zip(layout.query_lengths, layout.kv_lengths, strict=True))
            for row in range(count)
        ]
        choices: list[_Choice | None] = [self._known(layout, *each) for each in rows]
        due = [number for number, choice in enumerate(choices) if choice is None]
        if due:
            blocks, counts = self._choose(q[layout.upload(due)], layout, [rows[number] for number in due])
            for at, number in enumerate(due):
                choices[number] = _Choice(rows[number][2], blocks[at], counts[at])
        self.chosen, self.reused = self.chosen + len(due), self.reused + len(rows) - len(due)
        most, heads = max(layout.query_lengths), q.shape[1]
        lists = q.new_zeros(len(layout.query_lengths), heads, most, self.keep, dtype=torch.int32)
        totals = q.new_zeros(len(layout.query_lengths), heads, most, dtype=torch.int32)
        for (s, row, length), choice in zip(rows, choices, strict=True):
            assert choice is not None
            lists[s, :, row, : choice.blocks.shape[1]], totals[s, :, row] = choice.blocks, choice.counts
            if layout.owners and layout.query_lengths[s] == 1:
                self._kept[layout.owners[s]] = _Choice(length, choice.blocks, choice.counts)
        return KeyBlocks(lists, totals, 1, self.block)

    def _known(self, layout: RaggedLayout, s: int, row: int, length: int) -> _Choice | None:
        """The choice of the step before, where it still holds: not for drafts, and not where a block has begun."""
        if not layout.owners or layout.query_lengths[s] > 1:
            return None
        kept = self._kept.get(layout.owners[s])
        fresh = (length - 1) % self.interval == 0 or (length - 1) % self.block == 0
        return kept if kept is not None and kept.length == length - 1 and not fresh else None

    def _choose(self, q: Tensor, layout: RaggedLayout, rows: list[tuple[int, int, int]]) -> tuple[Tensor, Tensor]:
        """The best blocks of these rows `[R, H, D]`, the newest among them: int32 `[R, H, K]` and `[R, H]`."""
        table = layout.index.page_table[layout.upload([s for s, _, _ in rows])].long()
        scores = self.bounds.scores(q, table, self.block, layout.page_size)
        newest = layout.upload([(length - 1) // self.block for _, _, length in rows])[:, None, None]
        number = torch.arange(scores.shape[-1], device=scores.device)
        scores = scores.masked_fill(number > newest, -torch.inf).masked_fill(number == newest, torch.inf)
        return top(scores, self.keep)


def _gather(keys: Tensor, pages: Tensor, dtype: torch.dtype) -> Tensor:
    """Pages of keys in this dtype; eight-bit floats are gathered as bytes."""
    if keys.dtype.itemsize == 1:
        return keys.view(torch.uint8).index_select(0, pages).view(keys.dtype).to(dtype)
    return keys.index_select(0, pages).to(dtype)
