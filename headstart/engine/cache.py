"""The KV cache: pages of keys and values, who holds them, and what is reused.

Every page is in exactly one of three places: free, in the prefix tree (cached, shared by any number of leases), or
private to one lease. A `Lease` is the only way to hold pages; releasing it is the only way to give them back.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from headstart.engine.radix import Node, PrefixTree, Tokens
from headstart.engine.seams import KVStore, LayerKV, PageLease
from headstart.engine.tiers import Tiers, page_keys, root_key
from headstart.ops.write_kv import write_kv

# What a process may take at its end to write down what it has cached.
_FLUSH_SECONDS = 20.0
_FLUSH_PAGES = 64


@dataclass(eq=False)
class Lease(PageLease):
    """The pages of one sequence; the first `shared` belong to the prefix tree, the rest to this lease alone."""

    store: "PagedKVStore"
    node: Node | None
    pages: list[int]
    shared: int

    def __post_init__(self) -> None:
        self.num_cached = self.shared * self.store.page_size

    def reserve(self, length: int) -> bool:
        wanted = -(-length // self.store.page_size) - len(self.pages)
        if wanted > 0:
            taken = self.store.take(wanted, self.pages[-1] + 1 if self.pages else None)
            if taken is None:
                return False
            self.pages += taken
        return True

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
        # Where a neighbour was first with the same tokens, its page serves both and ours is free again.
        self.store.give_back([mine for mine, its in zip(own, held, strict=True) if mine != its])
        self.pages[self.shared : whole] = held
        self.node, self.shared = node, whole

    def keep(self, offsets: Tensor) -> bool:
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


class PagedKVStore(KVStore):
    """Pages in one device's memory, with prefix sharing: the default. Empty until `allocate`."""

    def allocate(
        self, layers: list[LayerKV], num_pages: int, page_size: int, device: torch.device | str = "cpu"
    ) -> Self:
        self.page_size = page_size
        self.num_pages = num_pages
        self.tree = PrefixTree(page_size)
        self.tiers: Tiers | None = None
        self._free = np.ones(num_pages, dtype=bool)
        self.num_free = num_pages
        self._leases: set[Lease] = set()
        self._aliases = {index for index, layer in enumerate(layers) if layer.alias_of is not None}
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        for layer in layers:
            if layer.alias_of is not None:
                self._keys.append(self._keys[layer.alias_of])
                self._values.append(self._values[layer.alias_of])
                continue
            shape = (num_pages, page_size, layer.num_kv_heads, layer.head_dim)
            self._keys.append(_zeros(shape, layer.dtype, torch.device(device)))
            self._values.append(_zeros(shape, layer.dtype, torch.device(device)))
        return self

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each `[P, page_size, Hkv, D]`."""
        return self._keys[index], self._values[index]

    def write(self, index: int, k: Tensor, v: Tensor, slots: Tensor) -> None:
        if index not in self._aliases:
            write_kv(self._keys[index], self._values[index], k, v, slots)

    def open(self, namespace: str | None, tokens: list[int]) -> Lease:
        lease = Lease(self, None, [], 0)
        if namespace is not None:
            whole = (len(tokens) - 1) // self.page_size * self.page_size
            ids = np.asarray(tokens[:whole], dtype=np.int32)
            node, pages = self.tree.match(namespace, ids)
            self.tree.lock(node)
            if self.tiers is not None and len(pages) * self.page_size < whole:
                node, pages = self._fetch(node, pages, ids[len(pages) * self.page_size :], self.tiers)
            lease = Lease(self, node, pages, len(pages))
        self._leases.add(lease)
        return lease

    def held(self, namespace: str, tokens: Tokens) -> Lease:
        """A lease of those pages of `tokens` (whole pages) that are on the device now, all of them maybe."""
        node, pages = self.tree.match(namespace, tokens)
        self.tree.lock(node)
        lease = Lease(self, node, pages, len(pages))
        self._leases.add(lease)
        return lease

    def num_found(self, namespace: str | None, tokens: Tokens) -> int:
        """How many of these tokens' keys could be reused now; changes nothing."""
        return 0 if namespace is None else self.tree.num_shared(namespace, tokens) * self.page_size

    def use_tiers(self, tiers: Tiers) -> None:
        """Let evicted pages go to `tiers`, and come back on a hit."""

        def name_pages(node: Node, tokens: Tokens) -> list[bytes]:
            above = node.keys[-1] if node.keys else root_key(tiers.model, node.namespace or "")
            return page_keys(above, tokens, self.page_size)

        self.tiers = tiers
        self.tree.name_pages = name_pages
        self.tree.leaving = lambda keys, pages: tiers.put(keys, self._gather(pages))

    @property
    def tier_traffic(self) -> tuple[int, int]:
        return (0, 0) if self.tiers is None else (self.tiers.spilled, self.tiers.restored)

    def flush(self, seconds: float = _FLUSH_SECONDS) -> None:
        if self.tiers is not None:
            self.tiers.flush(self._cached(), seconds)

    def _cached(self) -> Iterator[tuple[list[bytes], Tensor]]:
        """Everything in the prefix tree, what was used last first, and nothing before what stands above it."""
        seen: set[Node] = set()
        for node in sorted(self.tree.nodes(), key=lambda node: node.last_used, reverse=True):
            path: list[Node] = []
            at: Node | None = node
            while at is not None and at.pages and at not in seen:
                seen.add(at)
                path.append(at)
                at = at.parent
            for part in reversed(path):
                for first in range(0, len(part.pages), _FLUSH_PAGES):
                    chosen = slice(first, first + _FLUSH_PAGES)
                    yield part.keys[chosen], self._gather(part.pages[chosen])

    def _fetch(self, node: Node, pages: list[int], ids: Tokens, tiers: Tiers) -> tuple[Node, list[int]]:
        """Bring back what the tiers hold of `ids`, which follow the locked `node`; the deepest node then, locked in
        its place, and the pages of its path."""
        assert self.tree.name_pages is not None
        keys: list[bytes] = []
        room = self.num_available
        for at in range(0, len(ids), self.page_size):
            (key,) = (
                page_keys(keys[-1], ids[at : at + self.page_size], self.page_size)
                if keys
                else (self.tree.name_pages(node, ids[: self.page_size]))
            )
            if key not in tiers or len(keys) == room:
                break
            keys.append(key)
        found = tiers.get(keys) if keys else []
        taken = self.take(len(found), pages[-1] + 1 if pages else None) if found else None
        if not taken:
            return node, pages
        self._scatter(taken, torch.stack(found))
        deepest, held = self.tree.insert(node, ids[: len(taken) * self.page_size], taken)
        self.tree.lock(deepest)
        self.tree.unlock(node)
        return deepest, pages + held

    def _pools(self) -> list[Tensor]:
        """Every tensor of keys or values once."""
        return list({tensor.data_ptr(): tensor for tensor in self._keys + self._values}.values())

    def _gather(self, pages: list[int]) -> Tensor:
        """The bytes of pages `[N, page_bytes]`, uint8 on the CPU."""
        index = torch.tensor(pages, dtype=torch.int64, device=self._keys[0].device)
        return torch.cat([pool[index].flatten(1).view(torch.uint8) for pool in self._pools()], 1).cpu()

    def _scatter(self, pages: list[int], data: Tensor) -> None:
        """Write what `_gather` has read to other pages."""
        device = self._keys[0].device
        index = torch.tensor(pages, dtype=torch.int64, device=device)
        data, at = data.to(device), 0
        for pool in self._pools():
            size = pool[0].numel() * pool.element_size()
            part = data[:, at : at + size].contiguous().view(pool.dtype)
            pool[index] = part.view(len(pages), *pool.shape[1:])
            at += size

    def move(self, source: list[int], offsets: Tensor, target: list[int]) -> None:
        """Copy the keys and values at `offsets [K]` within the source pages to the front of the target pages."""
        device = self._keys[0].device
        offsets = offsets.to(device)
        table = torch.tensor(source, dtype=torch.int64, device=device)
        slots = table[offsets // self.page_size] * self.page_size + offsets % self.page_size
        front = torch.arange(len(offsets), device=device)
        table = torch.tensor(target, dtype=torch.int64, device=device)
        places = table[front // self.page_size] * self.page_size + front % self.page_size
        for pages in self._pools():
            flat = pages.flatten(0, 1)
            flat[places] = flat[slots]

    def drop(self, namespace: str) -> None:
        self.give_back(self.tree.drop(namespace))

    def close(self, lease: Lease) -> None:
        """End a lease: its private pages become free, the shared ones stay cached until evicted."""
        if lease not in self._leases:
            return
        self._leases.remove(lease)
        self.give_back(lease.pages[lease.shared :])
        if lease.node is not None:
            self.tree.unlock(lease.node)
        lease.pages, lease.shared, lease.node = [], 0, None

    @property
    def num_cached(self) -> int:
        """Pages in the prefix tree."""
        return self.tree.num_pages

    @property
    def num_leased(self) -> int:
        """Pages private to open leases."""
        return sum(len(lease.pages) - lease.shared for lease in self._leases)

    @property
    def num_available(self) -> int:
        """Pages that are free or could be evicted now."""
        return self.num_free + self.tree.num_unlocked_pages

    def holdings(self) -> dict[str | None, tuple[int, int]]:
        held: Counter[str | None] = Counter()
        for lease in self._leases:
            held[self.tree.namespace(lease.node)] += len(lease.pages) - lease.shared
        kept: Counter[str | None] = Counter()
        for node in self.tree.nodes():
            (held if node.locks else kept)[self.tree.namespace(node)] += len(node.pages)
        return {namespace: (held[namespace], kept[namespace]) for namespace in {**held, **kept}}

    @property
    def part_bytes(self) -> list[int]:
        """Bytes of one page in each tensor of keys or values, in the order in which pages are written down."""
        return [pool[0].numel() * pool.element_size() for pool in self._pools()]

    def parts_of(self, index: int) -> list[int]:
        """Which of these parts hold a layer's keys and values."""
        places = {pool.data_ptr(): place for place, pool in enumerate(self._pools())}
        return [places[pool.data_ptr()] for pool in self.layer(index)]

    @property
    def bytes_per_page(self) -> int:
        """Memory of one page over all layers, aliases counted once."""
        return sum(self.part_bytes)

    def check(self) -> None:
        """Raise AssertionError unless every page is in exactly one place and the counters agree."""
        free = np.flatnonzero(self._free).tolist()
        cached = [page for node in self.tree.nodes() for page in node.pages]
        leased = [page for lease in self._leases for page in lease.pages[lease.shared :]]
        assert sorted(free + cached + leased) == list(range(self.num_pages)), "a page was lost or held twice"
        assert (len(free), len(cached)) == (self.num_free, self.num_cached), "page counters are off"
        unlocked = sum(len(node.pages) for node in self.tree.nodes() if node.locks == 0)
        assert unlocked == self.tree.num_unlocked_pages, "the count of unlocked pages is off"

    def take(self, wanted: int, after: int | None) -> list[int] | None:
        """So many free pages, evicting cached ones if needed; None when there are not enough.

        Prefers the pages from `after` on, then a run of neighbours: a CPU reads a sequence whose pages follow each
        other in place.
        """
        if wanted > self.num_available:
            return None
        if wanted > self.num_free:
            self.give_back(self.tree.evict(wanted - self.num_free))
        taken: list[int] = []
        while after is not None and len(taken) < wanted and after < self.num_pages and self._free[after]:
            taken.append(after)
            after += 1
        self._free[taken] = False
        rest = wanted - len(taken)
        if rest:
            free = np.flatnonzero(self._free)
            runs = np.flatnonzero(free[rest - 1 :] - free[: len(free) - rest + 1] == rest - 1)
            first = int(runs[0]) if len(runs) else 0
            chosen = free[first : first + rest]
            self._free[chosen] = False
            taken += chosen.tolist()
        self.num_free -= wanted
        return taken

    def give_back(self, pages: list[int]) -> None:
        """Make pages free that nobody holds any more."""
        assert not self._free[pages].any(), "a page was freed twice"
        self._free[pages] = True
        self.num_free += len(pages)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, since a padded read may touch slots that no key was written to, and 0 x NaN is NaN.

    On a CPU they come from calloc by way of NumPy, so that memory is taken page by page as it is used.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = int(np.prod(shape)) * dtype.itemsize
    return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(dtype).view(shape)
