"""The questions that the engine asks and a method may answer. Each seam here has a default: the ordinary engine.

A method subclasses a seam, says which **slots** it fills, and declares its traits on its card (`headstart.methods`).
Choosing is separate from computing: a `Selector` says which keys to look at, an `Attention` computes over them.
Attending is separate from keeping: what a query skips is still there for the next one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from headstart.ops.attention import RaggedLayout, Selection, paged_attention

if TYPE_CHECKING:
    from headstart.checkpoints.tokenizer import Tokenizer
    from headstart.engine.batch import TokenBatch
    from headstart.engine.planner import StepPlanner
    from headstart.engine.request import Sequence
    from headstart.models.decoder import Attend, AttentionSpec, Decoder
    from headstart.models.layers import Linear


class Seam:
    """What all seams share: `slots` names the places in the engine that an implementation fills."""

    slots: ClassVar[tuple[str, ...]] = ()


class Scheduler(Seam, ABC):
    """Which tokens run in the next step?"""

    slots = ("scheduler",)
    step_tokens: int | None = None
    """The step's token budget that it wants where the user names none; None leaves it to the engine."""

    @abstractmethod
    def schedule(self, step: "StepPlanner") -> None:
        """Fill the step: `step.decode`, `step.prefill` and `step.admit` hand tokens to sequences, in this order of
        calls, and keep memory, budget and batch size within bounds. A step that gets nothing is an idle step."""


class Attention(Seam, ABC):
    """How do the queries of a layer meet the keys?"""

    slots = ("attention.prefill", "attention.decode")

    @abstractmethod
    def attend(
        self,
        spec: "AttentionSpec",
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        layout: RaggedLayout,
        selection: Selection | None,
    ) -> tuple[Tensor, Tensor]:
        """`q [T, H, D]`, `keys, values [P, page_size, Hkv, D]` → `out [T, H, D]`, `lse [T, H]` float32."""


class PagedAttention(Attention):
    """Exact attention over the pages: the default."""

    def attend(
        self,
        spec: "AttentionSpec",
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        layout: RaggedLayout,
        selection: Selection | None,
    ) -> tuple[Tensor, Tensor]:
        return paged_attention(
            q,
            keys,
            values,
            layout,
            scale=spec.scale,
            window=spec.window,
            softcap=spec.softcap,
            selection=selection,
        )


class Selector(Seam, ABC):
    """Which keys does a block of queries look at?"""

    slots = ("selector.prefill", "selector.decode")

    @abstractmethod
    def select(self, spec: "AttentionSpec", q: Tensor, keys: Tensor, layout: RaggedLayout) -> Selection | None:
        """Pages per sequence, query block and KV head; None looks at all."""


class EveryKey(Selector):
    """Look at all keys: the default."""

    def select(self, spec: "AttentionSpec", q: Tensor, keys: Tensor, layout: RaggedLayout) -> Selection | None:
        return None


class Prefill(Seam, ABC):
    """How does a step's list of tokens become hidden states and KV cache across the layers?"""

    slots = ("prefill",)

    @abstractmethod
    def forward(self, decoder: "Decoder", batch: "TokenBatch", attend: "Attend") -> Tensor:
        """Run the layers that these rows need → `[N, hidden]`, the rows of `batch.logit_rows` after the last norm.

        Every layer that a row skips must still receive its keys, or say through `KVLayout` that it keeps none.
        """


class EveryLayer(Prefill):
    """All rows through all layers: the default."""

    def forward(self, decoder: "Decoder", batch: "TokenBatch", attend: "Attend") -> Tensor:
        hidden = decoder(batch.token_ids, batch.positions, attend, batch.lengths)
        return hidden.index_select(0, batch.logit_rows)


@dataclass(frozen=True)
class LayerKV:
    """What one layer keeps per token; `alias_of` an earlier layer whose pages it reads instead."""

    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    alias_of: int | None = None


class KVLayout(Seam, ABC):
    """In which form do K and V live?"""

    slots = ("kv_layout",)

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
    def reserve(self, length: int) -> bool:
        """Make room for `length` tokens in all, evicting cached pages if needed; False when there is no room."""

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
    page_size: int
    num_pages: int
    num_free: int

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
        """Keys and values of a layer, each `[P, page_size, Hkv, D]`."""

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

    @abstractmethod
    def retain(self, sequence: "Sequence", store: KVStore) -> Tensor | None:
        """Asked after each step for each sequence that ran in it.

        Returns:
            int64 `[K]`, ascending: which of the sequence's `kv_length` cached keys to keep, in cache order. The
            others are gone for good and whole pages of them become free. None keeps all.
        """


class LinearOp(Seam, ABC):
    """How is a weight applied?"""

    slots = ("linear",)

    @abstractmethod
    def bind(self, name: str, module: "Linear") -> Callable[[Tensor], Tensor] | None:
        """Asked once per dense weight at start, by its name in the decoder.

        Returns:
            What maps `[T, in]` to `[T, out]` from then on; None leaves the plain product.
        """


class LogitRule(Seam, ABC):
    """What is done to logits before sampling?"""

    slots = ("logit_rule",)

    @abstractmethod
    def apply(self, logits: Tensor, sequences: "Seq[Sequence]") -> Tensor:
        """`[N, V]` float32, one row per sequence → the same shape."""


class PromptRule(Seam, ABC):
    """What is done to a prompt before it is a prompt?"""

    slots = ("prompt_rule",)

    @abstractmethod
    def rewrite(self, token_ids: list[int]) -> list[int]:
        """The ids that the model reads instead."""


class Tokenization(Seam, ABC):
    """How does text become ids?"""

    slots = ("tokenization",)

    @abstractmethod
    def encode(self, text: str, tokenizer: "Tokenizer", add_special_tokens: bool) -> list[int]:
        """The text's token ids; `add_special_tokens` is off for texts that bring their own, such as chats."""


class TokenizerIds(Tokenization):
    """As the checkpoint's `tokenizer.json` says: the default."""

    def encode(self, text: str, tokenizer: "Tokenizer", add_special_tokens: bool) -> list[int]:
        return tokenizer.encode(text, add_special_tokens)


SLOTS: dict[str, type[Seam]] = {
    slot: seam
    for seam in (
        Scheduler,
        Attention,
        Selector,
        Prefill,
        KVLayout,
        KVStore,
        Retention,
        LinearOp,
        LogitRule,
        PromptRule,
        Tokenization,
    )
    for slot in seam.slots
}
"""Every slot with the seam that fills it."""

DEFAULTS: dict[str, type[Seam]] = {
    "attention.prefill": PagedAttention,
    "attention.decode": PagedAttention,
    "selector.prefill": EveryKey,
    "selector.decode": EveryKey,
    "prefill": EveryLayer,
    "kv_layout": FullLayout,
    "tokenization": TokenizerIds,
}
"""What stands in a slot that no method fills. The remaining slots are empty by default, which leaves things as they
are (`retention`, `linear`, `logit_rule`, `prompt_rule`), or have their default beside the machinery that it drives
(`scheduler`, `kv_store`)."""
