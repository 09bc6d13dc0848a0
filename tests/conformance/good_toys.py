"""Small methods that keep every contract, at least one for each kind of seam: the suite accuses none of them."""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headstart.checkpoints.reader import Checkpoint
from headstart.engine.batch import TokenBatch
from headstart.engine.cache import PagedKVStore
from headstart.engine.request import Sequence
from headstart.engine.sampler import uniform
from headstart.engine.seams import (
    Attention,
    EveryLayer,
    FullLayout,
    KVStore,
    LayerKV,
    LinearOp,
    LogitRule,
    PromptRule,
    Retention,
    Selector,
)
from headstart.errors import MethodError
from headstart.models.decoder import Attend, AttentionSpec, Decoder
from headstart.models.layers import Linear
from headstart.ops.attention import RaggedLayout, Selection, merge_attention, paged_attention
from tests.conformance.examples import Example


class Recent(Selector):
    """Every query looks at the first page and at the `keep` newest before it."""

    def __init__(self, keep: int = 4) -> None:
        if not 1 <= keep < 2**31:
            raise MethodError(f"toy-recent: keep must be 1 to 2,147,483,647, not {keep}")
        self.keep = keep

    def select(self, spec: AttentionSpec, q: Tensor, keys: Tensor, layout: RaggedLayout) -> Selection:
        page, own = pages_of(layout)
        chosen = (page <= own) & ((page > own - self.keep) | (page == 0))
        return Selection(chosen.expand(-1, -1, spec.num_kv_heads, -1).contiguous(), query_block=1)


