"""What the rows of a step's hidden states are for: the next token, the prompt's log-probabilities, an embedding."""

import numpy as np
import torch
from torch import Tensor

from headstart.engine.batch import Allotment
from headstart.engine.runner import Runner
from headstart.engine.sampler import Sampler
from headstart.ops.staging import to_device

# Logits of prompt rows are made this many at a time: a vocabulary of 150 thousand takes 600 KB a row.
_LOGIT_ROWS = 128


class HiddenRows:
    """Hands out the rows of `TokenBatch.logit_rows`, which lie in batch order.

    Args:
        runner: makes logits.
        sampler: makes entries of log-probabilities.
    """

    def __init__(self, runner: Runner, sampler: Sampler) -> None:
        self._runner, self._sampler = runner, sampler

    def collect(self, allotments: list[Allotment], hidden: Tensor) -> tuple[list[Allotment], Tensor]:
        """Give poolers and prompt log-probabilities the rows `[N, hidden]` that are theirs.

        Returns:
            The allotments after which a token is due, and their rows, those of guessed tokens included.
        """
        due: list[Allotment] = []
        rows: list[int] = []
        at = 0
        for allotment in allotments:
            sequence = allotment.sequence
            if sequence.request.pooler is not None:
                width = allotment.num_tokens if sequence.wants_prompt_rows else int(allotment.completes)
                sequence.request.pooler.add(hidden[at : at + width], sequence.num_computed)
                at += width
                continue
            if sequence.wants_prompt_logprobs and sequence.num_computed < sequence.num_prompt:
                self._note_prompt(allotment, hidden[at : at + allotment.num_tokens])
                at += allotment.num_tokens
            elif allotment.completes:
                at += 1 + len(allotment.guesses)
            if allotment.completes:
                due.append(allotment)
                rows += range(at - 1 - len(allotment.guesses), at)
        if len(rows) == hidden.shape[0]:
            return due, hidden
        return due, hidden[to_device(np.array(rows, dtype=np.int64), hidden.device)]

    def _note_prompt(self, allotment: Allotment, hidden: Tensor) -> None:
        """Log-probabilities of the prompt tokens that these rows predict."""
        sequence = allotment.sequence
        request, count = sequence.request, sequence.params.prompt_logprobs
        assert count is not None
        if request.prompt_logprobs is None or sequence.num_computed == 0:
            request.prompt_logprobs = [None]
        first = sequence.num_computed + 1
        for top in range(0, hidden.shape[0], _LOGIT_ROWS):
            tokens = sequence.tokens[first + top : min(first + top + _LOGIT_ROWS, sequence.num_prompt)]
            tokens = tokens[: hidden.shape[0] - top]
            if tokens:
                logits = self._runner.logits(hidden[top : top + len(tokens)])
                logprobs = torch.log_softmax(logits, -1)
                request.prompt_logprobs += self._sampler.entries(logprobs, tokens, count)
