"""What captured decode steps read of a plan: fixed places on the device, filled before each replay."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.methods.decode.hydragen.plan import Plan
from headstart.methods.decode.hydragen.sharing import MOST_SEGMENTS
from headstart.ops.attention import PagedIndex, RaggedLayout, SharedKeys
from headstart.ops.staging import to_device


class Buffers:
    """Room for any plan of up to S sequences of one row each.

    Args:
        layout: of the largest captured step, S sequences of up to P pages.
        levels: of shared segments.
    """

    def __init__(self, layout: RaggedLayout, levels: int) -> None:
        device, most, pages = layout.device, layout.num_rows, layout.index.page_table.shape[1]

        def integers(*shape: int, value: int = 0, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        self.rows = integers(levels * most, dtype=torch.int64)
        self.places = integers(levels, most, value=-1)
        self.starts = integers(MOST_SEGMENTS + 1)
        self.lengths = integers(MOST_SEGMENTS)
        self.table = integers(MOST_SEGMENTS, pages)
        self.own_lengths = integers(most)
        self.own_table = integers(most, pages)
        self._filled: Plan | None = None

    def parts(self, layout: RaggedLayout) -> SharedKeys:
        """For a captured step over the first of the sequences."""
        size, page_size, index = layout.num_rows, layout.page_size, layout.index
        levels = len(self.places)
        segments = PagedIndex(self.starts, self.lengths, self.table, size, index.max_kv)
        own = PagedIndex(index.query_starts, self.own_lengths[:size], self.own_table[:size], 1, index.max_kv)
        rows = self.rows[: levels * size]
        return SharedKeys(
            rows,
            RaggedLayout.of_index(segments, rows, page_size),
            self.places[:, :size],
            RaggedLayout.of_index(own, layout.slots, page_size),
        )

    def fill(self, plan: Plan, layout: RaggedLayout, size: int) -> None:
        """Bring a step's plan to where a captured step of `size` rows reads it."""
        if plan is not self._filled:
            self._fill_segments(plan, layout)
            self._filled = plan
        lengths = np.zeros(size, dtype=np.int32)
        lengths[: layout.num_rows] = plan.own_lengths(layout)
        table = _shifted(layout.table, plan.depths)
        _put(lengths, self.own_lengths[:size])
        _put(table, self.own_table[: layout.num_rows, : table.shape[1]])

    def _fill_segments(self, plan: Plan, layout: RaggedLayout) -> None:
        """What stays the same from step to step. Rows of no segment are those of an old plan or 0, and never read."""
        rows = np.zeros(len(self.rows), dtype=np.int64)
        rows[: len(plan.rows)] = plan.rows
        starts = np.full(len(self.starts), len(plan.rows), dtype=np.int32)
        starts[: len(plan.counts) + 1] = np.cumsum([0, *plan.counts])
        widths = [segment.last - segment.first for segment in plan.segments]
        lengths = np.zeros(len(self.lengths), dtype=np.int32)
        lengths[: len(widths)] = np.array(widths) * layout.page_size
        table = np.zeros((len(widths), max(widths)), dtype=np.int32)
        for number, segment in enumerate(plan.segments):
            table[number, : widths[number]] = plan.pages(segment)
        places = np.full(tuple(self.places.shape), -1, dtype=np.int32)
        places[: len(plan.places), : plan.places.shape[1]] = plan.places
        _put(rows, self.rows)
        _put(starts, self.starts)
        _put(lengths, self.lengths)
        _put(table, self.table[: len(widths), : table.shape[1]])
        _put(places, self.places)


def _shifted(table: NDArray[np.int32], depths: NDArray[np.int64]) -> NDArray[np.int32]:
    """`[S, P']`: each row without its first pages; what is behind its last may be anything."""
    width = table.shape[1] - int(depths.min())
    columns = depths[:, None] + np.arange(width)
    return np.take_along_axis(table, np.minimum(columns, table.shape[1] - 1), axis=1)


def _put(values: NDArray[np.generic], there: Tensor) -> None:
    """Into place, without making the host wait."""
    there.copy_(to_device(values, there.device))
