"""From a prompt's queries and keys to what each head looks at: the estimate at run time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.methods.prefill.minference.patterns import LayerPatterns
from headstart.ops.attention import KeyBlocks, Lines, RaggedLayout
from headstart.ops.attention.estimate import block_means, line_scores
from headstart.ops.attention.lists import lines_of, stacked, top

# Scores of blocks that are held at a time.
_SCORES = 1 << 27
# Above every sum of attention; what is kept whatever the estimate says is ordered by its place.
_SURE = 1e20


@dataclass(frozen=True)
class Estimate:
    """How places are found.

    Attributes:
        rows: last rows of queries that the estimate is made from.
        sink: first keys that are kept whatever it says.
        recent: nearest distances that are kept whatever it says.
        block: rows and keys of a block.
    """

    rows: int = 64
    sink: int = 30
    recent: int = 100
    block: int = 64

    def key_blocks(
        self, patterns: LayerPatterns, q: Tensor, k_pages: Tensor, layout: RaggedLayout, scale: float
    ) -> KeyBlocks:
        """What the rows `q [T, H, D]` of a step look at, per head."""
        heads, most = q.shape[1], patterns.most
        blocks = -(-max(layout.query_lengths) // self.block)
        capacity = min(most[2], -(-max(layout.kv_lengths) // self.block)) if most[2] else 0
        shape = len(layout.query_lengths), heads, blocks
        lists = torch.zeros(*shape, capacity, dtype=torch.int32, device=q.device)
        counts = torch.zeros(shape, dtype=torch.int32, device=q.device)
        lines = []
        for s, (start, queries) in enumerate(zip(layout.query_starts, layout.query_lengths, strict=False)):
            rows = q[start : start + queries]
            (k,) = layout.gather(s, k_pages)
            if most[0] + most[1]:
                lines.append(self._lines(patterns, rows[-self.rows :], k, scale))
            if most[2]:
                self._fill(patterns, rows, k, lists[s], counts[s])
        return KeyBlocks(lists, counts, self.block, self.block, stacked(lines) if lines else None)

    def _lines(self, patterns: LayerPatterns, q: Tensor, k: Tensor, scale: float) -> Lines:
        """Columns and diagonals of the heads that have such."""
        columns, distances = line_scores(q, k, scale)
        for scores, sure in ((columns, self.sink), (distances, self.recent)):
            forced = scores[:, :sure]
            forced.copy_(_SURE * (1 + torch.arange(forced.shape[1], 0, -1, device=q.device)))
        if "a-shape" in patterns.kinds:
            place = -torch.arange(k.shape[0], device=q.device, dtype=torch.float32)
            columns, distances = (torch.where(patterns.is_kind["a-shape"], place, x) for x in (columns, distances))
        if patterns.most[2]:
            columns, distances = (
                x.masked_fill(patterns.is_kind["block-sparse"], -torch.inf) for x in (columns, distances)
            )
        (kept, counts), far = top(columns, patterns.most[0], patterns.budgets[0]), patterns.most[1]
        best, places = distances.topk(min(far, k.shape[0]), -1)
        chosen = (best > -torch.inf) & (torch.arange(best.shape[1], device=q.device) < patterns.budgets[1][:, None])
        wanted = torch.zeros(distances.shape, dtype=torch.bool, device=q.device).scatter_(1, places, chosen)
        return lines_of(wanted, far, kept, counts, self.block, self.block)

    def _fill(self, patterns: LayerPatterns, q: Tensor, k: Tensor, lists: Tensor, counts: Tensor) -> None:
        """Blocks of the heads that have such, into `lists [H, B, K]` and `counts [H, B]`."""
        heads = patterns.block_heads
        group = q.shape[1] // k.shape[1]
        asked = block_means(q, self.block)[:, heads].transpose(0, 1)  # [h, B, D]
        known = block_means(k, self.block)[:, heads // group].permute(1, 2, 0)  # [h, D, N]
        place, number = k.shape[0] - q.shape[0], torch.arange(known.shape[2], device=q.device)
        step = max(1, _SCORES // (len(heads) * len(number)))
        for first in range(0, asked.shape[1], step):
            scores = asked[:, first : first + step] @ known
            begin = place + torch.arange(first, first + scores.shape[1], device=q.device)[:, None] * self.block
            scores.masked_fill_(number * self.block >= begin + self.block, -torch.inf)
            # Its own keys every row sees.
            scores.masked_fill_((number >= begin // self.block) & (scores > -torch.inf), torch.inf)
            found, many = top(scores, lists.shape[2], patterns.budgets[1][heads][:, None])
            here = slice(first, first + scores.shape[1])
            lists[heads, here, : found.shape[2]] = found
            counts[heads, here] = many
