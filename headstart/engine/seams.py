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
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

import torch
from torch import Tensor

from headstart.models.decoder import Attend
from headstart.ops.attention import RaggedLayout, Selection, paged_attention
from headstart.ops.sampling import invert

if TYPE_CHECKING:
    from headstart.checkpoints.reader import Checkpoint
    from headstart.checkpoints.tokenizer import Tokenizer
    from headstart.engine.batch import TokenBatch
    from headstart.engine.planner import StepPlanner
    from headstart.engine.request import Sequence
    from headstart.models.decoder import AttentionSpec, Decoder
    from headstart.models.layers import Linear


class Seam:
    """What all seams share: `slots` names the places in the engine that an implementation fills."""

    slots: ClassVar[tuple[str, ...]] = ()

    def start(self, checkpoint: "Checkpoint") -> None:
        """Asked once, before anything else: refuse a model that it cannot serve (MethodError), or prepare for it."""
        return

    def identity(self) -> str:
        """What decides beside its options, once it is started, what it computes: the content of a trained file, say.
        It is part of the identity of the keys that a lossy method writes."""
        return ""

    def counters(self) -> dict[str, int]:
        """What it has counted since the start, by name; `EngineStats` shows it."""
        return {}


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


class AmongAttend(Attend, Protocol):
    """The `Attend` of chosen rows over chosen keys, per sequence the places of either."""

    rows: Seq[Tensor]
    keys: Seq[Tensor]

    def keys_of(self, spec: "AttentionSpec", s: int) -> Tensor:
        """`[N, Hkv, D]`, the chosen keys of sequence s, once the layer has attended."""
        ...


class LastAttend(Protocol):
    """Attention for the last rows of each sequence alone, over keys that are kept already."""

    def __call__(self, spec: "AttentionSpec", q: Tensor) -> Tensor:
        """`q [R, H, D]`, the sequences' rows one after the other → `[R, H, D]`."""
        ...


class StepAttend(Attend, Protocol):
    """The `Attend` of a step's rows, and the way to that of others."""

    def keep(self, spec: "AttentionSpec", k: Tensor, v: Tensor) -> None:
        """Keep a layer's keys and values of the step's rows, both `[T, Hkv, D]`, without attending."""
        ...

    def last(self, counts: Seq[int]) -> LastAttend:
        """Attend with the last so many rows of each sequence, the way that is in force for it, once `keep` has kept
        the layer's keys of all rows. A count of 0 leaves a sequence out; they are not all 0."""
        ...

    def among(self, rows: Seq[Tensor], keys: Seq[Tensor]) -> AmongAttend:
        """Attend with other rows than the step's, over some of the keys, exactly.

        Args:
            rows: per sequence int64 `[R]`, ascending and not empty: the cache places whose keys are computed now and
                written; queries, keys and values come in this order, the sequences one after the other.
            keys: per sequence int64 `[N]`, ascending: the places that may be seen, those of `rows` among them. A row
                sees the ones up to its own. What was never written must not be named.
        """
        ...


class Prefill(Seam, ABC):
    """How does a step's list of tokens become hidden states and KV cache across the layers?"""

    slots = ("prefill",)

    @abstractmethod
    def forward(self, decoder: "Decoder", batch: "TokenBatch", attend: StepAttend) -> Tensor:
        """Run the layers that these rows need → `[N, hidden]`, the rows of `batch.logit_rows` after the last norm.

        Every layer that a row skips must still receive its keys, or say through `KVLayout` that it keeps none, or see
        to it that no later row attends to them (`attend.among`).
        """


class EveryLayer(Prefill):
    """All rows through all layers: the default."""

    def forward(self, decoder: "Decoder", batch: "TokenBatch", attend: Attend) -> Tensor:
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


@dataclass(frozen=True)
class Draft:
    """A guess of what a sequence will say next.

    Attributes:
        tokens: n guessed ids, in order.
        probabilities: float32 `[n, V]`, from what each was drawn given those before it; None where each was certain.
    """

    tokens: list[int]
    probabilities: Tensor | None = None


