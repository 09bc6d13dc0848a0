"""Which prompts of a job are run together: groups with one shared prefix each, cut out of the global prefix tree."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headstart.engine.prefixes import Run, runs, sorted_prefixes


@dataclass(frozen=True)
class Group:
    """Prompts that share their first `prefix` tokens; one that shares nothing worth it stands alone, with 0.

    `prompts` are places in the job, in the order of their tokens, so that what some share beyond the prefix is met
    together as well.
    """

    prefix: int
    prompts: list[int]


@dataclass
class _Reduced:
    """A node of the tree with its prompts in groups: lengths count from the node's parent; the first are its own."""

    run: Run
    own: list[int]
    cut: list[tuple[int, list[int]]]


def first_level_groups(prompts: Sequence[Sequence[int]], least: int = 1) -> list[Group]:
    """One level of sharing (BatchLLM, section 4): bottom-up, a group leaves its node's prefix where that saves more.

    A group of k prompts with t tokens below a node of l tokens is cut out, with the node's tokens copied in front,
    where (k - 1) t > l; otherwise its prompts are the node's own.

    Args:
        prompts: token ids.
        least: tokens that a prefix needs to be shared, the size of a page say.

    Returns:
        Groups in the order of their tokens; every prompt is in one.
    """
    order, shared = sorted_prefixes([np.asarray(prompt, dtype=np.int32) for prompt in prompts])
    everything = Run(0, len(prompts), 0, 0)
    done: list[_Reduced] = []
    for run in [*runs(shared), everything]:
        below: list[_Reduced] = []
        while done and done[-1].run.low >= run.low:
            below.append(done.pop())
        done.append(_reduce(run, below[::-1], order.tolist()))
    root = done[-1]
    # The root has no tokens of its own to copy: every group stands.
    alone = [(0, [place]) for place in root.own]
    groups = alone
    for length, members in root.cut:
        whole = length >= least and len(members) > 1
        groups += [(length, members)] if whole else [(0, [place]) for place in members]
    rank = {place: number for number, place in enumerate(order.tolist())}
    found = [Group(length, sorted(members, key=rank.__getitem__)) for length, members in groups]
    return sorted(found, key=lambda group: rank[group.prompts[0]])


def _reduce(run: Run, below: list[_Reduced], order: list[int]) -> _Reduced:
    """A node whose children are in groups already."""
    length = run.depth - run.above
    taken = {place for child in below for place in range(child.run.low, child.run.high)}
    own = [order[place] for place in range(run.low, run.high) if place not in taken]
    cut: list[tuple[int, list[int]]] = []
    for child in below:
        for tokens, members in ((child.run.depth - child.run.above, child.own), *child.cut):
            if (len(members) - 1) * tokens > length:
                cut.append((tokens + length, members))
            else:
                own += members
    return _Reduced(run, own, cut)


def saved_tokens(groups: Sequence[Group]) -> int:
    """Prompt tokens that need not be read again."""
    return sum(group.prefix * (len(group.prompts) - 1) for group in groups)
