"""A KV cache whose pages another process of this machine can read: how keys migrate between engines.

On a CPU the pages themselves lie in shared memory, and can be read layer by layer while the step that fills them still
runs. On a GPU they are copied through pinned memory to their place in a mirror there once a prompt has been read.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from headstart.engine.cache import PagedKVStore
from headstart.engine.lease import Lease
from headstart.engine.request import Sequence as Output
from headstart.engine.seams import LayerKV
from headstart.errors import HeadstartError
from headstart.methods.registry import MethodCard

MIGRATES = "migrates:"
"""Ids of requests begin so whose keys are to be kept for another engine when their prompt has been read."""

_MEMORY = Path("/dev/shm")
# A pull that waits for a layer looks so often, and so many of them may wait at once.
_LOOK_SECONDS = 0.0005
_WAITING = 2
_THREADS = 4


@dataclass(frozen=True)
class Pools:
    """Where a store's pages lie.

    Attributes:
        files: one per pool of keys or values, or a single one of whole pages.
        shapes: `[P, page_size, Hkv, D]` of each, or `[P, page_bytes]`.
        dtypes: of each, by name.
        layers: the layer whose keys each holds; empty where a page is whole.
        progress: the file of int64 `[L]`: the last step that has written each layer.
        process: whose memory it is.
    """

    files: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    layers: tuple[int, ...]
    progress: str
    process: int

    def open(self) -> list[Tensor]:
        """The pools as tensors of this process, on the same memory.

        Raises:
            HeadstartError: they are gone, because their process has ended.
        """
        self.check()
        return [_mapped(*pool) for pool in zip(self.files, self.shapes, self.dtypes, strict=True)]

    def check(self) -> None:
        """Refuse memory whose process has ended.

        Raises:
            HeadstartError: it has.
        """
        if not all(os.path.exists(file) for file in self.files) or not _lives(self.process):
            raise HeadstartError("the keys are gone with the process that held them")


@dataclass(frozen=True)
class Held:
    """Keys of a prompt that stay where they are until they are let go, by the id of their request.

    Attributes:
        namespace: under which they are shared.
        tokens: that they are of: whole pages.
        pages: where they lie, in order.
        pools: the memory.
        step: that computed the last of them.
        ready: whether that step has ended; otherwise layers are there one after the other.
    """

    namespace: str
    tokens: list[int]
    pages: list[int]
    pools: Pools
    step: int
    ready: bool = True

    def same(self, other: "Held") -> bool:
        """Whether these are the same keys, from the same computation."""
        return (self.tokens, self.pages, self.step) == (other.tokens, other.pages, other.step)


@dataclass(eq=False)
class _Arrival:
    """Keys on their way here: `landed` once nothing is copied any more, which tells whether all of it was."""

    lease: Lease
    held: Held
    wanted: bool = True
    confirmed: bool = True
    landed: bool | None = None


def shared_directory() -> Path:
    """A new directory in shared memory that only this user can read; whoever asks for it removes it."""
    return Path(tempfile.mkdtemp(prefix="headstart-", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None))


class SharedKVStore(PagedKVStore):
    """The ordinary store on memory that other processes can map, with keys that leave it and keys that arrive.

    Everything but `take_held` and `take_reading` belongs to the engine's thread.

    Args:
        directory: in shared memory; the process's own files are made in it.
        layered: every layer is written once in a step, in order, so that those before it can be read meanwhile.
        whole_pages: keep a mirror of whole pages there, as on a GPU (default: only where the pages lie elsewhere).

    Attributes:
        migrating: leases whose keys are to be kept when their sequence has ended.
        moved_tokens, moved_bytes: of keys that arrived.
        step: number of the step that is being planned or run.
    """

    card = MethodCard("shared-pages", "schedule", None)

    def __init__(self, directory: str, layered: bool = True, whole_pages: bool | None = None) -> None:
        self.directory, self.layered, self.whole_pages = directory, layered, whole_pages
        self.migrating: dict[Lease, Output] = {}
        self.moved_tokens = self.moved_bytes = self.step = 0
        self._ready: dict[str, Held] = {}
        self._reading: dict[str, Held] = {}
        self._kept: dict[str, Lease] = {}
        self._arriving: dict[str, _Arrival] = {}
        self._mover: ThreadPoolExecutor | None = None

    def allocate(
        self, layers: list[LayerKV], num_pages: int, page_size: int, device: torch.device | str = "cpu"
    ) -> Self:
        if any(layer.bounded for layer in layers):
            raise HeadstartError("heads that keep a part of the keys do not migrate: serve with --replicas instead")
        if any(layer.on_host for layer in layers):
            raise HeadstartError("keys that stay in the host's memory do not migrate: serve with --replicas instead")
        apart = torch.device(device).type != "cpu"
        mirrored = apart if self.whole_pages is None else self.whole_pages
        super().allocate(layers, num_pages, page_size, device if mirrored else "meta")
        own = Path(tempfile.mkdtemp(prefix="pages-", dir=self.directory))
        self._refuse_without_room(self.bytes_per_page * num_pages)
        progress = str(own / "progress")
        self._progress = _mapped(progress, (len(layers),), "int64")
        if mirrored:
            shape = (num_pages, self.bytes_per_page)
            self.pools = Pools((str(own / "mirror"),), (shape,), ("uint8",), (), progress, os.getpid())
            self._mirror: Tensor | None = _mapped(self.pools.files[0], shape, "uint8")
            return self
        self._mirror = None
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
        # An alias reads an earlier layer's pages, which that one writes.
        places = {
            pool.data_ptr(): at for each in (self._keys, self._values) for at, pool in reversed([*enumerate(each)])
        }
        self.pools = Pools(
            tuple(files),
            tuple(tuple(pool.shape) for pool in pools),
            dtypes,
            tuple(places[pool.data_ptr()] for pool in pools),
            progress,
            os.getpid(),
        )
        return self

    def write(self, index: int, k: Tensor, v: Tensor, slots: Tensor) -> None:
        super().write(index, k, v, slots)
        if self._mirror is None:
            self._progress[index] = self.step

    def close(self, lease: Lease) -> None:
        sequence = self.migrating.pop(lease, None)
        if sequence is not None:
            self._reading.pop(sequence.request.request_id, None)
            if sequence.finish_reason not in (None, "abort") and lease.shared:
                self._keep(lease, sequence)
        super().close(lease)

    def migrate(self, sequence: Output, tokens: int) -> None:
        """Keep a sequence's keys when it has ended. If this step's `tokens` are the last that it reads, what it fills
        can be pulled meanwhile."""
        lease = sequence.lease
        assert isinstance(lease, Lease)
        self.migrating[lease] = sequence
        whole = len(sequence.tokens) // self.page_size
        namespace = sequence.request.namespace
        last = sequence.num_computed + tokens == len(sequence.tokens)
        if last and whole and self.layered and namespace is not None and self._mirror is None:
            known = sequence.tokens[: whole * self.page_size]
            pages = list(lease.pages[:whole])
            self._reading[sequence.request.request_id] = Held(namespace, known, pages, self.pools, self.step, False)

    def take_reading(self, request_id: str) -> Held | None:
        """Where the keys of a request will be that is being read; None if it is not. Safe from any thread."""
        return self._reading.pop(request_id, None)

    def take_held(self, request_id: str) -> Held | None:
        """Where the keys of a request are that has ended here; None if there are none. Safe from any thread."""
        return self._ready.pop(request_id, None)

    def let_go(self, name: str) -> None:
        """Keys are wanted no more: those of a request that has ended here, or those that came under a name."""
        self._ready.pop(name, None)
        self._reading.pop(name, None)
        lease = self._kept.pop(name, None)
        if lease is not None:
            lease.release()
        if name in self._arriving:
            self._arriving[name].wanted = False
        self.settle()

    def pull(self, held: Held, name: str) -> "Future[bool]":
        """Copy keys that another engine holds or fills, beside the steps; the future tells whether they are here, until
        `let_go` of the name. They are not where there is no room or nothing to copy."""
        done: Future[bool] = Future()
        waiting = sum(not arrival.held.ready and arrival.landed is None for arrival in self._arriving.values())
        # One token beyond: what is asked for is never found whole.
        lease = self.open(held.namespace, [*held.tokens, 0])
        full = not held.ready and waiting >= _WAITING
        if full or len(lease.pages) == len(held.pages) or not lease.reserve(len(held.tokens)):
            lease.release()
            done.set_result(False)
            return done
        arrival = self._arriving[name] = _Arrival(lease, held, confirmed=held.ready)
        self._mover = self._mover or ThreadPoolExecutor(_THREADS, "headstart-pull")
        first = lease.shared

        def move() -> None:
            try:
                moved = self._copy(arrival, first)
            except Exception as error:
                arrival.landed = False
                done.set_exception(error)
                return
            if moved is not None:
                self.moved_bytes += moved
                self.moved_tokens += (len(held.pages) - first) * self.page_size
            arrival.landed = moved is not None
            done.set_result(arrival.landed)

        self._mover.submit(move)
        return done

    def confirm(self, name: str) -> None:
        """The step that filled what was pulled under a name has ended well."""
        if name in self._arriving:
            self._arriving[name].confirmed = True

    def settle(self) -> None:
        """Offer for reuse what has arrived since the last step, and free what is not wanted any more."""
        for name, arrival in list(self._arriving.items()):
            if arrival.landed is None or (arrival.wanted and arrival.landed and not arrival.confirmed):
                continue
            del self._arriving[name]
            if arrival.wanted and arrival.landed:
                arrival.lease.commit(arrival.held.tokens, len(arrival.held.tokens))
                self._kept[name] = arrival.lease
            else:
                arrival.lease.release()

    def _keep(self, lease: Lease, sequence: Output) -> None:
        """Hold on to what a lease shares, under a lease that nobody else has."""
        assert lease.node is not None and sequence.request.namespace is not None
        self.tree.lock(lease.node)
        kept = Lease(self, lease.node, lease.pages[: lease.shared], lease.shared)
        self._leases.add(kept)
        if self._mirror is not None:
            self._mirror[torch.tensor(kept.pages, dtype=torch.int64)] = self.gather(kept.pages)
        name = sequence.request.request_id
        self._kept[name] = kept
        tokens = sequence.tokens[: lease.shared * self.page_size]
        self._ready[name] = Held(sequence.request.namespace, tokens, list(kept.pages), self.pools, self.step)

    def _copy(self, arrival: _Arrival, first: int) -> int | None:
        """Copy the pages from `first` on from another store's pools into this one's, layer by layer; returns the bytes,
        None if they are not wanted any more. Safe beside steps, since these pages belong to a lease that no step knows.
        """
        held = arrival.held
        source = held.pools.open()
        theirs = torch.tensor(held.pages[first:], dtype=torch.int64)
        targets = arrival.lease.pages[first : len(held.pages)]
        if not held.pools.layers:
            data = source[0][theirs]
            self.scatter(targets, data)
            return data.numel()
        ours = torch.tensor(targets, dtype=torch.int64)
        progress = _mapped(held.pools.progress, (max(held.pools.layers) + 1,), "int64")
        moved = 0
        own = self._pools()
        for place in sorted(range(len(own)), key=lambda at: held.pools.layers[at]):
            layer = held.pools.layers[place]
            while not held.ready and int(progress[layer]) < held.step:
                held.pools.check()
                if not arrival.wanted:
                    return None
                time.sleep(_LOOK_SECONDS)
            data = source[place][theirs]
            own[place][ours] = data
            moved += data.numel() * data.element_size()
        return moved

    def _refuse_without_room(self, size: int) -> None:
        free = shutil.disk_usage(self.directory).free
        if size > free:
            raise HeadstartError(
                f"keys migrate through shared memory: they need {size:,} bytes in {self.directory}, and {free:,} are "
                "free there; give the cache less with --kv-cache-memory"
            )


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _mapped(file: str, shape: Sequence[int], dtype: str) -> Tensor:
    kind: torch.dtype = getattr(torch, dtype)
    size = 1
    for extent in shape:
        size *= extent
    return torch.from_file(file, shared=True, size=size, dtype=kind).view(tuple(shape))
