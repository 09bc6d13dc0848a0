"""Prepacking (arXiv 2404.09529): several short prompts in one row of a rectangular batch."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from headstart.engine.seams import LastAttend, Prefill, StepAttend
from headstart.errors import MethodError
from headstart.evaluation.method_bench_spec import MethodBench, Own, Quality
from headstart.methods.prefill.prepacking.rectangles import Rectangle, first_fit_decreasing
from headstart.methods.registry import Claim, Paper, method
from headstart.models.decoder import AttentionSpec, Decoder
from headstart.ops.staging import to_device

if TYPE_CHECKING:
    from headstart.checkpoints.reader import Checkpoint
    from headstart.engine.batch import TokenBatch

# Prompts of like length that are padded together, where rows are sorted.
_SORTED = 8


@method(
    "prepacking",
    stage="prefill",
    paper=Paper(
        "Prepacking: A Simple Method for Fast Prefilling and Increased Throughput in Large Language Models",
        arxiv="2404.09529",
        venue="arXiv, 2024",
    ),
    claim=Claim(
        "prefill 5.2 times faster than padded batches: 0.441 s instead of 2.299 s",
        setting="""Llama 1.3B, MMLU prompts, batch 64, one A6000 48 GB; batches ordered by length take 0.658 s;
        peak memory 4.6 GB instead of 34.6 GB""",
        source="official README",
    ),
    when_not="""In this engine, whose flat batch has no padding and the whole gain already; for backends that want
    rectangles it does not pay where prompts are of equal length.""",
    composes="Paged caches, quantisation.",
    conflicts="""Methods with statistics per row, such as token pruning by total attention; ways to attend and selectors
    for prompts, which it does not ask; models with soft caps.""",
)
class Prepacking(Prefill):
    """Packs several short prompts into one row of a padded batch, by bin packing. A block-diagonal mask and positions
    that restart keep the prompts apart. One prefill serves all of them, each token's keys go to the pages of its own
    prompt, and generation goes on as usual. The result is exact, and time and memory shrink with the padding avoided.

    It acts on prompts that are read from their beginning; chunks behind something cached, and decodes, run as ever.

    Args:
        rows: "packed" as above, or the baselines: "padded" to the longest prompt of the step with one in each row,
            "sorted" by length and padded by eights.
        capacity: places of a row; 0 takes the longest prompt of the step, as the paper does.
    """

    def __init__(self, rows: Literal["packed", "padded", "sorted"] = "packed", capacity: int = 0) -> None:
        if not 0 <= capacity < 2**31:
            raise MethodError(f"prepacking: capacity must be a number of tokens of at least 0, not {capacity}")
        self.rows, self.capacity = rows, capacity
        self._counts: Counter[str] = Counter(prompts=0, tokens=0, rows=0, places=0)

    @classmethod
    def bench(cls) -> MethodBench:
        """Padded, sorted, packed and flat, on prompts of very different lengths."""
        own = Own("headstart.methods.prefill.prepacking.bench")
        return MethodBench(("prepacking:rows=padded",), (own, Quality(tasks=())), ("job",))

    def start(self, checkpoint: "Checkpoint") -> None:
        if any(spec.softcap is not None for spec in checkpoint.decoder.attention_specs):
            raise MethodError(f"prepacking: {checkpoint.name} caps its scores, which rectangles do not; leave it out")

    def counters(self) -> dict[str, int]:
        """Prompts that were packed or padded, their tokens, and the rows and places that they took."""
        return dict(self._counts)

    def forward(self, decoder: Decoder, batch: "TokenBatch", attend: StepAttend) -> Tensor:
        layout = batch.layout
        lengths, starts = layout.query_lengths, layout.query_starts
        fresh = [
            s
            for s, allotment in enumerate(batch.allotments)
            if layout.kv_lengths[s] == lengths[s] and not allotment.sequence.decoding
        ]
        if not fresh:
            hidden = decoder(batch.token_ids, batch.positions, attend, batch.lengths)
            return hidden.index_select(0, batch.logit_rows)
        own_lengths, own_starts = [lengths[s] for s in fresh], [starts[s] for s in fresh]
        rectangles = [Rectangle.of(bins, own_starts, own_lengths, layout.device) for bins in self._bins(own_lengths)]
        packed = set(fresh)
        counts = [0 if s in packed else length for s, length in enumerate(lengths)]
        step = _Step(rectangles, batch, attend, counts)
        self._count(own_lengths, rectangles)
        hidden = decoder(*step.inputs, step, step.lengths)
        return hidden.index_select(0, step.places.index_select(0, batch.logit_rows))

    def _bins(self, lengths: Sequence[int]) -> list[list[list[int]]]:
        """Per rectangle, the prompts of each of its rows."""
        if self.rows == "packed":
            return [first_fit_decreasing(lengths, max(self.capacity, *lengths, 1))]
        if self.rows == "padded":
            return [[[item] for item in range(len(lengths))]]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        return [[[item] for item in order[first : first + _SORTED]] for first in range(0, len(order), _SORTED)]

    def _count(self, lengths: Sequence[int], rectangles: Sequence[Rectangle]) -> None:
        self._counts["prompts"] += len(lengths)
        self._counts["tokens"] += sum(lengths)
        self._counts["rows"] += sum(len(rectangle.sources) for rectangle in rectangles)
        self._counts["places"] += sum(rectangle.places for rectangle in rectangles)


class _Step:
    """A step whose rows are the places of the rectangles, followed by its rows that are in none: its `Attend`.

    Attributes:
        inputs: token ids and positions, int64 `[R]` each; 0 at empty places.
        lengths: int64 `[R]`, as in `TokenBatch`.
        places: int64 `[T]`, where each row of the batch stands now.
    """

    def __init__(
        self, rectangles: list[Rectangle], batch: "TokenBatch", attend: StepAttend, others: Sequence[int]
    ) -> None:
        self._rectangles, self._attend = rectangles, attend
        self._sizes = [rectangle.places for rectangle in rectangles]
        starts = batch.layout.query_starts
        left = [row for s, count in enumerate(others) for row in range(starts[s], starts[s] + count)]
        self._others: LastAttend | None = attend.last(others) if left else None
        sources = np.concatenate([*(each.sources.reshape(-1) for each in rectangles), np.array(left, dtype=np.int64)])
        taken = np.flatnonzero(sources >= 0)
        places = np.empty(batch.layout.num_rows, dtype=np.int64)
        places[sources[taken]] = taken
        device = batch.token_ids.device
        self.places = to_device(places, device)
        where, empty = to_device(np.maximum(sources, 0), device), to_device(sources < 0, device)
        tokens, positions = (x.index_select(0, where) for x in (batch.token_ids, batch.positions))
        self.inputs = tokens.masked_fill(empty, 0), positions.masked_fill(empty, 0)
        self.lengths = batch.lengths.index_select(0, where).masked_fill(empty, 1)

    def __call__(self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`q [R, H, D]`, `k, v [R, Hkv, D]` → `[R, H, D]`."""
        self._attend.keep(spec, k.index_select(0, self.places), v.index_select(0, self.places))
        left = len(q) - sum(self._sizes)
        parts = zip(self._rectangles, *(x.split([*self._sizes, left]) for x in (q, k, v)), strict=False)
        out = [rectangle.attend(*part, spec.scale, spec.window) for rectangle, *part in parts]
        if self._others is not None:
            out.append(self._others(spec, q[len(q) - left :]))
        return torch.cat(out)
