"""MInference's selector: an estimate from the last queries says what each head of a prompt looks at."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstart.checkpoints.reader import Checkpoint
from headstart.engine.seams import Selector
from headstart.errors import MethodError
from headstart.methods.prefill.minference.index import Estimate
from headstart.methods.prefill.minference.patterns import KINDS, LayerPatterns, Pattern, read_patterns
from headstart.methods.registry import Claim, Paper, method
from headstart.models.decoder import AttentionSpec
from headstart.ops.attention import AnySelection, RaggedLayout

if TYPE_CHECKING:
    from headstart.evaluation.method_bench_spec import MethodBench


@method(
    "minference",
    stage="prefill",
    paper=Paper(
        "MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse Attention",
        arxiv="2407.02490",
        venue="NeurIPS 2024 (spotlight)",
    ),
    exact=False,
    chunking="per_chunk",
    min_context=8192,
    when_not="""For prompts below some tens of thousands of tokens, where finding the places costs more than it
    saves; for decode, which stays dense; and when later turns ask something else, since the estimate is made
    from the last queries of each chunk.""",
    claim=Claim(
        "prefill of 1M tokens 9.9 times faster: 179 s instead of 1766 s",
        setting="""Llama-3-8B-Instruct, bf16, one A100 80GB, against FlashAttention-2; 1.8 times faster at 100K,
        and 2.8 times slower at 10K""",
        source="the authors' latency table",
    ),
    composes="""Chunked prefill, where every chunk estimates anew (`qwen2.5-1m`), prefix caching, tensor parallelism,
    `lserve`'s retrieval heads.""",
    conflicts="`hip` and `zipvl` on the same layers.",
)
class MInference(Selector):
    """Attention over a long prompt is sparse, and the shape of the sparsity is stable per head while its exact places
    change with the prompt. An offline search gives each head one of three patterns: first and recent tokens (A-shape),
    vertical and slash lines, or blocks. At run time a small estimate finds the places for this prompt. A sparse kernel
    then computes only those, which shortens the time to the first token.

    Layers with a sliding window are left alone.

    Args:
        pattern: a file that `headstart calibrate minference` wrote for this model; or one pattern for all heads
            without any search: vertical-slash (auto says the same), a-shape or block-sparse.
        vertical: without a file, single keys that a head looks at, or first keys of an a-shape (official code: 1000).
        slash: without a file, diagonals, or recent keys of an a-shape (official code: 6096).
        blocks: without a file, blocks of keys for each block of queries (paper: 100).
        rows: last queries that the estimate is made from (paper: 64).
        sink: first keys that are among the single keys, whatever the estimate says (official code: 30).
        recent: nearest distances that are among the diagonals, whatever it says (official code: 100).
        block: rows and keys of a block, and width of a diagonal (paper: 64).
        min_context: tokens of context below which attention is dense; by default what the card says.
    """

    slots = ("selector.prefill",)

    def __init__(
        self,
        pattern: str = "auto",
        vertical: int = 1000,
        slash: int = 6096,
        blocks: int = 100,
        rows: int = 64,
        sink: int = 30,
        recent: int = 100,
        block: int = 64,
        min_context: int | None = None,
    ) -> None:
        for name, value in (("vertical", vertical), ("slash", slash), ("blocks", blocks), ("recent", recent)):
            if not 1 <= value < 2**31:
                raise MethodError(f"minference: {name} must be from 1, since 0 keeps nothing, to 2**31, not {value}")
        if not 1 <= rows <= 128:
            raise MethodError(f"minference: rows must be from 1 to 128, not {rows}")
        if not 0 <= sink < 2**31:
            raise MethodError(f"minference: sink must be 0 or above, not {sink}")
        if block < 1 or block > 1024:
            raise MethodError(f"minference: block must be from 1 to 1024, not {block}")
        if min_context is not None and min_context < 0:
            raise MethodError(f"minference: min_context must be 0 or above, not {min_context}")
        self.pattern, self.vertical, self.slash, self.blocks = pattern, vertical, slash, blocks
        self.rows, self.sink, self.recent, self.block, self.min_context = rows, sink, recent, block, min_context
        self.estimate = Estimate(rows, sink, recent, block)
        self._layers: list[LayerPatterns] = []
        self._content = ""
        self._estimates = self._scored = 0

    @classmethod
    def bench(cls) -> "MethodBench":
        """Where its claim lies: time to first token of long prompts, and what is still found in them."""
        from headstart.evaluation.method_bench_spec import MethodBench, OfflineLengths, Quality

        lengths = OfflineLengths((4096, 8192, 16384), decode_tokens=8)
        quality = Quality(("niah_depth", "niah_multikey_1", "kv_retrieval"), (8192,), 4)
        return MethodBench((), (lengths, quality), ("TTFT", "decode", "KV cache"))

    def start(self, checkpoint: Checkpoint) -> None:
        """Settle the pattern of each head that this rank holds."""
        decoder, config = checkpoint.decoder, checkpoint.config
        if self.pattern in ("auto", *KINDS):
            every = [[self._one()] * config.num_heads] * config.num_layers
        else:
            path = Path(self.pattern)
            every = read_patterns(path, config)
            self._content = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        own = decoder.attention_specs[0].num_heads
        first = decoder.ranks.rank * own
        device = decoder.embedding.weight.device
        self._layers = [LayerPatterns(heads[first : first + own], device) for heads in every]

    def identity(self) -> str:
        return self._content

    def counters(self) -> dict[str, int]:
        """Layers of a chunk that were estimated, and query-key pairs that this took, over all heads."""
        return {"estimates": self._estimates, "estimated_pairs": self._scored}

    def select(self, spec: AttentionSpec, q: Tensor, keys: Tensor, layout: RaggedLayout) -> AnySelection | None:
        patterns, longest = self._layers[spec.layer], max(layout.kv_lengths)
        if (spec.window is not None and spec.window < longest) or patterns.keeps_all(longest, self.block):
            return None
        self._estimates += 1
        shapes = zip(layout.query_lengths, layout.kv_lengths, strict=True)
        self._scored += spec.num_heads * sum(min(queries, self.rows) * length for queries, length in shapes)
        return self.estimate.key_blocks(patterns, q, keys, layout, spec.scale)

    def _one(self) -> Pattern:
        """The pattern of every head, where no file says them."""
        if self.pattern == "block-sparse":
            return Pattern("block-sparse", 0, self.blocks)
        return Pattern("a-shape" if self.pattern == "a-shape" else "vertical-slash", self.vertical, self.slash)

    def calibrate(self, checkpoint: Checkpoint, tokens: list[int]) -> dict[str, object]:
        """Search each head's pattern on a text: the content of a pattern file."""
        from headstart.methods.prefill.minference.search import search

        return search(checkpoint, torch.tensor(tokens), self.estimate)
