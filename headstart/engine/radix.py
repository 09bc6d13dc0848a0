"""The prefix tree: which tokens' keys are already in which pages, shared by reference, evicted oldest first.

A radix tree whose edges are runs of whole pages. A node is locked while a lease stands on it or below it; what is
unlocked stays until its pages are wanted, and goes leaf by leaf, least recently used first.
"""

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import numpy.typing as npt

# So many outdated candidates for eviction are kept before they are swept.
_STALE = 1024

Tokens = npt.NDArray[np.int32]


@dataclass(eq=False)
class Node:
    """A run of pages: `tokens` holds `len(pages) * page_size` ids that follow the parent's.

    A root has neither, and bears its `namespace`. `keys` name the pages in lower tiers, where there are any.
    """

    parent: "Node | None"
    tokens: Tokens
    pages: list[int]
    children: dict[bytes, "Node"] = field(default_factory=dict)
    locks: int = 0
    last_used: int = 0
    namespace: str | None = None
    keys: list[bytes] = field(default_factory=list)


class PrefixTree:
    """Pages by the tokens they hold. Each namespace is a tree of its own: nothing is shared across them.

    Args:
        page_size: tokens per page; only whole pages are shared.

    Attributes:
        name_pages: names the pages of some tokens below a node, for the lower tiers; None where there are none.
        leaving: told keys and pages of what is evicted, while the pages still hold it.
    """

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.name_pages: Callable[[Node, Tokens], list[bytes]] | None = None
        self.leaving: Callable[[list[bytes], list[int]], None] | None = None
        self.num_pages = 0
        self.num_unlocked_pages = 0
        self._roots: dict[str, Node] = {}
        self._clock = count(1)
        # Candidates for eviction by age; entries go stale when their node is used, locked or grows a child.
        self._oldest: list[tuple[int, int, Node]] = []
        self._ticket = count()

    def match(self, namespace: str, tokens: Tokens) -> tuple[Node, list[int]]:
        """The deepest node whose path is a prefix of `tokens`, and the pages of that path. Splits a node if needed."""
        node = self._root(namespace)
        pages: list[int] = []
        at = 0
        while True:
            child = node.children.get(self._key(tokens, at))
            if child is None:
                return node, pages
            shared = self._shared_pages(child, tokens, at)
            if shared < len(child.pages):
                child = self._split(child, shared)
            child.last_used = next(self._clock)
            pages += child.pages
            at += shared * self.page_size
            node = child

    def num_shared(self, namespace: str, tokens: Tokens) -> int:
        """Pages that `match` would find, without a trace in the tree."""
        node, pages = self._roots.get(namespace), 0
        while node is not None:
            node = node.children.get(self._key(tokens, pages * self.page_size))
            if node is not None:
                shared = self._shared_pages(node, tokens, pages * self.page_size)
                pages += shared
                if shared < len(node.pages):
                    break
        return pages

    def insert(self, node: Node, tokens: Tokens, pages: list[int]) -> tuple[Node, list[int]]:
        """Hang `tokens` (whole pages) below `node`.

        Returns the deepest node and the pages that the tree now holds for these tokens: where it already held some,
        its own rather than the caller's.
        """
        assert len(tokens) == len(pages) * self.page_size
        keys = [] if self.name_pages is None else self.name_pages(node, tokens)
        if node.locks == 1 and not node.children and node.parent is not None:
            # Only the caller stands here: its node grows, and a long output stays one node.
            node.tokens, node.pages = np.concatenate((node.tokens, tokens)), node.pages + pages
            node.keys += keys
            node.last_used = next(self._clock)
            self.num_pages += len(pages)
            return node, pages
        held: list[int] = []
        while len(held) < len(pages):
            at = len(held) * self.page_size
            child = node.children.get(self._key(tokens, at))
            if child is None:
                child = Node(node, tokens[at:].copy(), pages[len(held) :], keys=keys[len(held) :])
                node.children[self._key(tokens, at)] = child
                self.num_pages += len(child.pages)
                self.num_unlocked_pages += len(child.pages)
            else:
                shared = self._shared_pages(child, tokens, at)
                if shared < len(child.pages):
                    child = self._split(child, shared)
            child.last_used = next(self._clock)
            held += child.pages
            node = child
        self._offer(node)
        return node, held

    def lock(self, node: Node) -> None:
        """Keep a node and its ancestors from eviction until `unlock`."""
        at: Node | None = node
        while at is not None:
            if at.locks == 0:
                self.num_unlocked_pages -= len(at.pages)
            at.locks += 1
            at = at.parent

    def unlock(self, node: Node) -> None:
        """Undo one `lock`."""
        at: Node | None = node
        while at is not None:
            assert at.locks > 0, "a node was unlocked more often than locked"
            at.locks -= 1
            if at.locks == 0:
                self.num_unlocked_pages += len(at.pages)
                self._offer(at)
                self._forget_if_bare(at)
            at = at.parent

    def evict(self, wanted: int) -> list[int]:
        """Up to `wanted` pages taken from the ends of the least recently used unlocked leaves."""
        freed: list[int] = []
        left: list[bytes] = []
        while len(freed) < wanted and self._oldest:
            entry = heapq.heappop(self._oldest)
            if not self._is_candidate(entry):
                continue
            node = entry[2]
            cut = max(0, len(node.pages) - (wanted - len(freed)))
            freed += node.pages[cut:]
            left += node.keys[cut:]
            if cut == 0:
                self._remove(node)
            else:
                node.pages, node.tokens = node.pages[:cut], node.tokens[: cut * self.page_size]
                node.keys = node.keys[:cut]
                self._offer(node)
        self.num_pages -= len(freed)
        self.num_unlocked_pages -= len(freed)
        if self.leaving is not None and freed:
            self.leaving(left, freed)
        return freed

    def drop(self, namespace: str) -> list[int]:
        """Forget a namespace that nobody holds; returns its pages."""
        root = self._roots.pop(namespace, None)
        freed: list[int] = []
        stack = [root] if root else []
        while stack:
            node = stack.pop()
            assert node.locks == 0, "a namespace was dropped while a lease stood in it"
            freed += node.pages
            stack += node.children.values()
            node.pages, node.children = [], {}
        self.num_pages -= len(freed)
        self.num_unlocked_pages -= len(freed)
        return freed

    def nodes(self) -> Iterator[Node]:
        """Every node but the roots."""
        stack = [child for root in self._roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack += node.children.values()

    @staticmethod
    def namespace(node: Node | None) -> str | None:
        """The namespace in which a node hangs; None of None, and of a node whose namespace was dropped."""
        while node is not None and node.parent is not None:
            node = node.parent
        return None if node is None else node.namespace

    def _root(self, namespace: str) -> Node:
        if namespace not in self._roots:
            self._roots[namespace] = Node(None, np.empty(0, np.int32), [], namespace=namespace)
        return self._roots[namespace]

    def _key(self, tokens: Tokens, at: int) -> bytes:
        """The child's name: its first page of tokens. Shorter than a page at the end, so that it matches nothing."""
        return tokens[at : at + self.page_size].tobytes()

    def _shared_pages(self, child: Node, tokens: Tokens, at: int) -> int:
        """Whole pages on which a child and `tokens` from `at` agree."""
        length = min(len(child.tokens), len(tokens) - at)
        differs = np.flatnonzero(child.tokens[:length] != tokens[at : at + length])
        return int(differs[0] if len(differs) else length) // self.page_size

    def _split(self, node: Node, pages: int) -> Node:
        """Cut a node after so many pages; returns the new upper part, which bears the same locks."""
        assert node.parent is not None and 0 < pages < len(node.pages)
        cut = pages * self.page_size
        upper = Node(node.parent, node.tokens[:cut], node.pages[:pages], locks=node.locks, keys=node.keys[:pages])
        upper.last_used = node.last_used
        node.parent.children[self._key(node.tokens, 0)] = upper
        node.tokens, node.pages, node.parent = node.tokens[cut:], node.pages[pages:], upper
        node.keys = node.keys[pages:]
        upper.children[self._key(node.tokens, 0)] = node
        return upper

    def _remove(self, node: Node) -> None:
        assert node.parent is not None
        del node.parent.children[self._key(node.tokens, 0)]
        node.pages = []
        self._offer(node.parent)
        self._forget_if_bare(node.parent)

    def _forget_if_bare(self, node: Node) -> None:
        """Drop a root that nobody holds and nothing hangs on: namespaces come from requests, without end."""
        if node.namespace is not None and not node.children and not node.locks:
            self._roots.pop(node.namespace, None)

    def _offer(self, node: Node) -> None:
        """Name a node as a candidate for eviction if it is one."""
        if node.locks == 0 and not node.children and node.parent is not None:
            heapq.heappush(self._oldest, (node.last_used, next(self._ticket), node))
            if len(self._oldest) > 2 * self.num_pages + _STALE:
                self._drop_stale()

    def _drop_stale(self) -> None:
        """Keep one entry for each candidate: without evictions nobody else would ever remove the others."""
        fresh = {id(entry[2]): entry for entry in self._oldest if self._is_candidate(entry)}
        self._oldest = list(fresh.values())
        heapq.heapify(self._oldest)

    def _is_candidate(self, entry: tuple[int, int, Node]) -> bool:
        last_used, _, node = entry
        return node.last_used == last_used and not node.locks and not node.children and bool(node.pages)
