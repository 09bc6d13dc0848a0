"""The prefix tree of many lists of numbers, as runs of the sorted lists: what begins alike stands together."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int32]


@dataclass(frozen=True)
class Run:
    """An inner node of the tree: the sorted lists `[low, high)`, of which the first `depth` numbers agree and no more.

    Of its parent's lists, `above` numbers agree.
    """

    low: int
    high: int
    depth: int
    above: int

    @property
    def size(self) -> int:
        """How many lists it has."""
        return self.high - self.low


def sorted_prefixes(lists: Sequence[Numbers]) -> tuple[NDArray[np.int64], list[int]]:
    """An order in which lists that begin alike are neighbours, and how many numbers neighbours share.

    Args:
        lists: int32 `[N]` each, of any lengths.

    Returns:
        int64 `[S]` and S - 1 numbers. Equal lists stand in the order given.
    """
    names = [each.astype(">i4").tobytes() for each in lists]
    order = np.array(sorted(range(len(lists)), key=names.__getitem__), dtype=np.int64)
    shared = [_agree(lists[a], lists[b]) for a, b in pairwise(order)]
    return order, shared


def _agree(a: Numbers, b: Numbers) -> int:
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length


def runs(shared: Sequence[int]) -> list[Run]:
    """The inner nodes of the tree but for its root, each after all that lie within it.

    Args:
        shared: of each two neighbours of the sorted lists, how many numbers agree.
    """
    found: list[Run] = []
    stack = [(0, 0)]  # depth and first list of what is open
    for place, depth in enumerate([*shared, 0], start=1):
        low = place - 1
        while depth < stack[-1][0]:
            closed, low = stack.pop()
            found.append(Run(low, place, closed, max(depth, stack[-1][0])))
        if depth > stack[-1][0]:
            stack.append((depth, low))
    return found
