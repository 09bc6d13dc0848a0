"""One step's flat list of tokens: prefill chunks and decodes alike are rows of it, and nothing is padded."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headstart.engine.request import Sequence
from headstart.engine.seams import Draft
from headstart.ops.attention import RaggedLayout
from headstart.ops.staging import to_device


@dataclass(frozen=True)
class Allotment:
    """So many of a sequence's known tokens are to be computed in this step, and the draft that follows them.

    `late` is a guess of the token behind the draft: it has no row of its own, since the last row decides on it.
    """

    sequence: Sequence
    num_tokens: int
    draft: Draft | None = None
    late: Draft | None = None

    @property
    def guesses(self) -> list[int]:
        """The draft's tokens."""
        return [] if self.draft is None else self.draft.tokens

    @property
    def num_rows(self) -> int:
        """Rows that it takes in the step."""
        return self.num_tokens + len(self.guesses)

    @property
    def completes(self) -> bool:
        """Whether the sequence will have computed all that it knows, so that its next token can be sampled."""
        return self.num_tokens == self.sequence.num_uncomputed


@dataclass(frozen=True)
class TokenBatch:
    """T rows from S sequences.

    Attributes:
        token_ids: int64 `[T]`.
        positions: int64 `[T]`, each token's place in its own sequence.
        lengths: int64 `[T]`, for rotary embeddings that depend on length: the prompt's length for prompt tokens,
            position + 1 for generated ones, so that no result depends on how a prompt was cut.
        layout: where each sequence's rows and cached keys lie.
        logit_rows: int64 `[N]`, the rows whose logits are wanted, in batch order.
        allotments: the S sequences and their shares, in batch order.
    """

    token_ids: Tensor
    positions: Tensor
    lengths: Tensor
    layout: RaggedLayout
    logit_rows: Tensor
    allotments: list[Allotment]

    @classmethod
    def build(
        cls, allotments: Seq[Allotment], page_size: int, device: torch.device, drawn: Tensor | None = None
    ) -> "TokenBatch":
        """Lay the allotments' next tokens out in one list; their pages must be reserved.

        Args:
            allotments: who takes part, and with how much.
            page_size: tokens per page.
            device: where the model runs.
            drawn: int64 `[N]`, the tokens of the step before while they are on the device only; a sequence's
                `draw_row` says which is its own.
        """
        rows = _Rows(len(allotments))
        for number, allotment in enumerate(allotments):
            rows.add(number, allotment)
        layout = RaggedLayout(
            [a.num_rows for a in allotments],
            [a.sequence.kv_length + a.num_rows for a in allotments],
            [a.sequence.pages for a in allotments],
            page_size,
            device,
            [a.sequence for a in allotments],
        )
        return rows.batch(layout, list(allotments), drawn)

    def part(self, sequences: Seq[int]) -> "tuple[TokenBatch, Tensor]":
        """Some of the sequences, ascending, as a batch of their own, and int64: which of this batch's `logit_rows` are
        its."""
        layout, rows = self.layout.subset(sequences)
        mine = torch.isin(self.logit_rows, rows).nonzero()[:, 0]
        part = TokenBatch(
            self.token_ids[rows],
            self.positions[rows],
            self.lengths[rows],
            layout,
            torch.searchsorted(rows, self.logit_rows[mine]),
            [self.allotments[s] for s in sequences],
        )
        return part, mine


class _Rows:
    """A batch of S sequences in the making. Nothing here loops over tokens: a long chunk would feel it."""

    def __init__(self, num_sequences: int) -> None:
        self.token_ids: list[int] = []
        self.logit_rows: list[int] = []
        # Rows whose token is on the device only, and its place there.
        self.unknown: list[int] = []
        self.sources: list[int] = []
        # Per sequence: rows, the place of the first in it and in the batch, and the prompt's length.
        self.shape = np.zeros((4, num_sequences), dtype=np.int64)

    def add(self, number: int, allotment: Allotment) -> None:
        """Append an allotment's rows."""
        sequence, share, count = allotment.sequence, allotment.num_tokens, allotment.num_rows
        start, top = sequence.num_computed, len(self.token_ids)
        self.token_ids += sequence.tokens[start : start + share]
        self.token_ids += allotment.guesses
        if len(self.token_ids) < top + count:
            self.unknown.append(len(self.token_ids))
            self.sources.append(sequence.draw_row)
            self.token_ids.append(0)
        self.shape[:, number] = count, start, top, sequence.num_prompt
        if sequence.wants_prompt_rows and start < sequence.num_prompt:
            self.logit_rows += range(top, top + share)
        elif allotment.completes:
            self.logit_rows += range(top + share - 1, top + count)

    def batch(self, layout: RaggedLayout, allotments: list[Allotment], drawn: Tensor | None) -> TokenBatch:
        """All rows in one copy to the device."""
        counts, starts, tops, prompts = self.shape
        positions = np.arange(len(self.token_ids)) + np.repeat(starts - tops, counts)
        prompts = np.repeat(prompts, counts)
        lengths = np.where(positions < prompts, prompts, positions + 1)
        lists = (self.token_ids, self.logit_rows, self.unknown, self.sources)
        parts = [positions, lengths, *(np.array(values, dtype=np.int64) for values in lists)]
        packed = to_device(np.concatenate(parts), layout.device).split([len(part) for part in parts])
        positions, lengths, token_ids, logit_rows, unknown, sources = packed
        if self.unknown:
            assert drawn is not None, "a token is on the device only, but the step that drew it is not at hand"
            token_ids.index_copy_(0, unknown, drawn.index_select(0, sources))
        return TokenBatch(token_ids, positions, lengths, layout, logit_rows, allotments)
