"""Which blocks of a sequence a query may ever see, by their places alone: the first ones, the near ones, every n-th."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Reach:
    """A static rule over blocks of tokens, which stand at multiples of `block` in each sequence. A query in block I
    sees block J, causally, where J < `sink`, or I - J < `local`, or J + 1 is a multiple of `stride`.

    What no later query sees need not be kept, and since places alone decide, no result depends on how a prompt is cut.

    Attributes:
        block: tokens.
        sink: first blocks.
        local: nearest blocks, the query's own included; at least 1.
        stride: every so-manieth block is seen from everywhere; 0 is none.
    """

    block: int
    sink: int
    local: int
    stride: int = 0

    def sees(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Whether queries at these places see keys at those, both int `[...]` and broadcast together; causal."""
        near, far = queries // self.block, keys // self.block
        seen = (far < self.sink) | (near - far < self.local)
        if self.stride:
            seen = seen | ((far + 1) % self.stride == 0)
        return seen & (keys <= queries)

    def whole(self, length: int) -> bool:
        """Whether all of so many tokens see all before them."""
        return (length - 1) // self.block < self.sink + self.local

    def pages(self, first: int, last: int, page_size: int) -> NDArray[np.int64]:
        """The pages, by their numbers in the sequence, that queries at places `first` to `last` see together.

        Args:
            first, last: places of the same block, or of a sequence whose tokens see all before them.
            page_size: tokens per page, a divisor of `block`.
        """
        near, here = first // self.block, last // self.block
        blocks = np.arange(here + 1)
        seen = (blocks < self.sink) | (blocks > near - self.local)
        if self.stride:
            seen |= (blocks + 1) % self.stride == 0
        each = self.block // page_size
        pages = (blocks[seen, None] * each + np.arange(each)).reshape(-1)
        return pages[pages <= last // page_size]

    def pairs(self, length: int) -> int:
        """Query-key pairs of a sequence of so many tokens."""
        block = np.arange(-(-length // self.block))
        rows = np.minimum(length - block * self.block, self.block)
        before = np.minimum(block, self.sink + self.local - 1)
        if self.stride:
            beyond = np.maximum(block - self.local + 1, self.sink)  # blocks from the sink on that are not near
            before = before + beyond // self.stride - self.sink // self.stride
        return int((rows * before * self.block + rows * (rows + 1) // 2).sum())

    def most_pages(self, length: int, page_size: int) -> int:
        """The most pages that are kept for a sequence of up to so many tokens, before any longer chunk is read."""
        blocks = -(-length // self.block)
        strided = blocks // self.stride if self.stride else 0
        return min(blocks, self.sink + self.local + strided) * (self.block // page_size)


def seen_mask(reach: Reach, length: int, device: torch.device | str = "cpu") -> Tensor:
    """bool `[N, N]`: the rule written out for one sequence."""
    place = torch.arange(length, device=device)
    return reach.sees(place[:, None], place[None])
