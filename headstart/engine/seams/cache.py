"""Where keys and values live, in which form, what is found again and what is dropped."""

from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from headstart.engine.seams.base import Seam
from headstart.ops.attention.reach import Reach

if TYPE_CHECKING:
    from headstart.engine.request import Sequence
    from headstart.models.decoder import AttentionSpec
    from headstart.ops.attention import RaggedLayout


@dataclass(frozen=True)
class LayerKV:
    """What one layer keeps per token.

    Attributes:
        alias_of: an earlier layer whose pages it reads instead.
        on_host: whether its pages lie in the host's memory, whatever the model's device.
        bounded: the KV heads, ascending, that see and keep only what `reach` lets later tokens see. All bounded heads
            of a model have the same reach, and no alias has any; a rank that holds none of them says
            the reach as well.
    """

    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    alias_of: int | None = None
    on_host: bool = False
    bounded: tuple[int, ...] = ()
    reach: Reach | None = None

    @property
    def token_bytes(self) -> int:
        """Of a token that every head keeps, but for those that are bounded."""
        heads = 0 if self.alias_of is not None else self.num_kv_heads - len(self.bounded)
        return 2 * heads * self.head_dim * self.dtype.itemsize

    @property
    def bounded_bytes(self) -> int:
        """Of a token that the bounded heads keep."""
        return 2 * len(self.bounded) * self.head_dim * self.dtype.itemsize


@dataclass(frozen=True)
class KVPart:
    """Heads of one layer whose keys lie together.

    Attributes:
        heads: int64 `[h]`, which of the layer's KV heads; None is all.
        keys, values: `[P, page_size, h, D]`.
        bounded: they keep only what their reach lets them see, and are read by the layout of `KVStore.within`.
    """

    heads: Tensor | None
    keys: Tensor
    values: Tensor
    bounded: bool = False


class KVLayout(Seam, ABC):
    """In which form do K and V live?"""

    slots = ("kv_layout",)
    for_all = "all requests share one KV cache"
    splits = False
    movable: ClassVar[bool] = True
    """Whether pages may be moved: out of the device and back, or within it, without the method that goes with it."""

    @abstractmethod
    def layers(self, specs: Seq["AttentionSpec"], dtype: torch.dtype) -> list[LayerKV]:
        """One entry per layer."""


class FullLayout(KVLayout):
    """Every layer keeps its own K and V in the run's dtype: the default."""

    def layers(self, specs: Seq["AttentionSpec"], dtype: torch.dtype) -> list[LayerKV]:
        return [LayerKV(spec.num_kv_heads, spec.head_dim, dtype) for spec in specs]


