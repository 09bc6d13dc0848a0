"""What the sequences of a step share, laid out for the attention op; made once for as long as they stay the same."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.methods.decode.hydragen.sharing import Costs, Segment, shared_segments
from headstart.ops.attention import RaggedLayout, SharedKeys
from headstart.ops.staging import to_device


@dataclass(eq=False)
class Plan:
    """The shared segments of a set of sequences.

    Attributes:
        segments: from the root down; empty where sharing does not pay.
        rows: int64 `[V]`, the step's rows that look at segments, one segment after another.
        counts: rows of each segment.
        places: int32 `[L, T]`, where in `rows` each row stands at each level; -1 where it has no segment there.
        depths: int64 `[S]`, pages of each sequence that are in segments.
        spared: keys that are not read again, in each layer of a step.
    """

    segments: list[Segment]
    rows: NDArray[np.int64]
    counts: list[int]
    places: NDArray[np.int32]
    depths: NDArray[np.int64]
    spared: int
    _queries: list[int]
    _first: NDArray[np.int32]
    _pages: NDArray[np.int32]
    _shared: NDArray[np.bool_]
    _on_device: tuple[torch.Tensor, RaggedLayout, torch.Tensor] | None = None

    @classmethod
    def make(cls, layout: RaggedLayout, table: NDArray[np.int32], costs: Costs) -> "Plan":
        """Of a step.

        Args:
            layout: of its sequences.
            table: int32 `[S, P]`, their pages.
            costs: as for `shared_segments`.
        """
        segments = shared_segments(table, _usable(layout), costs)
        queries, starts = np.array(layout.query_lengths), np.array(layout.query_starts)
        depths = np.zeros(len(queries), dtype=np.int64)
        places = np.full((costs.levels, layout.num_rows), -1, dtype=np.int32)
        rows: list[NDArray[np.int64]] = []
        spared = at = 0
        for segment in segments:
            depths[segment.sequences] = segment.last
            its = _ranges(starts[segment.sequences], queries[segment.sequences])
            places[segment.level, its] = np.arange(at, at + len(its))
            rows.append(its)
            at += len(its)
            spared += (len(segment.sequences) - 1) * (segment.last - segment.first) * layout.page_size
        width = int(depths.max(initial=0))
        return cls(
            segments=segments,
            rows=np.concatenate(rows) if rows else np.empty(0, np.int64),
            counts=[len(its) for its in rows],
            places=places,
            depths=depths,
            spared=spared,
            _queries=list(layout.query_lengths),
            _first=table[:, 0].copy(),
            _pages=table[:, :width].copy(),
            _shared=np.arange(width) < depths[:, None],
        )

    def holds(self, layout: RaggedLayout, table: NDArray[np.int32]) -> bool:
        """Whether it is right for a step, and nobody has come or gone since it was made."""
        width = self._shared.shape[1]
        return (
            layout.query_lengths == self._queries
            and table.shape[1] >= width
            and np.array_equal(table[:, 0], self._first)
            and bool((_usable(layout) >= self.depths).all())
            and not ((table[:, :width] != self._pages) & self._shared).any()
        )

    def parts(self, layout: RaggedLayout) -> SharedKeys:
        """For a step that it holds for: the segments stay on the device, what each has for itself is the step's own."""
        if self._on_device is None:
            places = self.places[: 1 + max(segment.level for segment in self.segments)]
            segments = RaggedLayout(
                self.counts,
                [(segment.last - segment.first) * layout.page_size for segment in self.segments],
                [self.pages(segment).tolist() for segment in self.segments],
                layout.page_size,
                layout.device,
            )
            rows, where = to_device(self.rows, layout.device), to_device(places, layout.device)
            self._on_device = rows, segments, where
        rows, segments, places = self._on_device
        own = RaggedLayout(
            layout.query_lengths,
            self.own_lengths(layout).tolist(),
            [pages[depth:] for pages, depth in zip(layout.page_tables, self.depths.tolist(), strict=True)],
            layout.page_size,
            layout.device,
        )
        return SharedKeys(rows, segments, places, own)

    def pages(self, segment: Segment) -> NDArray[np.int32]:
        """The pages of a segment."""
        return self._pages[segment.sequences[0], segment.first : segment.last]

    def own_lengths(self, layout: RaggedLayout) -> NDArray[np.int64]:
        """int64 `[S]`, keys of each sequence that are in no segment."""
        return np.array(layout.kv_lengths) - self.depths * layout.page_size


def _usable(layout: RaggedLayout) -> NDArray[np.int64]:
    """int64 `[S]`, whole pages before the rows of each sequence: all that others may see as well."""
    return (np.array(layout.kv_lengths) - np.array(layout.query_lengths)) // layout.page_size


def _ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """`[start, start + count)` of each, one after the other."""
    tops = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) + np.repeat(starts - tops, counts)
