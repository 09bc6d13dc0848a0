"""Chunks of text whose keys were computed on their own, found again wherever the same text stands in another prompt.

A chunk is cached as a prompt of its own would be: in pages of the `KVStore`, under a namespace that names all that its
keys depend on, evicted with the rest, and in the lower tiers when its pages are wanted. What comes up from there comes
layer by layer, in a thread beside the model.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from headstart.engine.cache import PagedKVStore
from headstart.engine.lease import Lease
from headstart.engine.radix import Tokens
from headstart.engine.seams import KVStore
from headstart.engine.tiers import Tiers, page_keys, root_key

LayerKeys = tuple[Tensor, Tensor]
"""Keys and values of a layer, each `[C, Hkv, D]`."""
Compute = Callable[[list[list[int]]], list[list[LayerKeys]]]
"""Token ids of chunks to their keys and values, layer by layer."""

# No token has this id: it fills the last page of a chunk.
_NOTHING = -1


def namespace_behind(namespace: str | None, beginning: Sequence[int], salt: str = "") -> str | None:
    """The namespace of chunks that are read behind some beginning of the prompt, which decides their keys; `salt` is
    what else does."""
    if namespace is None or not (beginning or salt):
        return namespace
    return f"{namespace}:{hashlib.sha256(repr((list(beginning), salt)).encode()).hexdigest()[:32]}"


class Chunk:
    """The keys of one chunk, for as long as a prompt needs them. Made by `ChunkLibrary.open`.

    Attributes:
        ids: its tokens, C of them.
        loads: whether its keys come from a lower tier.
    """

    def __init__(self, library: "ChunkLibrary", ids: list[int], padded: Tokens, lease: Lease | None) -> None:
        self.ids, self.padded, self.lease = ids, padded, lease
        self._library = library
        self._own: list[LayerKeys] | None = None
        self._below: list[bytes] = []
        self._arriving: list[Future[tuple[Tensor, Tensor] | None]] = []
        self._arrived = 0

    @property
    def whole(self) -> bool:
        """Whether all its pages were on the device when it was opened."""
        return self.lease is not None and self.lease.num_cached == len(self.padded)

    @property
    def loads(self) -> bool:
        return bool(self._below)

    def layer(self, index: int) -> LayerKeys:
        """Keys and values of a layer, each `[C, Hkv, D]`; waits for those that are on their way."""
        while self._own is None and self.loads and self._arrived <= index:
            self._receive()
        if self._own is not None:
            return self._own[index]
        assert self.lease is not None
        store = self._library.store
        pages = torch.tensor(self.lease.pages, dtype=torch.int64, device=store.layer(index)[0].device)
        keys, values = (pool.index_select(0, pages).flatten(0, 1)[: len(self.ids)] for pool in store.layer(index))
        return keys, values

    def look_below(self, tiers: Tiers) -> bool:
        """Whether the pages that are not on the device are all in the lower tiers; they are on their way then."""
        assert self.lease is not None and self.lease.node is not None
        name = self._library.store.tree.name_pages
        assert name is not None
        keys = name(self.lease.node, self.padded[self.lease.num_cached :])
        if not all(key in tiers for key in keys):
            return False
        self._below = keys
        self._arriving = [self._library.fetch(keys, index) for index in range(self._library.num_layers)]
        return True

    def take(self, computed: list[LayerKeys]) -> None:
        """Take keys that were computed now, and write them down where there is room."""
        self._own, self._below = computed, []
        if self.lease is None:
            return
        store, first = self._library.store, self.lease.num_cached
        size = store.page_size
        for index, (keys, values) in enumerate(computed):
            places = torch.arange(first, len(self.ids), device=keys.device)
            table = torch.tensor(self.lease.pages, dtype=torch.int64, device=keys.device)
            store.write(index, keys[first:], values[first:], table[places // size] * size + places % size)

    def finish(self) -> None:
        """Offer for reuse what is whole now, and let go of the pages."""
        while self._own is None and self.loads and self._arrived < self._library.num_layers:
            self._receive()
        if self.lease is not None:
            self.lease.commit(self.padded.tolist(), len(self.padded))
            if self.loads:
                self._library.arrived(self._below)
        self.release()

    def release(self) -> None:
        """Let go of the pages; what was not finished is forgotten."""
        for pending in self._arriving:
            if not pending.cancel():
                pending.exception()
        if self.lease is not None:
            self.lease.release()

    def _receive(self) -> None:
        """Wait for the next layer; where it was damaged, compute the whole chunk."""
        assert self.lease is not None
        found = self._arriving[self._arrived].result()
        if found is None:
            self._library.damaged(self._below)
            (computed,) = self._library.compute_now([self.ids])
            self.take(computed)
            return
        store = self._library.store
        for pool, data in zip(store.layer(self._arrived), found, strict=True):
            pages = self.lease.pages[self.lease.num_cached // store.page_size :]
            index = torch.tensor(pages, dtype=torch.int64, device=pool.device)
            pool[index] = data.to(pool.device, non_blocking=True).view(pool.dtype).view(-1, *pool.shape[1:])
        self._arrived += 1


class ChunkLibrary:
    """Finds chunks in a store, brings them up from its tiers, and puts new ones in. Belongs to the engine's thread.

    Attributes:
        counts: chunks that were found on the device (`chunks reused`), came from a lower tier (`chunks loaded`), were
            computed since nobody had the same under the same identity (`chunks computed`), or since what came was not
            what had been written (`chunks damaged`), and those of the computed ones for which there was no room
            (`chunks not kept`).
        record: takes the files of the pages of every chunk that is opened; None leaves that.
        layer_seconds: how long it took to read the last layer that came from a lower tier.
    """

    def __init__(self) -> None:
        self.store: PagedKVStore
        self.num_layers = 0
        self._keeps = False
        self.counts: Counter[str] = Counter()
        self.record: list[str] | None = None
        self.layer_seconds = 0.0
        self.compute_now: Compute
        self._reader: ThreadPoolExecutor | None = None

    def within(self, store: KVStore, num_layers: int) -> "ChunkLibrary":
        """Itself, over an engine's store and a model of so many layers. A store of another kind than the engine's own
        keeps no chunks."""
        self._keeps = isinstance(store, PagedKVStore)
        self.store, self.num_layers = store, num_layers  # type: ignore[assignment]
        return self

    def open(self, namespace: str | None, chunks: Sequence[list[int]], compute: Compute) -> list[Chunk]:
        """The chunks with these ids, none of them empty, equal ones as one; `finish` or `release` every one.

        Args:
            namespace: names what the keys depend on beside the ids; None shares nothing.
            chunks: token ids.
            compute: makes the keys of chunks that nobody has.
        """
        self.compute_now = compute
        found: dict[tuple[int, ...], Chunk] = {}
        try:
            for ids in chunks:
                if tuple(ids) not in found:
                    found[tuple(ids)] = self._hold(namespace, ids)
            absent = [chunk for chunk in found.values() if not chunk.whole and not self._is_below(chunk)]
            computed = compute([chunk.ids for chunk in absent]) if absent else []
            for chunk, keys in zip(absent, computed, strict=True):
                chunk.take(keys)
        except BaseException:
            for chunk in found.values():
                chunk.release()
            raise
        self._count(list(found.values()), absent)
        return [found[tuple(ids)] for ids in chunks]

    def fetch(self, keys: list[bytes], index: int) -> Future[tuple[Tensor, Tensor] | None]:
        """Read a layer of pages in the lower tiers, beside whatever else runs."""
        tiers = self.store.tiers
        assert tiers is not None
        parts = self.store.parts_of(index)

        def read() -> tuple[Tensor, Tensor] | None:
            began = time.perf_counter()
            with torch.inference_mode():
                k, v = (tiers.get_part(keys, part) for part in parts)
                if k is None or v is None:
                    return None
                if self.store.layer(index)[0].device.type == "cuda":
                    k, v = k.pin_memory(), v.pin_memory()
            self.layer_seconds = time.perf_counter() - began
            return k, v

        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, "headstart-chunks")
        return self._reader.submit(read)

    def arrived(self, keys: list[bytes]) -> None:
        """Note that these pages are on the device now."""
        assert self.store.tiers is not None
        self.store.tiers.forget(keys)

    def damaged(self, keys: list[bytes]) -> None:
        """Note that one of these pages is not what was written; reading it whole clears it away."""
        assert self.store.tiers is not None
        self.counts["chunks damaged"] += 1
        self.store.tiers.get(keys)

    def _hold(self, namespace: str | None, ids: list[int]) -> Chunk:
        """A chunk with all the pages that it needs, or with none where there is no room."""
        if not self._keeps or namespace is None:
            return Chunk(self, ids, np.array(ids, dtype=np.int32), None)
        size = self.store.page_size
        padded = np.full(-(-len(ids) // size) * size, _NOTHING, dtype=np.int32)
        padded[: len(ids)] = ids
        lease = self.store.held(namespace, padded)
        if self.record is not None and self.store.tiers is not None:
            keys = page_keys(root_key(self.store.tiers.model, namespace), padded, size)
            self.record += [self.store.tiers.file_of(key) for key in keys]
        if lease.reserve(len(padded)):
            return Chunk(self, ids, padded, lease)
        lease.release()
        return Chunk(self, ids, padded, None)

    def _is_below(self, chunk: Chunk) -> bool:
        tiers = self.store.tiers if chunk.lease is not None else None
        return tiers is not None and chunk.look_below(tiers)

    def _count(self, chunks: list[Chunk], computed: list[Chunk]) -> None:
        loaded = sum(chunk.loads for chunk in chunks)
        self.counts["chunks loaded"] += loaded
        self.counts["chunks computed"] += len(computed)
        self.counts["chunks reused"] += len(chunks) - loaded - len(computed)
        self.counts["chunks not kept"] += sum(chunk.lease is None for chunk in computed)
