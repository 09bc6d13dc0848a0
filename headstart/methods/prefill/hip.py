"""HiP attention (arXiv 2406.09827): the keys that score highest, found by descending a tree of regions."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from headstart.engine.request import Sequence
from headstart.engine.seams import Selector
from headstart.errors import MethodError
from headstart.methods.registry import Claim, Paper, method
from headstart.models.decoder import AttentionSpec
from headstart.ops.attention import AnySelection, KeyBlocks, RaggedLayout
from headstart.ops.attention.descent import Descent, descend

if TYPE_CHECKING:
    from headstart.evaluation.method_bench_spec import MethodBench


@dataclass
class _Found:
    """What a layer's descent found for the newest row of a sequence.

    Attributes:
        blocks: int32 `[H, 1, K]`, with room for the blocks that come until the next descent.
        counts: int32 `[H, 1]`.
        place: of that row.
        newest: the last block that is listed.
    """

    blocks: Tensor
    counts: Tensor
    place: int
    newest: int


@method(
    "hip",
    stage="prefill",
    paper=Paper(
        "HiP Attention: Sparse Sub-Quadratic Attention with Hierarchical Attention Pruning",
        arxiv="2406.09827",
        venue="ICLR 2025, as 'A Training-free Sub-quadratic Cost Transformer Model Serving Framework with "
        "Hierarchically Pruned Attention'",
    ),
    exact=False,
    chunking="per_chunk",
    min_context=4096,
    when_not="""For contexts not well beyond the number of keys kept (512 by default in the code), and in layers
    with diffuse attention: the first few stay dense.""",
    claim=Claim(
        "decode up to 6.83 times faster end to end at 128K",
        setting="models of Llama-3.1-8B's class; hardware and batch not known here",
        source="a summary of the ICLR version",
    ),
    composes="Paged caches and offloading, since the search touches few pages; tensor parallelism.",
    conflicts="`lserve` and `minference` on the same layers; pages quantised as a whole, unless keys are restored.",
)
class HiP(Selector):
    """Finds for each block of queries approximately the keys with the highest scores, by a search that halves candidate
    regions and looks at one representative key of each. Block-sparse attention then runs on the winners, with the first
    tokens and a window of recent ones. It needs no training, and its cost grows as T log T with context length T. While
    decoding, a selection can be reused for several steps.

    Layers with a sliding window are left alone.

    Args:
        keys: keys that the search keeps for each block of queries (official code: 512).
        query_block: query rows that share a search (official code: 64; the paper's runs: 32).
        key_block: neighbouring keys that are found together, a power of two (official code: 2).
        stride: every so many rows of a block of queries are asked (official code: 2).
        sink: first keys that are always looked at (official code: 16).
        window: newest keys that are always looked at (official code: 256).
        refresh: a decode searches at every so many places, and reuses what was found between (official code: 8;
            ours: 1, since what is copied from the context moves on by a key with each token, and reuse loses it).
        dense_layers: first layers that look at everything (reproduction scripts: 3 or 4).
        representative: the key block that stands for a region: its first, or its center (official code).
        min_context: tokens of context below which attention is dense; by default what the card says.
    """

    slots = ("selector.prefill", "selector.decode")

    def __init__(
        self,
        keys: int = 512,
        query_block: int = 64,
        key_block: int = 2,
        stride: int = 2,
        sink: int = 16,
        window: int = 256,
        refresh: int = 1,
        dense_layers: int = 3,
        representative: Literal["first", "center"] = "center",
        min_context: int | None = None,
    ) -> None:
        if key_block not in (1, 2, 4, 8, 16, 32, 64):
            raise MethodError(f"hip: key_block must be a power of two from 1 to 64, not {key_block}")
        if keys < key_block or keys % key_block or keys // key_block > 2048:
            raise MethodError(
                f"hip: keys must be a multiple of key_block ({key_block}) of 1 to 2048 blocks, since 0 keeps nothing, "
                f"not {keys}"
            )
        least = {"query_block": 1, "stride": 1, "sink": 0, "window": 1, "refresh": 1, "dense_layers": 0}
        given = (query_block, stride, sink, window, refresh, dense_layers)
        for (name, low), value in zip(least.items(), given, strict=True):
            if not low <= value < 2**20:
                raise MethodError(f"hip: {name} must be from {low} to 1,048,575, not {value}")
        if query_block > 256:
            raise MethodError(f"hip: query_block must be at most 256, not {query_block}")
        if min_context is not None and min_context < 0:
            raise MethodError(f"hip: min_context must be 0 or above, not {min_context}")
        self.keys, self.query_block, self.key_block, self.stride = keys, query_block, key_block, stride
        self.sink, self.window, self.refresh, self.dense_layers = sink, window, refresh, dense_layers
        self.representative: Literal["first", "center"] = representative
        self.min_context = min_context
        self.descent = Descent(keys // key_block, query_block, key_block, stride, sink, window, representative)
        self._found: WeakKeyDictionary[Sequence, dict[int, _Found]] = WeakKeyDictionary()
        self._parts: tuple[Any, dict[tuple[int, ...], tuple[RaggedLayout, Tensor]]] = (lambda: None, {})
        self._counts: Counter[str] = Counter()

    @classmethod
    def bench(cls) -> "MethodBench":
        """Where its claim lies: long contexts read and continued, and what is still found in them."""
        from headstart.evaluation.method_bench_spec import MethodBench, OfflineLengths, Quality

        lengths = OfflineLengths((4096, 8192, 16384), decode_tokens=32)
        quality = Quality(("niah_depth", "niah_multikey_1", "kv_retrieval"), (8192,), 4)
        return MethodBench((), (lengths, quality), ("decode", "TTFT", "KV cache"))

    def counters(self) -> dict[str, int]:
        """Layers of a chunk or decode that were searched, pairs that this scored over all heads, and decodes of a
        sequence and layer that reused what was found."""
        return dict(self._counts)

    def select(self, spec: AttentionSpec, q: Tensor, keys: Tensor, layout: RaggedLayout) -> AnySelection | None:
        longest = max(layout.kv_lengths)
        windowed = spec.window is not None and spec.window < longest
        if windowed or spec.layer < self.dense_layers or longest <= self.keys + self.window + self.sink:
            return None
        owners = layout.owners
        if self.refresh > 1 and owners and max(layout.query_lengths) == 1 and all(owner.decoding for owner in owners):
            return self._decode(spec, q, keys, layout)
        return self._search(spec, q, keys, layout)

    def _search(self, spec: AttentionSpec, q: Tensor, keys: Tensor, layout: RaggedLayout) -> KeyBlocks:
        self._counts["searches"] += 1
        shapes = zip(layout.query_lengths, layout.kv_lengths, strict=True)
        self._counts["scored_pairs"] += spec.num_heads * sum(self.descent.scored(*shape) for shape in shapes)
        return descend(q, keys, layout, self.descent)

    def _decode(self, spec: AttentionSpec, q: Tensor, keys: Tensor, layout: RaggedLayout) -> KeyBlocks:
        """What each sequence's last search found, and its newest keys; those search whose turn it is."""
        due = tuple(s for s in range(len(layout.owners)) if self._is_due(spec.layer, layout, s))
        if due:
            part, rows = self._part(layout, due)
            blocks = self._search(spec, q[rows], keys, part)
            room = -(-self.refresh // self.key_block) + 1
            lists = torch.nn.functional.pad(blocks.blocks, (0, room))
            for at, s in enumerate(due):
                place = layout.kv_lengths[s] - 1
                found = _Found(lists[at], blocks.counts[at], place, place // self.key_block)
                self._found.setdefault(layout.owners[s], {})[spec.layer] = found
        self._counts["reused"] += len(layout.owners) - len(due)
        every = [self._found[owner][spec.layer] for owner in layout.owners]
        for found, length in zip(every, layout.kv_lengths, strict=True):
            while found.newest < (length - 1) // self.key_block:
                found.newest += 1
                found.blocks.scatter_(-1, found.counts[..., None].long(), found.newest)
                found.counts = found.counts + 1
        lists, counts = torch.stack([found.blocks for found in every]), torch.stack([found.counts for found in every])
        return KeyBlocks(lists, counts, self.query_block, self.key_block)

    def _is_due(self, layer: int, layout: RaggedLayout, s: int) -> bool:
        """Whether a sequence's turn to search has come: at certain places, whoever else is in the step."""
        place, found = layout.kv_lengths[s] - 1, self._found.get(layout.owners[s], {}).get(layer)
        return found is None or not found.place <= place < (found.place // self.refresh + 1) * self.refresh

    def _part(self, layout: RaggedLayout, sequences: tuple[int, ...]) -> tuple[RaggedLayout, Tensor | slice]:
        """The layout of some sequences and their rows; made once for all layers of a step."""
        if len(sequences) == len(layout.owners):
            return layout, slice(None)
        if self._parts[0]() is not layout:
            self._parts = (ref(layout), {})
        known = self._parts[1]
        if sequences not in known:
            known[sequences] = layout.subset(sequences)
        return known[sequences]