def pages_of(layout: RaggedLayout) -> tuple[Tensor, Tensor]:
    """All pages of the longest sequence `[P]`, and the page `[S, Q, 1, 1]` in which each query's own key lies."""
    starts = torch.tensor(layout.kv_lengths) - torch.tensor(layout.query_lengths)
    places = starts[:, None] + torch.arange(max(layout.query_lengths))
    return torch.arange(-(-max(layout.kv_lengths) // layout.page_size)), (places // layout.page_size)[..., None, None]


class Late(Recent):
    """The same for decodes only; prompts are read in full."""

    slots = ("selector.decode",)


class Sinks(Retention):
    """Keeps the first key and the `recent` newest; what is left of a prompt depends on where it was cut."""

    def __init__(self, recent: int = 64) -> None:
        if recent < 1:
            raise MethodError(f"toy-sinks: recent must be at least 1, not {recent}")
        self.recent = recent

    def retain(self, sequence: Sequence, store: KVStore) -> Tensor | None:
        length = sequence.kv_length
        if length <= self.recent + 1:
            return None
        return torch.tensor([0, *range(length - self.recent, length)])


class Middle(Selector):
    """In a prompt, all queries leave out the pages that the last one likes least; it must see the prompt whole."""

    slots = ("selector.prefill",)

    def __init__(self, share: float = 0.5) -> None:
        if not 0 < share <= 1:
            raise MethodError(f"toy-middle: share must be above 0 and at most 1, not {share}")
        self.share = share

    def select(self, spec: AttentionSpec, q: Tensor, keys: Tensor, layout: RaggedLayout) -> Selection:
        page, own = pages_of(layout)
        chosen = torch.zeros(len(layout.kv_lengths), 1, spec.num_kv_heads, len(page), dtype=torch.bool)
        for s, (length, after) in enumerate(zip(layout.kv_lengths, layout.query_starts[1:], strict=True)):
            count = -(-length // layout.page_size)
            of_sequence = keys[list(layout.page_tables[s][:count])].flatten(0, 1)[:length].mean(1)
            likes = [part.max() for part in (of_sequence @ q[after - 1].mean(0)).split(layout.page_size)]
            chosen[s, :, :, torch.stack(likes).topk(max(1, round(count * self.share))).indices] = True
        # Every query sees its own page, so that none sees nothing.
        return Selection(chosen | (page == own), query_block=1)


class Shared(FullLayout):
    """The second layer reads the first layer's keys and values."""

    def layers(self, specs: Seq[AttentionSpec], dtype: torch.dtype) -> list[LayerKV]:
        first, second, *rest = super().layers(specs, dtype)
        return [first, replace(second, alias_of=0), *rest]


class Halves(Attention):
    """Attends to the pages of even and of odd numbers apart, and merges."""

    def attend(
        self,
        spec: AttentionSpec,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        layout: RaggedLayout,
        selection: Selection | None,
    ) -> tuple[Tensor, Tensor]:
        pages = -(-max(layout.kv_lengths) // layout.page_size)
        even = (torch.arange(pages) % 2 == 0).expand(len(layout.kv_lengths), 1, spec.num_kv_heads, pages)
        parts = [
            paged_attention(
                q,
                keys,
                values,
                layout,
                scale=spec.scale,
                window=spec.window,
                softcap=spec.softcap,
                selection=Selection(half, query_block=10**6),
            )
            for half in (even, ~even)
        ]
        return merge_attention(*parts[0], *parts[1])


class ByHand(EveryLayer):
    """Runs the layers one by one."""

    def forward(self, decoder: Decoder, batch: TokenBatch, attend: Attend) -> Tensor:
        x = decoder.embed(batch.token_ids)
        rows = decoder.rope_rows(batch.positions, batch.lengths)
        for layer, kind in zip(decoder.layers, decoder.config.layer_kinds, strict=True):
            x = layer(x, rows[kind], attend)
        return decoder.norm(x).index_select(0, batch.logit_rows)


class Counting(PagedKVStore):
    """Counts what is written."""

    written = 0

    def write(self, index: int, k: Tensor, v: Tensor, slots: Tensor) -> None:
        self.written += len(slots)
        super().write(index, k, v, slots)


class Product(LinearOp):
    """Multiplies by a copy of the weights that may be rounded to steps of 1/`steps`."""

    def __init__(self, steps: int = 8) -> None:
        if not 0 <= steps <= 1000:
            raise MethodError(f"toy-product: steps must be 0 to 1,000, not {steps}")
        self.steps = steps

    def bind(self, name: str, module: Linear) -> Callable[[Tensor], Tensor] | None:
        weight = module.weight if self.steps == 0 else (module.weight * self.steps).round() / self.steps
        return lambda x: torch.nn.functional.linear(x, weight, module.bias)


class Guess(LogitRule):
    """Draws the token itself, from random numbers of its own: exact, but not what the seed draws otherwise."""

    def apply(self, logits: Tensor, sequences: Seq[Sequence]) -> Tensor:
        for row, sequence in enumerate(sequences):
            if not sequence.params.greedy:
                masses = torch.softmax(logits[row] / sequence.params.temperature, -1).cumsum(-1)
                token = int((masses < self.number(sequence)).sum())
                logits[row] = -torch.inf
                logits[row, min(token, len(masses) - 1)] = 0.0
        return logits

    def number(self, sequence: Sequence) -> float:
        return uniform(sequence.seed + 1, 1000 + sequence.num_output)


class Written(LogitRule):
    """Adds to all logits what a file says."""

    def __init__(self, path: str) -> None:
        try:
            self.addend = float(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise MethodError(f"toy-written: path: {path!r} is no file with a number in it") from error
        self.path = path

    def apply(self, logits: Tensor, sequences: Seq[Sequence]) -> Tensor:
        return logits + self.addend


def write_number(checkpoint: Checkpoint, directory: Path) -> str:
    """The file of `Written`."""
    path = directory / "number"
    path.write_text(f"{checkpoint.config.vocab_size}")
    return f"path={path}"


class Shorten(PromptRule):
    """Reads only the last `keep` tokens of a prompt."""

    def __init__(self, keep: int = 8) -> None:
        if keep < 1:
            raise MethodError(f"toy-shorten: keep must be at least 1, not {keep}")
        self.keep = keep

    def rewrite(self, token_ids: list[int]) -> list[int]:
        return token_ids[-self.keep :]


@dataclass(frozen=True)
class Good:
    """A method, its card's traits and its example."""

    toy: type
    traits: dict[str, Any] = field(default_factory=dict)
    example: Example = field(default_factory=Example)


LOSSY: dict[str, Any] = {"exact": False}


def sinks_share(sinks: Sinks, _: Seq[AttentionSpec], tokens: int) -> float:
    """What `Sinks` holds: its keys, and the one that came last."""
    return (sinks.recent + 2) / tokens


GOOD = {
    "toy-recent": Good(Recent, LOSSY | {"min_context": 256}, Example(("keep=2",), dense="keep=100")),
    "toy-late": Good(Late, LOSSY | {"min_context": 256}, Example(("keep=2",), dense="keep=100")),
    "toy-sinks": Good(
        Sinks,
        LOSSY | {"chunking": "per_chunk"},
        Example(("recent=8",), dense="recent=1000", kv_share=sinks_share),
    ),
    "toy-middle": Good(Middle, LOSSY | {"chunking": "whole"}, Example(("share=0.4",), dense="share=1")),
    "toy-shared": Good(
        Shared, LOSSY, Example(no_dense="one layer always reads another's keys", kv_share=lambda *_: 0.5)
    ),
    "toy-halves": Good(Halves),
    "toy-by-hand": Good(ByHand),
    "toy-counting": Good(Counting),
    "toy-product": Good(Product, LOSSY, Example(("steps=4",), dense="steps=0")),
    "toy-guess": Good(Guess, example=Example(same_draws=False)),
    "toy-written": Good(Written, example=Example(made=write_number)),
    "toy-shorten": Good(Shorten, LOSSY, Example(("keep=3",), dense="keep=1000")),
}
"""By key."""
