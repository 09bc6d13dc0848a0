"""Draws from rows of weights."""

import torch
from torch import Tensor


def invert(weights: Tensor, points: Tensor) -> Tensor:
    """`weights [N, C]`, points in [0, 1) `[N, 1]` → `[N]`, the entry within which each point of the mass falls."""
    cumulative = weights.double().cumsum(-1)
    index = torch.searchsorted(cumulative, points * cumulative[:, -1:], right=True)
    # The product can round up to the total itself: then the first entry that reaches the total is meant.
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    # A row without numbers, from a model that overflows, still gives a token that exists.
    return torch.minimum(index, last).clamp_(max=weights.shape[1] - 1).squeeze(1)
