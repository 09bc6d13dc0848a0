"""Which pages the sequences of a step share, and which of these are worth reading together."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from headstart.engine.prefixes import Run, runs, sorted_prefixes

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
    """A run of sequences that share pages, with those that lie within it."""

    run: Run
    children: list["_Node"] = field(default_factory=list)
    best: dict[tuple[int, int], tuple[int, bool]] = field(default_factory=dict)


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
    pages = [row[:count] for row, count in zip(table, usable.tolist(), strict=True)]
    order, shared = sorted_prefixes(pages)
    roots = _nested(_promising(runs(shared), costs))
    if sum(_best(node, 0, costs.levels, costs) for node in roots) < max(costs.threshold, 1):
        return []
    found: list[Segment] = []
    for node in roots:
        _collect(node, 0, costs, order, found)
    return sorted(found, key=lambda segment: segment.level)


def _promising(found: list[Run], costs: Costs) -> list[Run]:
    """Those that could pay, and of them the few whose own pages spare most."""
    pays = [run for run in found if (run.size - 1) * run.depth * costs.page_size > costs.part * run.size]
    return sorted(pays, key=lambda run: (run.size - 1) * (run.above - run.depth))[:MOST_SEGMENTS]


def _nested(found: list[Run]) -> list[_Node]:
    """The roots of the forest of these runs, each below the least that holds it."""
    roots: list[_Node] = []
    path: list[_Node] = []
    for run in sorted(found, key=lambda run: (run.low, -run.high)):
        while path and path[-1].run.high <= run.low:
            path.pop()
        node = _Node(run)
        (path[-1].children if path else roots).append(node)
        path.append(node)
    return roots


def _best(node: _Node, above: int, levels: int, costs: Costs) -> int:
    """The most keys that can be spared at and below a node, where its first `above` pages are in segments already."""
    if (above, levels) not in node.best:
        closed = sum(_best(child, above, levels, costs) for child in node.children)
        opened = -1
        if levels:
            opened = (node.run.size - 1) * (node.run.depth - above) * costs.page_size - costs.part * node.run.size
            opened += sum(_best(child, node.run.depth, levels - 1, costs) for child in node.children)
        node.best[above, levels] = max(opened, closed), opened > closed
    return node.best[above, levels][0]


def _collect(
    node: _Node, above: int, costs: Costs, order: NDArray[np.int64], found: list[Segment], level: int = 0
) -> None:
    """The segments of the best choice."""
    _best(node, above, costs.levels - level, costs)
    if node.best[above, costs.levels - level][1]:
        found.append(Segment(above, node.run.depth, np.sort(order[node.run.low : node.run.high]), level))
        above, level = node.run.depth, level + 1
    for child in node.children:
        _collect(child, above, costs, order, found, level)
