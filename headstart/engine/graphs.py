"""CUDA graphs of the decode step: the whole network as one launch, so that the device never waits for Python.

A graph replays fixed work on fixed memory. One is captured per batch size of a short list, in each form that the
attention in force has; a step takes the next larger one and its rows that are left over attend to nothing and write
nothing.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headstart.engine.batch import TokenBatch
from headstart.engine.seams import Attention
from headstart.ops.attention import PagedIndex, RaggedLayout

Forward = Callable[[TokenBatch], Tensor]
_Captured = tuple[torch.cuda.CUDAGraph, Tensor, TokenBatch]
# Runs before a capture: the first compiles kernels and chooses among them, the second meets only what is chosen.
_WARM_UPS = 2


def graph_sizes(most: int) -> list[int]:
    """Batch sizes to capture, up to `most`: a step then computes at most a fifth too many rows, beyond 8."""
    sizes = [1, 2, 4]
    while sizes[-1] < most:
        step = max(8, 1 << max(sizes[-1].bit_length() - 3, 0))
        sizes.append((sizes[-1] // step + 1) * step)
    return [size for size in sizes if size < most] + [most]


@dataclass(frozen=True)
class _Buffers:
    """What the graphs read: for the largest batch, of which each takes its first rows."""

    rows: Tensor  # int64 [4, S]: token ids, positions, lengths, slots
    kv_lengths: Tensor  # int32 [S]
    page_table: Tensor  # int32 [S, P]
    query_starts: Tensor  # int32 [S + 1]

    def batch(self, size: int, page_size: int) -> TokenBatch:
        """The batch of the first `size` rows, one per sequence."""
        token_ids, positions, lengths, slots = self.rows[:, :size]
        index = PagedIndex(
            query_starts=self.query_starts[: size + 1],
            kv_lengths=self.kv_lengths[:size],
            page_table=self.page_table[:size],
            max_query=1,
            max_kv=self.page_table.shape[1] * page_size,
        )
        layout = RaggedLayout.of_index(index, slots, page_size)
        every = torch.arange(size, device=self.rows.device)
        return TokenBatch(token_ids, positions, lengths, layout, every, [])


class DecodeGraphs:
    """Replays a step in which every sequence has one row.

    Args:
        forward: runs a batch → `[N, hidden]`, without waiting for the device.
        attention: what attends in it.
        max_num_seqs: rows of the largest graph.
        max_pages: pages of the longest sequence.
        page_size: tokens per page.
        device: a CUDA device.
    """

    def __init__(
        self,
        forward: Forward,
        attention: Attention,
        max_num_seqs: int,
        max_pages: int,
        page_size: int,
        device: torch.device,
    ) -> None:
        self.sizes = graph_sizes(max_num_seqs)
        self._attention = attention
        self._forward = forward
        self._page_size = page_size
        most = self.sizes[-1]
        self._buffers = _Buffers(
            rows=torch.zeros(4, most, dtype=torch.int64, device=device),
            kv_lengths=torch.ones(most, dtype=torch.int32, device=device),
            page_table=torch.zeros(most, max_pages, dtype=torch.int32, device=device),
            query_starts=torch.arange(most + 1, dtype=torch.int32, device=device),
        )
        # A graph reads its batch where it lay at the capture, so that the batch has to stay.
        self._graphs: dict[tuple[int, int], _Captured] = {}

    @torch.inference_mode()
    def capture(self, progress: Callable[[list[int]], Iterable[int]] = iter) -> None:
        """Capture graphs for each size, the largest first, since the others then fit into its memory.

        Args:
            progress: shows an iteration to the user.
        """
        self._buffers.rows[3].fill_(-1)
        stream, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        for size in progress(self.sizes[::-1]):
            for form in range(self._attention.forms):
                self._graphs[form, size] = self._captured(size, form, stream, pool)

    def _captured(self, size: int, form: int, stream: torch.cuda.Stream, pool: Any) -> _Captured:
        batch = self._buffers.batch(size, self._page_size)
        self._attention.hold(batch.layout, form)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._forward(batch)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            hidden = self._forward(batch)
        return graph, hidden, batch

    def fits(self, batch: TokenBatch) -> bool:
        """Whether a step is one that these graphs know: a row for each sequence, all of whose logits are wanted."""
        rows = batch.layout.num_rows
        return (
            rows == len(batch.allotments) == len(batch.logit_rows)
            and rows <= self.sizes[-1]
            and all(a.sequence.decoding for a in batch.allotments)
        )

    def run(self, batch: TokenBatch) -> Tensor:
        """`[N, hidden]` of the rows of the batch; good until the next run."""
        rows = batch.layout.num_rows
        size = self.sizes[bisect_left(self.sizes, rows)]
        index, own = batch.layout.index, self._buffers
        for mine, its in zip(
            own.rows[:, :rows], (batch.token_ids, batch.positions, batch.lengths, batch.layout.slots), strict=True
        ):
            mine.copy_(its)
        own.kv_lengths[:rows].copy_(index.kv_lengths)
        own.page_table[:rows, : index.page_table.shape[1]].copy_(index.page_table)
        if size > rows:
            own.rows[3, rows:size] = -1
            own.kv_lengths[rows:size] = 0
        graph, hidden, captured = self._graphs[self._attention.form_of(batch.layout), size]
        self._attention.refill(captured.layout, batch.layout)
        graph.replay()
        return hidden[:rows]
