"""How a step is made and run: its tokens, its layers, its attention, its products."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from headstart.engine.seams.base import Seam
from headstart.models.decoder import Attend
from headstart.ops.attention import AnySelection, RaggedLayout, paged_attention

if TYPE_CHECKING:
    from headstart.checkpoints.tokenizer import Tokenizer
    from headstart.engine.batch import TokenBatch
    from headstart.engine.planner import StepPlanner
    from headstart.engine.seams.cache import KVStore
    from headstart.models.decoder import AttentionSpec, Decoder
    from headstart.models.layers import Linear


@dataclass(frozen=True)
class Piece:
    """One request of a job whose requests are all known before any of them runs.

    Attributes:
        request_id: under which it will be submitted.
        tokens: the prompt's ids.
        max_tokens: most tokens of its answer; None where only the model's length bounds it.
    """

    request_id: str
    tokens: Seq[int]
    max_tokens: int | None


class Scheduler(Seam, ABC):
    """Which tokens run in the next step?"""

    slots = ("scheduler",)
    for_all = "one plan serves all requests"
    step_tokens: int | None = None
    """The step's token budget that it wants where the user names none; None leaves it to the engine."""

    @abstractmethod
    def schedule(self, step: "StepPlanner") -> None:
        """Fill the step: `step.decode`, `step.prefill` and `step.admit` hand tokens to sequences, in this order of
        calls, and keep memory, budget and batch size within bounds. A step that gets nothing is an idle step."""

    def arrange(self, job: Seq[Piece]) -> list[int]:
        """Told of a job before it begins: the order in which its requests are to arrive (default: the given one)."""
        return list(range(len(job)))


class Attention(Seam, ABC):
    """How do the queries of a layer meet the keys?"""

    slots = ("attention.prefill", "attention.decode")
    capturable: bool = False
    """Whether a decode step can be captured and replayed on a GPU: only the device's tensors tell what is computed."""
    forms: int = 1
    """In how many forms it is captured; `form_of` chooses one for each step."""

    @abstractmethod
    def attend(
        self,
        spec: "AttentionSpec",
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        layout: RaggedLayout,
        selection: AnySelection | None,
    ) -> tuple[Tensor, Tensor]:
        """`q [T, H, D]`, `keys, values [P, page_size, Hkv, D]` → `out [T, H, D]`, `lse [T, H]` float32."""

    def hold(self, layout: RaggedLayout, form: int) -> None:
        """Steps over this layout of device buffers are about to be captured in a form: what they read beside it must
        lie in buffers that stay. The largest layout comes first."""
        return

    def form_of(self, layout: RaggedLayout) -> int:
        """The form of a step that could be replayed."""
        return 0

    def refill(self, captured: RaggedLayout, layout: RaggedLayout) -> None:
        """What was captured over one layout is about to be replayed for a step: fill the buffers that `hold` made."""
        return


class PagedAttention(Attention):
    """Exact attention over the pages: the default."""

    capturable = True

    def attend(
        self,
        spec: "AttentionSpec",
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        layout: RaggedLayout,
        selection: AnySelection | None,
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
    def select(self, spec: "AttentionSpec", q: Tensor, keys: Tensor, layout: RaggedLayout) -> AnySelection | None:
        """Pages per sequence, query block and KV head (`Selection`), or lists of blocks and lines per KV head or query
        head (`KeyBlocks`); None looks at all. `layout.owners` says whose rows they are."""


class EveryKey(Selector):
    """Look at all keys: the default."""

    def select(self, spec: "AttentionSpec", q: Tensor, keys: Tensor, layout: RaggedLayout) -> AnySelection | None:
        return None


class AmongAttend(Attend, Protocol):
    """The `Attend` of chosen rows over chosen keys, per sequence the places of either."""

    rows: Seq[Tensor]
    keys: Seq[Tensor]

    def keep(self, spec: "AttentionSpec", k: Tensor, v: Tensor) -> None:
        """Write the rows' keys and values, both `[R, Hkv, D]`, without attending."""
        ...

    def attend(self, spec: "AttentionSpec", q: Tensor) -> Tensor:
        """`q [R, H, D]` → `[R, H, D]`, over keys that are written already."""
        ...

    def keys_of(self, spec: "AttentionSpec", s: int) -> Tensor:
        """`[N, Hkv, D]`, the chosen keys of sequence s, once they are written."""
        ...

    def values_of(self, spec: "AttentionSpec", s: int) -> Tensor:
        """`[N, Hkv, D]`, their values."""
        ...


class LastAttend(Protocol):
    """Attention for the last rows of each sequence alone, over keys that are kept already."""

    def __call__(self, spec: "AttentionSpec", q: Tensor) -> Tensor:
        """`q [R, H, D]`, the sequences' rows one after the other → `[R, H, D]`."""
        ...


class StepAttend(Attend, Protocol):
    """The `Attend` of a step's rows, and the way to that of others.

    Attributes:
        store: where the keys are kept.
    """

    store: "KVStore"

    def keep(self, spec: "AttentionSpec", k: Tensor, v: Tensor) -> None:
        """Keep a layer's keys and values of the step's rows, both `[T, Hkv, D]`, without attending."""
        ...

    def last(self, counts: Seq[int]) -> LastAttend:
        """Attend with the last so many rows of each sequence, the way that is in force for it, once `keep` has kept
        the layer's keys of all rows. A count of 0 leaves a sequence out; they are not all 0."""
        ...

    def part(self, batch: "TokenBatch") -> "StepAttend":
        """The same for a part of the step's batch (`TokenBatch.part`), whose rows are then all there are."""
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
    splits = False

    def chunks(self, token_ids: list[int], tokenizer: "Tokenizer | None") -> list[tuple[int, int]]:
        """Which parts of a prompt are likely to come again in others, asked where the request does not say.

        Returns:
            (start, end) of each, ascending, apart from one another.
        """
        return []

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


class LinearOp(Seam, ABC):
    """How is a weight applied?"""

    slots = ("linear",)
    for_all = "all requests share the weights"
    splits = False

    @abstractmethod
    def bind(self, name: str, module: "Linear") -> Callable[[Tensor], Tensor] | None:
        """Asked once per dense weight at start, by its name in the decoder.

        Returns:
            What maps `[T, in]` to `[T, out]` from then on; None leaves the plain product.
        """
