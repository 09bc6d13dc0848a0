"""Which pages the sequences of a step share, and which of these are worth reading together."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MOST_SEGMENTS = 32
"""Shared segments of a step at most: a captured step has room for so many."""


@dataclass(frozen=True)
class Costs:
    """What is worth sharing, all in keys of one layer.

    Attributes:
        page_size: keys of a page.
        levels: segments that a sequence looks at, at most.
        threshold: keys that a step must be spared reading in all.
        part: what a segment costs each of its sequences: a query read again, a result written and read in float32.
    """

    page_size: int
    levels: int
    threshold: int
    part: int


@dataclass(frozen=True)
class Segment:
    """Columns `first` to `last` of the page table, which are the same for these sequences.

    Attributes:
        sequences: int64 `[N]`, at least 2 of the step's, ascending.
        level: how many segments stand before it on the way from the root.
    """

    first: int
    last: int
    sequences: NDArray[np.int64]
    level: int


@dataclass(eq=False)
class _Node:
    """A run of the sorted sequences, `[low, high)`, whose first `depth` pages agree and no more; of its parent's,
    `above` do."""

    low: int
    high: int
    depth: int
    above: int
    children: list["_Node"] = field(default_factory=list)
    best: dict[tuple[int, int], tuple[int, bool]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many sequences it has."""
        return self.high - self.low


def shared_segments(table: NDArray[np.int32], usable: NDArray[np.int64], costs: Costs) -> list[Segment]:
    """The segments that spare most reading: over the prefix tree of the page tables, by dynamic programming.

    A segment of n keys that k sequences share spares (k - 1) n keys and costs each of the k a part.

    Args:
        table: int32 `[S, P]`, the page of each place; what is behind a sequence's last may be anything.
        usable: int64 `[S]`, how many pages of each may be shared: whole ones, before its own rows.
        costs: what is worth it.

    Returns:
        Segments from the root down; nothing where sharing does not pay.
    """
    order, depths = _sorted(table, usable)
    roots = _nested(_promising(_nodes(depths), costs))
    if sum(_best(node, 0, costs.levels, costs) for node in roots) < max(costs.threshold, 1):
        return []
    found: list[Segment] = []
    for node in roots:
        _collect(node, 0, costs, order, found)
    return sorted(found, key=lambda segment: segment.level)


def _sorted(table: NDArray[np.int32], usable: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[int]]:
    """The sequences in an order in which those that begin alike are neighbours, and how many pages neighbours share."""
    count, width = len(table), max(int(usable.max(initial=0)), 1)
    # What may not be shared is like nothing else.
    own = -1 - np.arange(count, dtype=np.int32)[:, None]
    pages = np.where(np.arange(width) < usable[:, None], table[:, :width], own)
    names = [row.tobytes() for row in pages]
    order = np.array(sorted(range(count), key=names.__getitem__), dtype=np.int64)
    differs = pages[order[1:]] != pages[order[:-1]]
    depths = np.where(differs.any(1), differs.argmax(1), width)
    return order, depths.tolist()


def _nodes(depths: list[int]) -> list[_Node]:
    """The inner nodes of the prefix tree over sorted sequences, but for its root."""
    found: list[_Node] = []
    stack = [(0, 0)]  # depth and first sequence of what is open
    for place, depth in enumerate([*depths, 0], start=1):
        low = place - 1
        while depth < stack[-1][0]:
            closed, low = stack.pop()
            found.append(_Node(low, place, closed, max(depth, stack[-1][0])))
        if depth > stack[-1][0]:
            stack.append((depth, low))
    return found


def _promising(nodes: list[_Node], costs: Costs) -> list[_Node]:
    """Those that could pay, and of them the few whose own pages spare most."""
    pays = [node for node in nodes if (node.size - 1) * node.depth * costs.page_size > costs.part * node.size]
    return sorted(pays, key=lambda node: (node.size - 1) * (node.above - node.depth))[:MOST_SEGMENTS]


def _nested(nodes: list[_Node]) -> list[_Node]:
    """The roots of the forest of these nodes, each below the least that holds it."""
    roots: list[_Node] = []
    path: list[_Node] = []
    for node in sorted(nodes, key=lambda node: (node.low, -node.high)):
        while path and path[-1].high <= node.low:
            path.pop()
        (path[-1].children if path else roots).append(node)
        path.append(node)
    return roots


def _best(node: _Node, above: int, levels: int, costs: Costs) -> int:
    """The most keys that can be spared at and below a node, where its first `above` pages are in segments already."""
    if (above, levels) not in node.best:
        closed = sum(_best(child, above, levels, costs) for child in node.children)
        opened = -1
        if levels:
            opened = (node.size - 1) * (node.depth - above) * costs.page_size - costs.part * node.size
            opened += sum(_best(child, node.depth, levels - 1, costs) for child in node.children)
        node.best[above, levels] = max(opened, closed), opened > closed
    return node.best[above, levels][0]


def _collect(
    node: _Node, above: int, costs: Costs, order: NDArray[np.int64], found: list[Segment], level: int = 0
) -> None:
    """The segments of the best choice."""
    _best(node, above, costs.levels - level, costs)
    if node.best[above, costs.levels - level][1]:
        found.append(Segment(above, node.depth, np.sort(order[node.low : node.high]), level))
        above, level = node.depth, level + 1
    for child in node.children:
        _collect(child, above, costs, order, found, level)