class DraftLength(Seam, ABC):
    """How many tokens are guessed?"""

    slots = ("draft_length",)

    @abstractmethod
    def go_on(
        self, sequences: "Seq[Sequence]", lengths: list[int], hidden: Tensor, probabilities: Tensor
    ) -> list[bool]:
        """Asked after each drafted token that the drafter's `length` would let another follow.

        Args:
            sequences: those that are being drafted for, N of them.
            lengths: tokens drafted so far, the one just drawn included.
            hidden: `[N, hidden]`, the draft model's last hidden states, from which that token was drawn.
            probabilities: float32 `[N, V]`, what it was drawn from.

        Returns:
            For whom to draft another. It may look at nothing but what the draft knows: whoever looked at the target
            would change what is drawn.
        """


class FullLength(DraftLength):
    """As long as the drafter lets drafts be: the default."""

    def go_on(
        self, sequences: "Seq[Sequence]", lengths: list[int], hidden: Tensor, probabilities: Tensor
    ) -> list[bool]:
        return [True] * len(lengths)


class Drafter(Seam, ABC):
    """Which tokens are guessed?

    The engine runs a draft's tokens through the model beside the sequence's own next one, and keeps those that a
    `Verifier` lets stand. What does not stand leaves no trace: its keys are written over.

    Attributes:
        length: most tokens of a draft.
        guarded: whether drafts are left out where they are measured to lose.
    """

    slots = ("drafter",)
    length: int = 4
    guarded: bool = True

    def layers(self) -> list[LayerKV]:
        """What it keeps per token in a cache of its own, with as many pages as the model's; it counts as memory."""
        return []

    def allocate(self, num_pages: int, page_size: int, max_model_len: int) -> None:
        """Take that memory; asked once, when the sizes are known."""
        return

    @abstractmethod
    def guess(self, sequences: "Seq[Sequence]", lengths: list[int], rule: DraftLength) -> list[Draft]:
        """Guess on for decoding sequences, each by at most so many tokens (at least 1); a draft may be empty.

        Random numbers come from `headstart.engine.sampler.uniform`, keyed by the sequence's seed, the output
        position, `DRAFTED` and the sequence's `num_drafts`, and no number decides two things.
        """

    def late(self, sequences: "Seq[Sequence]") -> list[Draft]:
        """Asked for the same sequences once the model has run: a guess, of one token or none, for the position behind
        each draft. The model's last row decides on it, so that a drafter may make it while the model runs."""
        return [Draft([])] * len(sequences)

    def forget(self, sequence: "Sequence") -> None:
        """Let go of what is held for a sequence that has ended."""
        return


class Verifier(Seam, ABC):
    """Which guesses stand?"""

    slots = ("verifier",)

    @abstractmethod
    def verify(self, target: Tensor, draft: Tensor, tokens: Tensor, points: Tensor) -> Tensor:
        """Decide one position of each of N drafts.

        Args:
            target: float64 `[N, V]`, the model's probabilities after temperature and filters.
            draft: float64 `[N, V]`, from what the guesses were drawn.
            tokens: int64 `[N]`, the guesses.
            points: float64 `[N, 2]` in [0, 1), fresh and independent.

        Returns:
            int64 `[N]`, what each sequence says at this position. Where that is the guess, the draft goes on.
        """


class RejectionSampling(Verifier):
    """Lets a guess x stand with probability min(1, p(x) / q(x)), and draws from what p has over q otherwise, so that
    the result is distributed as p whatever q is (Leviathan et al., arXiv 2211.17192): the default."""

    def verify(self, target: Tensor, draft: Tensor, tokens: Tensor, points: Tensor) -> Tensor:
        chosen = tokens[:, None]
        stands = points[:, :1] * draft.gather(1, chosen) < target.gather(1, chosen)
        excess = (target - draft).clamp_(min=0.0)
        # Where rounding leaves no excess the two are the same, and a guess is rejected with probability near 0.
        excess = torch.where(excess.sum(-1, keepdim=True) > 0, excess, target)
        return torch.where(stands[:, 0], tokens, invert(excess, points[:, 1:]))


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
        Drafter,
        DraftLength,
        Verifier,
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
    "draft_length": FullLength,
    "verifier": RejectionSampling,
    "tokenization": TokenizerIds,
}
"""What stands in a slot that no method fills. The remaining slots are empty by default, which leaves things as they
are (`retention`, `drafter`, `linear`, `logit_rule`, `prompt_rule`), or have their default beside the machinery that it
drives (`scheduler`, `kv_store`)."""
