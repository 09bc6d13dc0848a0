"""What preemption does with the keys that are in its way: copied to the host and back, or computed again, whichever
costs less."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from torch import Tensor

from headstart.engine.cache import PagedKVStore
from headstart.engine.lease import Lease
from headstart.engine.request import Sequence
from headstart.engine.seams import KVStore

if TYPE_CHECKING:
    from headstart.engine.stack import Stack

# A measured rate counts as much as this share of all before it.
_NEWS = 0.2
_PROBE_PAGES = 4


@dataclass(frozen=True)
class SwapCost:
    """What the rule weighs.

    Attributes:
        page_bytes: of one page over all layers.
        copy_rate: bytes per second between the cache and the host's memory, one way.
        read_rate: tokens per second at which prompts are read; 0 while nothing has been.
    """

    page_bytes: int
    copy_rate: float
    read_rate: float = 0.0

    def prefers_swap(self, pages: int, tokens: int) -> bool:
        """Whether copying so many pages out and in again takes less than reading so many tokens again."""
        return self.read_rate > 0 and 2 * pages * self.page_bytes / self.copy_rate < tokens / self.read_rate


@dataclass(frozen=True)
class _Swapped:
    """Keys `[N, page_bytes]`, uint8 on the host, of a sequence's first `computed` tokens."""

    data: Tensor
    computed: int


class Swap:
    """Keys of preempted sequences in the host's memory. Belongs to the engine's thread.

    Args:
        store: the cache that they come from and go back to.
        limit: bytes that they may take.

    Attributes:
        cost: the rule, with what was measured so far.
        count: sequences that were swapped out.
    """

    def __init__(self, store: PagedKVStore, limit: int) -> None:
        self.store, self.limit = store, limit
        self.count = self.used = 0
        self._swapped: dict[Sequence, _Swapped] = {}
        self.cost = SwapCost(store.bytes_per_page, self._probe())

    @classmethod
    def of(cls, limit: int, store: KVStore, stack: "Stack", ranks: int) -> Self | None:
        """Room for so many bytes; None where there is none, where a drafter has keys of its own, where pages are not
        all there is to copy, or where several ranks would have to measure alike."""
        if not limit or ranks > 1 or stack.filled("drafter") or not isinstance(store, PagedKVStore):
            return None
        return cls(store, limit) if store.copies_whole else None

    def read(self, tokens: int, seconds: float) -> None:
        """A step has read so many tokens of prompts, and little else."""
        rate, before = tokens / seconds, self.cost.read_rate
        self.cost = SwapCost(
            self.cost.page_bytes, self.cost.copy_rate, before + _NEWS * (rate - before) if before else rate
        )

    def save(self, sequence: Sequence) -> bool:
        """Copy the keys of a running sequence to the host, if that pays; to be called before its lease is released.

        The last token that is known is always computed again, since its logits are wanted.
        """
        lease, computed = sequence.lease, min(sequence.num_computed, len(sequence.tokens) - 1)
        pages = -(-computed // self.store.page_size)
        size = pages * self.cost.page_bytes
        # What computes prompts in its own way, or drops keys, knows more of a sequence than its keys.
        knows_more = sequence.wants_prompt_rows or any(sequence.stack.filled(slot) for slot in ("prefill", "retention"))
        if knows_more or not isinstance(lease, Lease) or self.used + size > self.limit:
            return False
        if computed <= 0 or not self.cost.prefers_swap(pages, computed):
            return False
        begun = time.perf_counter()
        data = self.store.gather(lease.pages[:pages])
        self._copied(size, time.perf_counter() - begun)
        self._swapped[sequence] = _Swapped(data, computed)
        self.used += size
        self.count += 1
        return True

    def restore(self, sequence: Sequence, lease: Lease) -> int:
        """Put a sequence's keys into a new lease that has room for them; returns how many tokens have keys there."""
        found = self._swapped.get(sequence)
        cached = lease.num_cached
        if found is None or found.computed <= cached:
            self.drop(sequence)
            return cached
        first, last = lease.shared, len(found.data)
        self.store.scatter(lease.pages[first:last], found.data[first:])
        self.drop(sequence)
        return found.computed

    def drop(self, sequence: Sequence) -> None:
        """Forget a sequence's keys, if there are any."""
        found = self._swapped.pop(sequence, None)
        if found is not None:
            self.used -= found.data.nbytes

    def _probe(self) -> float:
        """The rate of a copy there and back, of pages of a cache that is still empty."""
        pages = list(range(min(_PROBE_PAGES, self.store.num_pages)))
        data = self.store.gather(pages)
        begun = time.perf_counter()
        self.store.scatter(pages, data)
        self.store.gather(pages)
        return 2 * data.nbytes / max(time.perf_counter() - begun, 1e-6)

    def _copied(self, size: int, seconds: float) -> None:
        rate = size / max(seconds, 1e-6)
        before = self.cost.copy_rate
        self.cost = SwapCost(self.cost.page_bytes, before + _NEWS * (rate - before), self.cost.read_rate)
