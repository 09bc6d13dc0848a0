"""Embeddings by pooling: the last layer's hidden states of a prompt, made into one vector."""

import math
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from headstart.checkpoints.files import read_json
from headstart.errors import InvalidRequestError

Pooling = Literal["auto", "last", "mean"]

# What Sentence Transformers, which models for embeddings are published with, calls them.
_MODES = {"pooling_mode_lasttoken": "last", "pooling_mode_mean_tokens": "mean"}


class Pooler:
    """Gathers the hidden states of one prompt, however it is cut into chunks.

    Args:
        pooling: "last" takes the last token's state, "mean" the mean over all tokens, "auto" what the checkpoint says.
        checkpoint: its directory; None has no say.
        dimensions: how much of the embedding is wanted; None is all of it.

    Attributes:
        wants_all: whether the states of all tokens are needed, rather than the last one's.

    Raises:
        InvalidRequestError: the checkpoint says something else.
    """

    def __init__(self, pooling: Pooling, checkpoint: Path | None, dimensions: int | None = None) -> None:
        self.wants_all = (recommended_pooling(checkpoint) if pooling == "auto" else pooling) == "mean"
        self._dimensions = dimensions
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, hidden: Tensor, start: int) -> None:
        """Take the states `[N, hidden]` of tokens from `start` on; a prompt that is read again starts again."""
        if not hidden.shape[0]:
            return
        if not self.wants_all:
            # A copy, since the states may lie where the next step puts its own.
            self._sum, self._count = hidden[-1].to(torch.float32, copy=True), 1
            return
        before = self._sum if self._sum is not None and start else torch.zeros_like(hidden[0], dtype=torch.float32)
        self._sum = before + hidden.float().sum(0)
        self._count = start + hidden.shape[0]

    def vector(self) -> list[float] | None:
        """The embedding `[dimensions]`, not normalised; None while nothing was read."""
        return None if self._sum is None else (self._sum / self._count)[: self._dimensions].tolist()


def unit(vector: list[float]) -> list[float]:
    """The vector with length 1; one without any length stays."""
    length = math.hypot(*vector)
    return [value / length for value in vector] if length else vector


@cache
def recommended_pooling(checkpoint: Path | None) -> str:
    """What `1_Pooling/config.json` of a checkpoint asks for; "last" where there is none.

    Raises:
        InvalidRequestError: it asks for something that is not "last" or "mean".
    """
    path = None if checkpoint is None else checkpoint / "1_Pooling" / "config.json"
    if path is None or not path.is_file():
        return "last"
    modes = [name for name, value in read_json(path).items() if name.startswith("pooling_mode_") and value is True]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise InvalidRequestError(
            f"this model's 1_Pooling/config.json asks for {' and '.join(modes) or 'nothing'}; "
            'choose pooling "last" or "mean" yourself',
            "pooling",
        )
    return _MODES[modes[0]]
