"""The KV cache: pages of keys and values, who holds them, and what is reused.

Every page is in exactly one of three places: free, in the prefix tree (cached, shared by any number of leases), or
private to one lease. A `Lease` is the only way to hold pages; releasing it is the only way to give them back.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Self

import numpy as np
import torch
from torch import Tensor

from headstart.engine.lease import Lease
from headstart.engine.radix import Node, PrefixTree, Tokens
from headstart.engine.ring import TwinPages
from headstart.engine.seams import KVPart, KVStore, LayerKV
from headstart.engine.tiers import Tiers, page_keys, root_key
from headstart.errors import MethodError
from headstart.ops.attention import RaggedLayout
from headstart.ops.attention.reach import Reach
from headstart.ops.staging import to_device, to_host
from headstart.ops.write_kv import write_kv

# What a process may take at its end to write down what it has cached.
_FLUSH_SECONDS = 20.0
_FLUSH_PAGES = 64
# What comes up from lower tiers at once, since a step waits for it: some hundredths of a second from a disk.
_FETCH_BYTES = 32 * 2**20


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
        self._bounded: dict[int, KVPart] = {}
        self._free_heads: dict[int, Tensor] = {}
        self.twins: TwinPages | None = None
        for index, layer in enumerate(layers):
            if layer.alias_of is not None:
                self._keys.append(self._keys[layer.alias_of])
                self._values.append(self._values[layer.alias_of])
                continue
            shape = (num_pages, page_size, layer.num_kv_heads - len(layer.bounded), layer.head_dim)
            where = torch.device("cpu" if layer.on_host else device)
            self._keys.append(_zeros(shape, layer.dtype, where))
            self._values.append(_zeros(shape, layer.dtype, where))
            if layer.reach is not None:
                self._bound(index, layer, layer.reach, where)
        return self

    def _bound(self, index: int, layer: LayerKV, reach: Reach, device: torch.device) -> None:
        """Take the memory of a layer's bounded heads, if it has some; what is counted is the same on every rank."""
        count = self.num_twins or self.num_pages
        if self.twins is None:
            self.twins = TwinPages(reach, self.num_pages, count, self.page_size)
        if self.twins.reach != reach:
            raise MethodError("all bounded heads of a model must have the same reach")
        if not layer.bounded:
            return
        shape = (count, self.page_size, len(layer.bounded), layer.head_dim)
        heads = torch.tensor(layer.bounded, device=device)
        keys, values = (_zeros(shape, layer.dtype, device) for _ in range(2))
        self._bounded[index] = KVPart(heads, keys, values, True)
        free = [head for head in range(layer.num_kv_heads) if head not in layer.bounded]
        self._free_heads[index] = torch.tensor(free, dtype=torch.int64, device=device)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each `[P, page_size, Hkv, D]`, without its bounded heads."""
        return self._keys[index], self._values[index]

    def parts(self, index: int) -> list[KVPart]:
        if index not in self._bounded:
            return [KVPart(None, *self.layer(index))]
        free, bounded = self._free_heads[index], self._bounded[index]
        return [KVPart(free, *self.layer(index)), bounded] if len(free) else [bounded]

    @property
    def bounded(self) -> bool:
        return self.twins is not None

    def within(self, layout: RaggedLayout) -> RaggedLayout:
        assert self.twins is not None
        return self.twins.within(layout)

    def write(self, index: int, k: Tensor, v: Tensor, slots: Tensor) -> None:
        if index in self._aliases:
            return
        free = self._free_heads.get(index)
        if free is not None:
            k, v = k.index_select(1, free), v.index_select(1, free)
        if k.shape[1]:
            there = self._keys[index].device
            write_kv(self._keys[index], self._values[index], k.to(there), v.to(there), slots.to(there))

    def write_bounded(self, index: int, k: Tensor, v: Tensor, slots: Tensor) -> None:
        part = self._bounded.get(index)
        if part is not None and part.heads is not None:
            write_kv(part.keys, part.values, k.index_select(1, part.heads), v.index_select(1, part.heads), slots)

    def open(self, namespace: str | None, tokens: list[int]) -> Lease:
        lease = Lease(self, None, [], 0)
        if namespace is not None:
            whole = (len(tokens) - 1) // self.page_size * self.page_size
            ids = np.asarray(tokens[:whole], dtype=np.int32)
            node, pages = self.tree.match(namespace, ids)
            self.tree.lock(node)
            if self.twins is not None and (stands := self.twins.reusable(pages)) < len(pages):
                self.tree.unlock(node)
                node, pages = self.tree.match(namespace, ids[: stands * self.page_size])
                self.tree.lock(node)
            lease = Lease(self, node, pages, len(pages))
            if self.twins is not None:
                seen = self.twins.kept(lease.num_cached)
                lease.twins, lease.reached = seen[seen < len(pages)].tolist(), len(pages)
                self.twins.hold([pages[number] for number in lease.twins])
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
        self.tree.leaving = lambda keys, pages: tiers.put(keys, self.gather(pages))

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
                    yield part.keys[chosen], self.gather(part.pages[chosen])

    def bring_up(self, namespace: str | None, tokens: list[int]) -> bool:
        if self.tiers is None or namespace is None:
            return True
        whole = (len(tokens) - 1) // self.page_size * self.page_size
        ids = np.asarray(tokens[:whole], dtype=np.int32)
        node, pages = self.tree.match(namespace, ids)
        self.tree.lock(node)
        done = self._fetch(node, pages, ids[len(pages) * self.page_size :], self.tiers)
        self.tree.unlock(node)
        return done

    def _fetch(self, node: Node, pages: list[int], ids: Tokens, tiers: Tiers) -> bool:
        """Bring back what the tiers hold of `ids`, which follow the locked `node` with its path's pages, as far as it
        goes at once; whether that is all."""
        assert self.tree.name_pages is not None
        keys: list[bytes] = []
        room, most = self.num_available, max(1, _FETCH_BYTES // self.bytes_per_page)
        for at in range(0, min(len(ids), most * self.page_size), self.page_size):
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
            return True
        self.scatter(taken, torch.stack(found))
        self.tree.insert(node, ids[: len(taken) * self.page_size], taken)
        return len(taken) < most or len(ids) <= most * self.page_size

    def _pools(self) -> list[Tensor]:
        """Every tensor of keys or values once."""
        return list({tensor.data_ptr(): tensor for tensor in self._keys + self._values}.values())

    def gather(self, pages: list[int]) -> Tensor:
        """The bytes of pages `[N, page_bytes]`, uint8 on the CPU: as they are when all steps so far have run."""
        pools = self._pools()
        index = {pool.device: torch.tensor(pages, dtype=torch.int64, device=pool.device) for pool in pools}
        parts = [pool[index[pool.device]].flatten(1).view(torch.uint8) for pool in pools]
        return to_host(torch.cat([part.to(self.device) for part in parts], 1)).read()

    def scatter(self, pages: list[int], data: Tensor) -> None:
        """Write what `gather` has read to other pages."""
        data, at = to_device(data.numpy(), self.device), 0
        for pool in self._pools():
            size = pool[0].numel() * pool.element_size()
            part = data[:, at : at + size].to(pool.device).contiguous().view(pool.dtype)
            pool[torch.tensor(pages, dtype=torch.int64, device=pool.device)] = part.view(len(pages), *pool.shape[1:])
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
            flat[places.to(flat.device)] = flat[slots.to(flat.device)]

    def drop(self, namespace: str) -> None:
        self.give_back(self.tree.drop(namespace))

    def close(self, lease: Lease) -> None:
        """End a lease: its private pages become free, the shared ones stay cached until evicted."""
        if lease not in self._leases:
            return
        self._leases.remove(lease)
        if self.twins is not None:
            self.twins.let_go([lease.pages[number] for number in lease.twins])
        self.give_back(lease.pages[lease.shared :])
        if lease.node is not None:
            self.tree.unlock(lease.node)
        lease.pages, lease.shared, lease.node, lease.twins, lease.reached = [], 0, None, [], 0

    @property
    def copies_whole(self) -> bool:
        """Whether `gather` and `scatter` carry all that a page holds: no head is bounded, no layer lies elsewhere."""
        return self.twins is None and len({pool.device for pool in self._pools()}) == 1

    @property
    def device(self) -> torch.device:
        """Where the pages lie."""
        return self._keys[0].device

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
        """Memory of one page over all layers, aliases counted once, and bounded heads left out."""
        return sum(self.part_bytes)

    @property
    def bytes_per_twin(self) -> int:
        """Memory of one page of the bounded heads over all layers."""
        parts = self._bounded.values()
        return sum(pool[0].numel() * pool.element_size() for part in parts for pool in (part.keys, part.values))

    @property
    def bytes_held(self) -> int:
        """Memory of all pages that are not free, but for twins that nobody needs."""
        twins = 0 if self.twins is None else self.twins.num_held
        return (self.num_pages - self.num_free) * self.bytes_per_page + twins * self.bytes_per_twin

    def check(self) -> None:
        """Raise AssertionError unless every page is in exactly one place and the counters agree."""
        free = np.flatnonzero(self._free).tolist()
        cached = [page for node in self.tree.nodes() for page in node.pages]
        leased = [page for lease in self._leases for page in lease.pages[lease.shared :]]
        assert sorted(free + cached + leased) == list(range(self.num_pages)), "a page was lost or held twice"
        assert (len(free), len(cached)) == (self.num_free, self.num_cached), "page counters are off"
        unlocked = sum(len(node.pages) for node in self.tree.nodes() if node.locks == 0)
        assert unlocked == self.tree.num_unlocked_pages, "the count of unlocked pages is off"
        if self.twins is not None:
            self.twins.check([[lease.pages[number] for number in lease.twins] for lease in self._leases])

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
        if self.twins is not None:
            self.twins.forget(pages)
        self._free[pages] = True
        self.num_free += len(pages)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, since a padded read may touch slots that no key was written to, and 0 x NaN is NaN.

    On a CPU they come from calloc by way of NumPy, so that memory is taken page by page as it is used.
    """
    if device.type != "cpu" or 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    size = int(np.prod(shape)) * dtype.itemsize
    return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(dtype).view(shape)
