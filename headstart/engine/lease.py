"""What a sequence holds of the KV cache: pages, which of them it shares, what it still keeps of bounded heads."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from headstart.engine.radix import Node
from headstart.engine.seams import PageLease

if TYPE_CHECKING:
    from headstart.engine.cache import PagedKVStore


@dataclass(eq=False)
class Lease(PageLease):
    """The pages of one sequence; the first `shared` belong to the prefix tree, the rest to this lease alone."""

    store: "PagedKVStore"
    node: Node | None
    pages: list[int]
    shared: int
    # The numbers, ascending, of the pages whose twins it holds, and how many pages had one so far.
    twins: list[int] = field(default_factory=list)
    reached: int = 0

    def __post_init__(self) -> None:
        self.num_cached = self.shared * self.store.page_size

    def reserve(self, length: int, written: int | None = None) -> bool:
        wanted = -(-length // self.store.page_size) - len(self.pages)
        if wanted > 0:
            taken = self.store.take(wanted, self.pages[-1] + 1 if self.pages else None)
            if taken is None:
                return False
            self.pages += taken
        return self.store.twins is None or self._reach(length if written is None else written)

    def _reach(self, written: int) -> bool:
        """Twins for so many tokens."""
        assert self.store.twins is not None
        until = -(-written // self.store.page_size)
        if not self.store.twins.take(self.pages[self.reached : until]):
            return False
        self.twins += range(self.reached, until)
        self.reached = max(self.reached, until)
        return True

    def advance(self, computed: int) -> None:
        if self.store.twins is None:
            return
        seen = set(self.store.twins.kept(computed).tolist())
        here = computed // self.store.page_size
        gone = [number for number in self.twins if number < here and number not in seen]
        if gone:
            self.store.twins.let_go([self.pages[number] for number in gone])
            self.twins = [number for number in self.twins if number >= here or number in seen]

    def commit(self, tokens: list[int], computed: int) -> None:
        size, tree = self.store.page_size, self.store.tree
        whole = computed // size
        if self.node is None or whole <= self.shared:
            return
        new = np.asarray(tokens[self.shared * size : whole * size], dtype=np.int32)
        own = self.pages[self.shared : whole]
        node, held = tree.insert(self.node, new, own)
        tree.lock(node)
        tree.unlock(self.node)
        if self.store.twins is not None:
            holding = set(self.twins)
            for number, (mine, its) in enumerate(zip(own, held, strict=True), self.shared):
                if mine != its:
                    self.store.twins.hand_over(mine, its, number in holding)
        # Where a neighbour was first with the same tokens, its page serves both and ours is free again.
        self.store.give_back([mine for mine, its in zip(own, held, strict=True) if mine != its])
        self.pages[self.shared : whole] = held
        self.node, self.shared = node, whole

    def keep(self, offsets: Tensor) -> bool:
        assert self.store.twins is None, "the engine refuses methods that drop keys beside heads that are bounded"
        wanted = -(-len(offsets) // self.store.page_size)
        if self.shared:
            copies = self.store.take(wanted, None)
            if copies is None:
                return False
        else:
            copies = self.pages[:wanted]
        self.store.move(self.pages, offsets, copies)
        staying = set(copies)
        self.store.give_back([page for page in self.pages[self.shared :] if page not in staying])
        if self.node is not None:
            self.store.tree.unlock(self.node)
        self.pages, self.shared, self.node = copies, 0, None
        return True

    def release(self) -> None:
        self.store.close(self)
