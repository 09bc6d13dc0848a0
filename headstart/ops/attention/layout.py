"""Where the query rows and the cached keys of one step lie."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Sequences with at most this many query rows share a rectangle; longer chunks fill one alone.
SHARED_ROWS = 16
# A rectangle may hold sequences up to this much longer than its shortest, so that padding stays bounded.
_LENGTH_RATIO = 1.25
_LENGTH_SLACK = 64


class PagedIndex(NamedTuple):
    """A layout as kernels read it.

    Attributes:
        query_starts: int32 `[S + 1]`, the first row of each sequence, and the end.
        kv_lengths: int32 `[S]`; 0 says that the sequence's rows see nothing: out 0, lse -inf.
        page_table: int32 `[S, P]`, each sequence's pages in order; what lies behind the last is never read.
        max_query: no sequence has more query rows.
        max_kv: no sequence has more keys.
    """

    query_starts: Tensor
    kv_lengths: Tensor
    page_table: Tensor
    max_query: int
    max_kv: int


@dataclass
class Rectangle:
    """Sequences whose rows are computed in one call: `rows [B, Q]`, `pages [B, P]`, both padded by repetition."""

    sequences: list[int]
    rows: Tensor
    pages: Tensor
    query_lengths: list[int]
    kv_lengths: list[int]
    masks: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)


class RaggedLayout:
    """Where the query rows and the cached keys of one step lie, built once and read by every layer.

    Args:
        query_lengths: new rows of each of the S sequences, in batch order (each at least 1).
        kv_lengths: keys each sequence has once this step's rows are written (at least its query length).
        page_tables: per sequence the pages that hold its keys, in order.
        page_size: tokens per page.
        device: where the indices are wanted.
        owners: whose rows they are, for what is kept between steps: the engine's sequences; empty where nobody asks.

    Attributes:
        num_rows: query rows of the whole step, T.
        routes: what the attention of a GPU has worked out for this step, by what it depends on.
    """

    def __init__(
        self,
        query_lengths: Sequence[int],
        kv_lengths: Sequence[int],
        page_tables: Sequence[Sequence[int]],
        page_size: int,
        device: torch.device | str = "cpu",
        owners: Sequence[Any] = (),
    ) -> None:
        self.owners = owners
        self.query_lengths = list(query_lengths)
        self.kv_lengths = list(kv_lengths)
        self.page_tables = page_tables
        self.page_size = page_size
        self.device = torch.device(device)
        self.query_starts = [0]
        for length in self.query_lengths:
            self.query_starts.append(self.query_starts[-1] + length)
        self.num_rows = self.query_starts[-1]
        self.routes: dict[Hashable, Any] = {}

    @classmethod
    def of_index(cls, index: PagedIndex, slots: Tensor, page_size: int) -> Self:
        """A layout that exists on a device only, such as the static buffers of a captured step.

        Args:
            index: what the kernels read; its tensors may be filled anew between replays.
            slots: int64 `[T]`, where each row's key is written; on a GPU a negative one writes nothing.
            page_size: tokens per page.

        What needs the lengths on the host, such as a `Selector` or the dense path, finds no `query_lengths`,
        `kv_lengths`, `page_tables` or `query_starts` here and fails with an AttributeError.
        """
        layout = cls.__new__(cls)
        layout.page_size, layout.device, layout.owners = page_size, slots.device, ()
        layout.num_rows = slots.shape[0]
        layout.routes = {}
        # Values in the instance's dictionary stand in front of the cached properties of the same names.
        layout.__dict__.update(index=index, slots=slots)
        return layout

    def subset(self, sequences: Sequence[int]) -> "tuple[RaggedLayout, Tensor]":
        """The layout of some of the sequences, and int64 `[T']`: their rows in this one."""
        rows = [r for s in sequences for r in range(self.query_starts[s], self.query_starts[s + 1])]
        part = RaggedLayout(
            [self.query_lengths[s] for s in sequences],
            [self.kv_lengths[s] for s in sequences],
            [self.page_tables[s] for s in sequences],
            self.page_size,
            self.device,
            [self.owners[s] for s in sequences] if self.owners else (),
        )
        return part, torch.tensor(rows, dtype=torch.int64, device=self.device)

    @cached_property
    def table(self) -> NDArray[np.int32]:
        """`[S, P]` on the host: each sequence's pages, with zeros behind them."""
        counts = -(-np.array(self.kv_lengths, dtype=np.int32) // self.page_size)
        table = np.zeros((len(counts), max(int(counts.max(initial=0)), 1)), dtype=np.int32)
        pages = chain.from_iterable(pages[:count] for pages, count in zip(self.page_tables, counts, strict=True))
        table[np.arange(table.shape[1]) < counts[:, None]] = np.fromiter(pages, dtype=np.int32, count=int(counts.sum()))
        return table

    @property
    def on_host(self) -> bool:
        """Whether the lengths and pages are known on the host, too."""
        return "query_lengths" in self.__dict__

    @cached_property
    def is_contiguous(self) -> bool:
        """Whether the pages of every sequence are known to follow each other."""
        return self.on_host and None not in self.first_pages

    @cached_property
    def first_pages(self) -> list[int | None]:
        """Per sequence its first page where all its pages follow each other, else None."""
        counts = -(-np.array(self.kv_lengths) // self.page_size)
        breaks = (np.diff(self.table, axis=1) != 1) & (np.arange(1, self.table.shape[1]) < counts[:, None])
        return [
            None if broken else first for broken, first in zip(breaks.any(1), self.table[:, 0].tolist(), strict=True)
        ]

    def gather(self, s: int, *pools: Tensor) -> list[Tensor]:
        """`[N, Hkv, D]` of each pool `[P, page_size, Hkv, D]`: what sequence s holds there; a view where its pages
        follow each other, a copy otherwise."""
        length, first = self.kv_lengths[s], self.first_pages[s]
        if first is not None:
            start = first * self.page_size
            return [pool.flatten(0, 1)[start : start + length] for pool in pools]
        pages = self.index.page_table[s, : -(-length // self.page_size)]
        return [pool.index_select(0, pages).flatten(0, 1)[:length] for pool in pools]

    @cached_property
    def index(self) -> PagedIndex:
        """The layout in the device's memory, brought there in one copy that the host does not wait for."""
        parts = [
            np.array(self.query_starts, dtype=np.int32),
            np.array(self.kv_lengths, dtype=np.int32),
            self.table.reshape(-1),
        ]
        there = self.upload(np.concatenate(parts))
        starts, kv_lengths, table = there.split([part.size for part in parts])
        most = max(self.query_lengths, default=0), max(self.kv_lengths, default=0)
        return PagedIndex(starts, kv_lengths, table.view(self.table.shape), *most)

    @cached_property
    def slots(self) -> Tensor:
        """int64 `[T]`: the cache slot (page x page size + offset) into which each row's key is written."""
        queries, keys = np.array(self.query_lengths), np.array(self.kv_lengths)
        sequence = np.repeat(np.arange(len(queries)), queries)
        place = np.arange(self.num_rows) + (keys - np.array(self.query_starts[1:]))[sequence]
        pages = self.table[sequence, place // self.page_size].astype(np.int64)
        return self.upload(pages * self.page_size + place % self.page_size)

    def upload(self, values: NDArray[Any] | Sequence[int]) -> Tensor:
        """The values on the device, by way of pinned memory where that is a GPU, so that nobody waits."""
        tensor = torch.from_numpy(np.asarray(values))
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    @cached_property
    def rectangles(self) -> list[Rectangle]:
        """The step's sequences in groups of like shape: short ones together, each long chunk alone."""
        groups: list[list[int]] = []
        order = sorted(range(len(self.query_lengths)), key=lambda s: (self._width(s), self.kv_lengths[s]))
        for s in order:
            first = groups[-1][0] if groups else None
            if (
                first is not None
                and self._width(s) == self._width(first) <= SHARED_ROWS
                and self.kv_lengths[s] <= self.kv_lengths[first] * _LENGTH_RATIO + _LENGTH_SLACK
            ):
                groups[-1].append(s)
            else:
                groups.append([s])
        return [self._rectangle(group) for group in groups]

    def _width(self, s: int) -> int:
        """Rows of sequence s rounded up to a power of two, so that drafts of like length share a rectangle."""
        return 1 << (self.query_lengths[s] - 1).bit_length()

    def _rectangle(self, group: list[int]) -> Rectangle:
        width = max(self.query_lengths[s] for s in group)
        depth = -(-max(self.kv_lengths[s] for s in group) // self.page_size)
        rows, pages = [], []
        for s in group:
            start, length = self.query_starts[s], self.query_lengths[s]
            rows.append(list(range(start, start + length)) + [start + length - 1] * (width - length))
            table = list(self.page_tables[s][: -(-self.kv_lengths[s] // self.page_size)])
            pages.append(table + [table[-1]] * (depth - len(table)))
        return Rectangle(
            sequences=group,
            rows=torch.tensor(rows, dtype=torch.int64, device=self.device),
            pages=torch.tensor(pages, dtype=torch.int64, device=self.device),
            query_lengths=[self.query_lengths[s] for s in group],
            kv_lengths=[self.kv_lengths[s] for s in group],
        )
