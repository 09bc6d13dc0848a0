"""CUDA graphs of small steps: the whole network as one launch, so that the device never waits for Python.

A graph replays fixed work on fixed memory. For steps in which every sequence has one row, one is captured per batch
size of a short list, in each form that the attention in force has; for other small steps (ends of prompts, drafts that
are verified, both beside decodes) one per number of rows. A step takes the next larger one, whose rows that are left
over attend to nothing and write nothing.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.engine.batch import TokenBatch
from headstart.engine.seams import Attention, PagedAttention
from headstart.ops.attention import PagedIndex, RaggedLayout

Forward = Callable[[TokenBatch], Tensor]
Replay = Callable[[], object]
Record = Callable[[Callable[[], Tensor]], tuple[Tensor, Replay]]
"""Makes a graph of a computation: what it returns lies where each replay puts its result."""
# Runs before a capture: the first compiles kernels and chooses among them, the second meets only what is chosen.
_WARM_UPS = 2
# Rows of the graphs of mixed steps. A longer step keeps the device busy for longer than Python takes to launch it.
_MIXED_ROWS = (16, 32, 64, 128, 256)


def graph_sizes(most: int) -> list[int]:
    """Batch sizes to capture, up to `most`: a step then computes at most a fifth too many rows, beyond 8."""
    sizes = [1, 2, 4]
    while sizes[-1] < most:
        step = max(8, 1 << max(sizes[-1].bit_length() - 3, 0))
        sizes.append((sizes[-1] // step + 1) * step)
    return [size for size in sizes if size < most] + [most]


class _Buffers:
    """What the graphs read: for the largest of them, of which each takes its first rows and sequences.

    Args:
        rows, sequences, pages: the most rows, sequences and pages per sequence.
        page_size: tokens per page.
        device: where.
    """

    def __init__(self, rows: int, sequences: int, pages: int, page_size: int, device: torch.device) -> None:
        self.page_size = page_size
        self.every = torch.arange(rows, device=device)
        # Token ids, positions, lengths and slots.
        self.rows = torch.zeros(4, rows, dtype=torch.int64, device=device)
        self.rows[3] = -1
        self.kv_lengths = torch.zeros(sequences, dtype=torch.int32, device=device)
        self.page_table = torch.zeros(sequences, pages, dtype=torch.int32, device=device)
        self.one_each = torch.arange(sequences + 1, dtype=torch.int32, device=device)
        self.query_starts = torch.zeros(sequences + 1, dtype=torch.int32, device=device)

    def batch(self, rows: int, sequences: int, max_query: int) -> TokenBatch:
        """The batch of the first rows and sequences."""
        token_ids, positions, lengths, slots = self.rows[:, :rows]
        index = PagedIndex(
            query_starts=(self.one_each if max_query == 1 else self.query_starts)[: sequences + 1],
            kv_lengths=self.kv_lengths[:sequences],
            page_table=self.page_table[:sequences],
            max_query=max_query,
            max_kv=self.page_table.shape[1] * self.page_size,
        )
        layout = RaggedLayout.of_index(index, slots, self.page_size)
        return TokenBatch(token_ids, positions, lengths, layout, self.every[:rows], [])

    def fill(self, batch: TokenBatch, rows: int, sequences: int) -> None:
        """Copy a step into the first rows and sequences, and make the others do nothing."""
        index, filled, present = batch.layout.index, batch.layout.num_rows, batch.layout.index.kv_lengths.shape[0]
        parts = batch.token_ids, batch.positions, batch.lengths, batch.layout.slots
        for mine, its in zip(self.rows[:, :filled], parts, strict=True):
            mine.copy_(its)
        self.rows[3, filled:rows] = -1
        self.kv_lengths[:present].copy_(index.kv_lengths)
        self.kv_lengths[present:sequences] = 0
        self.page_table[:present, : index.page_table.shape[1]].copy_(index.page_table)
        self.query_starts[: present + 1].copy_(index.query_starts)
        # The last of the other sequences has the rows that are left over, those before it have none.
        self.query_starts[present + 1 : sequences] = filled
        self.query_starts[sequences : sequences + 1] = rows


@dataclass(frozen=True)
class _Graph:
    """A captured step of so many rows and sequences; it reads its batch where it lay then, so that this has to stay."""

    rows: int
    sequences: int
    batch: TokenBatch
    hidden: Tensor
    replay: Replay


class StepGraphs:
    """Replays small steps.

    Args:
        forward: runs a batch → `[N, hidden]`, without waiting for the device.
        max_num_seqs: most sequences of a step.
        max_pages: pages of the longest sequence.
        page_size: tokens per page.
        device: a CUDA device.
        mixed: whether the graphs serve steps too in which sequences have several rows or are reading their prompts.
        record: makes a graph.
        attention: what attends in the steps (default: the ordinary one).
    """

    def __init__(
        self,
        forward: Forward,
        max_num_seqs: int,
        max_pages: int,
        page_size: int,
        device: torch.device,
        mixed: bool = False,
        record: Record | None = None,
        attention: Attention | None = None,
    ) -> None:
        self._forward, self._attention = forward, attention or PagedAttention()
        self._record = record or _Recorder()
        decodes = graph_sizes(max_num_seqs)
        self.kinds = [(rows, rows, 1) for rows in decodes]
        """Rows, sequences and most rows per sequence of each graph, smallest first, those of decodes before others."""
        if mixed:
            # One sequence more than there may be takes the rows that are left over.
            self.kinds += [(rows, min(rows // 2, max_num_seqs) + 1, rows) for rows in _MIXED_ROWS]
        self._decodes, self._mixed = decodes, mixed
        most_rows, most_sequences = (max(kind[i] for kind in self.kinds) for i in range(2))
        self._buffers = _Buffers(most_rows, most_sequences, max_pages, page_size, device)
        self._graphs: dict[tuple[int, tuple[int, int, int]], _Graph] = {}

    @torch.inference_mode()
    def capture(
        self,
        progress: Callable[[list[tuple[int, int, int]]], Iterable[tuple[int, int, int]]] = iter,
    ) -> None:
        """Capture every graph, the largest first, since the others then fit into its memory.

        Args:
            progress: shows an iteration to the user.
        """
        for kind in progress(sorted(self.kinds, reverse=True)):
            for form in range(self._attention.forms):
                rows, sequences, _ = kind
                batch = self._buffers.batch(*kind)
                self._buffers.query_starts[1:].fill_(rows)
                self._attention.hold(batch.layout, form)
                hidden, replay = self._record(lambda batch=batch: self._forward(batch))
                self._graphs[form, kind] = _Graph(rows, sequences, batch, hidden, replay)

    def fits(self, batch: TokenBatch) -> bool:
        """Whether a step is one that these graphs know."""
        return self._kind(batch) is not None

    @torch.inference_mode()
    def run(self, batch: TokenBatch) -> Tensor:
        """`[N, hidden]` of the rows whose logits the batch wants; good until the next run."""
        kind = self._kind(batch)
        assert kind is not None, "no graph knows this step"
        graph = self._graphs[self._attention.form_of(batch.layout), kind]
        self._buffers.fill(batch, graph.rows, graph.sequences)
        self._attention.refill(graph.batch.layout, batch.layout)
        graph.replay()
        count = batch.layout.num_rows
        return graph.hidden[:count] if len(batch.logit_rows) == count else graph.hidden[batch.logit_rows]

    def _kind(self, batch: TokenBatch) -> tuple[int, int, int] | None:
        rows, sequences = batch.layout.num_rows, len(batch.layout.query_lengths)
        decoding = self._mixed or all(a.sequence.decoding for a in batch.allotments)
        if rows == sequences == len(batch.logit_rows) and rows <= self._decodes[-1] and decoding:
            return self.kinds[bisect_left(self._decodes, rows)]
        others = self.kinds[len(self._decodes) :]
        return next((kind for kind in others if rows <= kind[0] and sequences < kind[1]), None)


class _Recorder:
    """Captures graphs that share their memory, since they never run at the same time."""

    def __init__(self) -> None:
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
        stream = self._stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream):
            result = compute()
        return result, graph.replay
