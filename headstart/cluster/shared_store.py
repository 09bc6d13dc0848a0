"""A KV cache whose pages another process of this machine can read: how keys migrate between engines on CPUs."""

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from headstart.engine.cache import Lease, PagedKVStore
from headstart.engine.request import Sequence as Output
from headstart.engine.seams import LayerKV
from headstart.errors import HeadstartError
from headstart.methods.registry import MethodCard

MIGRATES = "migrates:"
"""Ids of requests begin so whose keys are to be kept for another engine when their prompt has been read."""

_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Pools:
    """Where a store's pages lie.

    Attributes:
        files: one per pool of keys or values.
        shapes: `[P, page_size, Hkv, D]` of each.
        dtypes: of each, by name.
    """

    files: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    def open(self) -> list[Tensor]:
        """The pools as tensors of this process, on the same memory.

        Raises:
            HeadstartError: they are gone, because their process has ended.
        """
        if not all(os.path.exists(file) for file in self.files):
            raise HeadstartError("the keys are gone with the process that held them")
        return [_mapped(*pool) for pool in zip(self.files, self.shapes, self.dtypes, strict=True)]


@dataclass(frozen=True)
class Held:
    """Keys of a prompt that stay where they are until they are let go, by the id of their request.

    Attributes:
        namespace: under which they are shared.
        tokens: that they are of: whole pages.
        pages: where they lie, in order.
        pools: the memory.
    """

    namespace: str
    tokens: list[int]
    pages: list[int]
    pools: Pools


def shared_directory() -> Path:
    """A new directory in shared memory that only this user can read; whoever asks for it removes it."""
    return Path(tempfile.mkdtemp(prefix="headstart-", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None))


class SharedKVStore(PagedKVStore):
    """The ordinary store on memory that other processes can map, with keys that leave it and keys that arrive.

    Everything but `take_held` belongs to the engine's thread.

    Args:
        directory: in shared memory; the process's own files are made in it.

    Attributes:
        migrating: leases whose keys are to be kept when their sequence has ended.
        moved_tokens, moved_bytes: of keys that arrived.
    """

    card = MethodCard("shared-pages", "schedule", None)

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.migrating: dict[Lease, Output] = {}
        self.moved_tokens = self.moved_bytes = 0
        self._ready: dict[str, Held] = {}
        self._kept: dict[int | str, Lease] = {}
        self._arrived: list[int] = []
        self._arriving: dict[int, tuple[Lease, list[int]]] = {}
        self._tickets = 0
        self._mover: ThreadPoolExecutor | None = None

    def allocate(
        self, layers: list[LayerKV], num_pages: int, page_size: int, device: torch.device | str = "cpu"
    ) -> Self:
        if torch.device(device).type != "cpu":
            raise HeadstartError("keys migrate between engines on CPUs; on other devices serve with --replicas")
        if any(layer.bounded for layer in layers):
            raise HeadstartError("heads that keep a part of the keys do not migrate: serve with --replicas instead")
        super().allocate(layers, num_pages, page_size, "meta")
        own = Path(tempfile.mkdtemp(prefix="pages-", dir=self.directory))
        made: dict[int, Tensor] = {}
        files: list[str] = []
        for pools in (self._keys, self._values):
            for index, pool in enumerate(pools):
                if id(pool) not in made:
                    files.append(str(own / f"{len(files)}"))
                    made[id(pool)] = _mapped(files[-1], tuple(pool.shape), str(pool.dtype).removeprefix("torch."))
                pools[index] = made[id(pool)]
        pools = self._pools()
        dtypes = tuple(str(pool.dtype).removeprefix("torch.") for pool in pools)
        self.pools = Pools(tuple(files), tuple(tuple(pool.shape) for pool in pools), dtypes)
        return self

    def close(self, lease: Lease) -> None:
        sequence = self.migrating.pop(lease, None)
        if sequence is not None and sequence.finish_reason not in (None, "abort") and lease.shared:
            self._keep(lease, sequence)
        super().close(lease)

    def take_held(self, request_id: str) -> Held | None:
        """Where the keys of a request are that has ended here; None if there are none. Safe from any thread."""
        return self._ready.pop(request_id, None)

    def let_go(self, ticket: int | str) -> None:
        """Keys are wanted no more: those of a request that has ended here, by its id, or those of a ticket."""
        if isinstance(ticket, str):
            self._ready.pop(ticket, None)
        lease = self._kept.pop(ticket, None)
        if isinstance(ticket, int) and ticket in self._arriving:
            lease, _ = self._arriving.pop(ticket)
        if lease is not None:
            lease.release()

    def pull(self, held: Held) -> "Future[int | None]":
        """Copy keys that another engine holds, beside the steps; the future is a ticket for `let_go`, or None if there
        is no room or nothing to copy."""
        done: Future[int | None] = Future()
        # One token beyond: what is asked for is never found whole.
        lease = self.open(held.namespace, [*held.tokens, 0])
        found = len(lease.pages)
        if found == len(held.pages) or not lease.reserve(len(held.tokens)):
            lease.release()
            done.set_result(None)
            return done
        ticket = self._ticket()
        self._arriving[ticket] = (lease, held.tokens)
        self._mover = self._mover or ThreadPoolExecutor(1, "headstart-pull")
        targets = lease.pages[found:]

        def move() -> None:
            try:
                moved = self._copy(held.pools.open(), held.pages[found:], targets)
            except Exception as error:
                done.set_exception(error)
                return
            self.moved_bytes += moved
            self.moved_tokens += len(targets) * self.page_size
            self._arrived.append(ticket)
            done.set_result(ticket)

        self._mover.submit(move)
        return done

    def settle(self) -> None:
        """Offer for reuse what has arrived since the last step."""
        while self._arrived:
            ticket = self._arrived.pop()
            if ticket in self._arriving:
                lease, tokens = self._arriving.pop(ticket)
                lease.commit(tokens, len(tokens))
                self._kept[ticket] = lease

    def _ticket(self) -> int:
        self._tickets += 1
        return self._tickets

    def _keep(self, lease: Lease, sequence: Output) -> None:
        """Hold on to what a lease shares, under a lease that nobody else has."""
        assert lease.node is not None and sequence.request.namespace is not None
        self.tree.lock(lease.node)
        kept = Lease(self, lease.node, lease.pages[: lease.shared], lease.shared)
        self._leases.add(kept)
        name = sequence.request.request_id
        self._kept[name] = kept
        tokens = sequence.tokens[: lease.shared * self.page_size]
        self._ready[name] = Held(sequence.request.namespace, tokens, list(kept.pages), self.pools)

    def _copy(self, source: Sequence[Tensor], pages: Sequence[int], targets: Sequence[int]) -> int:
        """Copy pages of another store's pools into this one's, pool by pool; returns the bytes. Safe beside steps,
        since these pages belong to a lease that no step knows."""
        theirs = torch.tensor(pages, dtype=torch.int64)
        ours = torch.tensor(targets, dtype=torch.int64)
        moved = 0
        for pool, other in zip(self._pools(), source, strict=True):
            data = other[theirs]
            pool[ours] = data
            moved += data.numel() * data.element_size()
        return moved


def _mapped(file: str, shape: Sequence[int], dtype: str) -> Tensor:
    kind: torch.dtype = getattr(torch, dtype)
    size = 1
    for extent in shape:
        size *= extent
    return torch.from_file(file, shared=True, size=size, dtype=kind).view(tuple(shape))