class PageLease(ABC):
    """The one way to hold pages. A context manager that gives them back.

    Attributes:
        pages: page numbers in order of position: the sequence's page table.
        num_cached: tokens whose keys were found when the lease was opened.
    """

    pages: list[int]
    num_cached: int

    @abstractmethod
    def reserve(self, length: int, written: int | None = None) -> bool:
        """Make room for `length` tokens in all, evicting cached pages if needed; False when there is no room.

        `written` of them are there after the coming step (default: all), which is what heads need room for that keep
        only what is seen.
        """

    def advance(self, computed: int) -> None:
        """The first so many tokens are computed: what no later token sees may go."""
        return

    @abstractmethod
    def commit(self, tokens: list[int], computed: int) -> None:
        """Offer for reuse what is whole among the first `computed` of these tokens, whose keys are now written."""

    @abstractmethod
    def keep(self, offsets: Tensor) -> bool:
        """Drop all cached keys but those at these offsets (int64 `[K]`, ascending) and free what that empties.

        Keys that others share stay theirs; the lease goes on with copies and offers nothing for reuse any more.
        False, with nothing dropped, when there is no room for the copies.
        """

    @abstractmethod
    def release(self) -> None:
        """Give all pages back; calling it again does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


class KVStore(Seam, ABC):
    """Where do K and V live, and what is reused?

    Attributes:
        page_size: tokens per page.
        num_pages: pages in the pool.
        num_free: pages that nobody holds.
    """

    slots = ("kv_store",)
    for_all = "all requests share one KV cache"
    splits = False
    page_size: int
    num_pages: int
    num_free: int
    num_twins: int = 0
    """Pages for the bounded heads, where the layout has some; set before `allocate`."""
    most_written: int | None = None
    """Tokens that one sequence may write in a step, for the bounded heads' pages to suffice; None is no limit."""

    @abstractmethod
    def allocate(self, layers: list[LayerKV], num_pages: int, page_size: int, device: torch.device | str) -> Self:
        """Take the memory; the engine calls it once, before anything else.

        Args:
            layers: what each layer keeps per token (`KVLayout`'s answer).
            num_pages: pages in the pool; each holds `page_size` tokens of every layer.
            page_size: tokens per page.
            device: where the model runs.
        """

    @property
    @abstractmethod
    def num_cached(self) -> int:
        """Pages that are kept for reuse."""

    @property
    @abstractmethod
    def num_available(self) -> int:
        """Pages that are free or could be made free now."""

    def flush(self) -> None:
        """Write down what should outlive the process; called once, when the engine ends."""
        return

    @property
    def tier_traffic(self) -> tuple[int, int]:
        """Pages that went to lower tiers so far, and pages that came back."""
        return 0, 0

    def holdings(self) -> dict[str | None, tuple[int, int]]:
        """Pages by namespace: held by leases, and kept for reuse only. A store that keeps no such account says all of
        them under None."""
        return {None: (self.num_pages - self.num_free - self.num_cached, self.num_cached)}

    @abstractmethod
    def write(self, index: int, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Put a layer's `k, v [T, Hkv, D]` at `slots [T]`; nothing where the layer is an alias of another."""

    @abstractmethod
    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each `[P, page_size, Hkv, D]`, without its bounded heads."""

    def parts(self, index: int) -> list[KVPart]:
        """A layer's heads by where their keys lie."""
        return [KVPart(None, *self.layer(index))]

    @property
    def bounded(self) -> bool:
        """Whether any head keeps only what its reach lets it see."""
        return False

    def within(self, layout: "RaggedLayout") -> "RaggedLayout":
        """The same rows over what bounded heads keep: causality alone tells what each sees there. Asked only where
        some head is bounded, as the next is."""
        raise NotImplementedError(f"{type(self).__name__} bounds no heads")

    def write_bounded(self, index: int, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Put the bounded heads' part of a layer's `k, v [T, Hkv, D]` at `slots [T]` of the layout within."""
        raise NotImplementedError(f"{type(self).__name__} bounds no heads")

    def bring_up(self, namespace: str | None, tokens: list[int]) -> bool:
        """Make ready for `open` what lies further away of a prefix of `tokens`, as far as a step may wait for it.

        Returns:
            Whether that is all; otherwise a later step must ask again.
        """
        return True

    @abstractmethod
    def open(self, namespace: str | None, tokens: list[int]) -> PageLease:
        """A lease that already holds the longest reusable prefix of `tokens`, but never all of them.

        One token is always left to compute, since its logits are wanted. A namespace of None shares nothing.
        """

    @abstractmethod
    def drop(self, namespace: str) -> None:
        """Forget a namespace in which no lease stands."""


class Retention(Seam, ABC):
    """What stays in the cache?"""

    slots = ("retention",)
    splits = False

    @abstractmethod
    def retain(self, sequence: "Sequence", store: KVStore) -> Tensor | None:
        """Asked after each step for each sequence that ran in it.

        Returns:
            int64 `[K]`, ascending: which of the sequence's `kv_length` cached keys to keep, in cache order. The
            others are gone for good and whole pages of them become free. None keeps all.
        """
