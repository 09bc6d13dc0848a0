"""Prompts of any lengths in the rows of rectangles: several to a row, or one to a row and padded."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from headstart.ops.staging import to_device


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of items that together are no longer than the capacity; longest first, each into the first with room.

    Args:
        lengths: of the items, none beyond the capacity.
        capacity: of a bin.

    Returns:
        Per bin the places of its items in `lengths`, in the order in which they came in.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        place = next((place for place, left in enumerate(room) if left >= lengths[item]), len(bins))
        if place == len(bins):
            bins.append([])
            room.append(capacity)
        bins[place].append(item)
        room[place] -= lengths[item]
    return bins


@dataclass(frozen=True)
class Rectangle:
    """R rows of S places.

    Attributes:
        sources: int64 `[R, S]`, the step's row at each place; -1 where it is empty.
        segments: int64 `[R, S]`, the number of the prompt within its row; -1 where it is empty.
        device: where it is attended.
    """

    sources: NDArray[np.int64]
    segments: NDArray[np.int64]
    device: torch.device

    @classmethod
    def of(
        cls, bins: Sequence[Sequence[int]], starts: Sequence[int], lengths: Sequence[int], device: torch.device
    ) -> Self:
        """Of prompts, each given by its first row in the step and its length, one after the other in their bins."""
        width = max(sum(lengths[item] for item in items) for items in bins)
        sources, segments = np.full((2, len(bins), width), -1, dtype=np.int64)
        for row, items in enumerate(bins):
            at = 0
            for number, item in enumerate(items):
                sources[row, at : at + lengths[item]] = np.arange(starts[item], starts[item] + lengths[item])
                segments[row, at : at + lengths[item]] = number
                at += lengths[item]
        return cls(sources, segments, device)

    @property
    def places(self) -> int:
        """R x S."""
        return self.sources.size

    @cached_property
    def _own(self) -> Tensor:
        return to_device(self.segments, self.device)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """Causal attention within each prompt: `q [R x S, H, D]`, `k, v [R x S, Hkv, D]` → `[R x S, H, D]`."""
        rows = len(self.sources)
        q, k, v = (x.unflatten(0, (rows, -1)).transpose(1, 2) for x in (q, k, v))  # [R, H, S, D]
        alone = window is None and bool((self.segments <= 0).all())
        mask = None if alone else self._mask(window)
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=alone, scale=scale, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)

    def _mask(self, window: int | None) -> Tensor:
        """bool `[R, 1, S, S]`, block-diagonal and causal. Empty places see each other, and nobody sees them."""
        place = torch.arange(self.sources.shape[1], device=self.device)
        seen = place[:, None] >= place
        if window is not None:
            seen &= place[:, None] - place < window
        return (seen & (self._own[:, :, None] == self._own[:, None, :]))[:, None]
