"""One step's flat list of tokens: prefill chunks and decodes alike are rows of it, and nothing is padded."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.engine.request import Sequence
from headstart.engine.seams import Draft
from headstart.ops.attention import RaggedLayout


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
        return self.sequence.num_computed + self.num_tokens == len(self.sequence.tokens)


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
    def build(cls, allotments: Seq[Allotment], page_size: int, device: torch.device) -> "TokenBatch":
        """Lay the allotments' next tokens out in one list; their pages must be reserved."""
        token_ids: list[int] = []
        positions: list[int] = []
        lengths: list[int] = []
        logit_rows: list[int] = []
        for allotment in allotments:
            sequence, share = allotment.sequence, allotment.num_tokens
            start = sequence.num_computed
            end = start + allotment.num_rows
            top = len(token_ids)
            token_ids += [*sequence.tokens[start : start + share], *allotment.guesses]
            positions += range(start, end)
            prompt = min(max(sequence.num_prompt - start, 0), share)
            lengths += [sequence.num_prompt] * prompt
            lengths += range(start + prompt + 1, end + 1)
            if sequence.wants_prompt_rows and start < sequence.num_prompt:
                logit_rows += range(top, top + share)
            elif allotment.completes:
                logit_rows += range(top + share - 1, top + allotment.num_rows)

        def indices(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        layout = RaggedLayout(
            [a.num_rows for a in allotments],
            [a.sequence.kv_length + a.num_rows for a in allotments],
            [a.sequence.pages for a in allotments],
            page_size,
            device,
        )
        return cls(
            indices(token_ids),
            indices(positions),
            indices(lengths),
            layout,
            indices(logit_rows),
            list(allotments),
        )
