"""CacheBlend (arXiv 2405.16444): stored keys of text chunks wherever they stand, and the tokens that deviate anew."""

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headstart.engine.batch import Allotment, TokenBatch
from headstart.engine.chunk_library import Chunk, ChunkLibrary
from headstart.engine.chunk_marks import marked, no_longer_than, pattern
from headstart.engine.chunk_prefill import read_alone
from headstart.engine.seams import EveryLayer, StepAttend
from headstart.errors import MethodError
from headstart.methods.registry import Claim, Paper, method
from headstart.models.config import LayerKind
from headstart.models.decoder import Decoder
from headstart.ops.rotary import RotaryRows, apply_rotary, rerotation

if TYPE_CHECKING:
    from headstart.checkpoints.tokenizer import Tokenizer
    from headstart.evaluation.method_bench_spec import MethodBench

LEAST = 0.15
"""The share of tokens that the paper computes anew at least."""


def affordable(load_seconds: float, layer_seconds: float, least: float = LEAST) -> float:
    """The share of tokens that can be computed anew while the next layer's keys are loaded: the paper's controller.

    Args:
        load_seconds: to load the keys of a layer.
        layer_seconds: to compute a layer for all tokens.
        least: the share below which quality suffers.
    """
    return max(least, min(1.0, load_seconds / max(layer_seconds, 1e-9)))


@method(
    "cacheblend",
    stage="cache",
    paper=Paper(
        "CacheBlend: Fast Large Language Model Serving for RAG with Cached Knowledge Fusion",
        arxiv="2405.16444",
        venue="EuroSys 2025",
    ),
    exact=False,
    chunking="whole",
    needs=("text chunks that recur, which requests name as `chunks` or which stand behind marks",),
    when_not="For text that does not recur, or when contexts are short.",
    claim=Claim(
        "time to first token 2.2 to 3.3 times shorter, throughput 2.8 to 5 times higher",
        setting="""against full recomputation, at a loss of at most 0.01 to 0.03 in F1 or Rouge-L; Mistral-7B,
        Yi-34B and Llama-70B on A40 GPUs, 6 chunks of 512 tokens, caches on NVMe""",
        source="abstract and paper",
    ),
    composes="Any scheduler that leaves prompts whole, lower tiers of the cache.",
    conflicts="""`ape` (the other cure for the same problem), other methods that decide how a prompt is read, the cache
    of prefixes (blended prompts are not shared, their chunks are).""",
)
class CacheBlend(EveryLayer):
    """Reuses the stored keys and values of text chunks wherever they stand in a new prompt, not only as its prefix.
    Keys are rotated to their new positions. Layer by layer the roughly 15 percent of the tokens whose values deviate
    most are then computed anew, which restores attention between chunks. Meanwhile the next layer is loaded, so that
    slower and larger storage becomes usable.

    A chunk that nobody has stored is read by itself first, and stored.

    Args:
        ratio: share of the chunks' tokens that is computed anew: 1 is a full prefill, 0 plain reuse. By default 0.15
            (the paper's), or as much more as loading the next layer leaves time for.
        gradual: how much more of them stay at first and how much fewer in the end: the share at a depth is the ratio to
            the power of 1 - gradual to 1 + gradual (ours: 0.2; the paper filters gradually and gives no number).
        mark: where a request names no chunks, the regular expression of a line that begins a document; auto takes lines
            such as `Document 3:` or `<document id="7">`, and none the whole prompt but its last token.
        chunk: tokens of a chunk that nobody named; longer ones are cut (the paper's chunks have 512).
    """

    def __init__(
        self, ratio: float | None = None, gradual: float = 0.2, mark: str | None = "auto", chunk: int = 512
    ) -> None:
        if ratio is not None and not 0 <= ratio <= 1:
            raise MethodError(f"cacheblend: ratio must be from 0 to 1, not {ratio}")
        if not 0 <= gradual < 1:
            raise MethodError(f"cacheblend: gradual must be at least 0 and below 1, not {gradual}")
        if chunk < 1:
            raise MethodError(f"cacheblend: chunk must be at least 1, not {chunk}")
        self.ratio, self.gradual, self.mark, self.chunk = ratio, gradual, mark, chunk
        self._pattern = None if mark is None else pattern(mark, "cacheblend")
        self._counts: Counter[str] = Counter()
        self.library = ChunkLibrary()

    plain_reuse = "cacheblend:ratio=0"
    """The stack that reuses keys alone, for its bench."""

    @classmethod
    def bench(cls) -> "MethodBench":
        """Time to first token and answers over documents that recur."""
        from headstart.evaluation.method_bench_spec import MethodBench, Own

        return MethodBench((), (Own("headstart.evaluation.reuse_bench"),), ("TTFT",))

    def counters(self) -> dict[str, int]:
        """What became of chunks (`ChunkLibrary.counts`), and tokens of them per layer that were computed anew."""
        return dict(self.library.counts + self._counts)

    def chunks(self, token_ids: list[int], tokenizer: "Tokenizer | None") -> list[tuple[int, int]]:
        if self._pattern is None:
            return no_longer_than([(0, len(token_ids) - 1)], self.chunk)
        found = [] if tokenizer is None else marked(token_ids, tokenizer, self._pattern)
        return no_longer_than(found, self.chunk)

    def forward(self, decoder: Decoder, batch: TokenBatch, attend: StepAttend) -> Tensor:
        mixed = [s for s, each in enumerate(batch.allotments) if _blends(each)]
        if not mixed:
            return super().forward(decoder, batch, attend)
        others = [s for s in range(len(batch.allotments)) if s not in mixed]
        hidden = torch.empty(
            (len(batch.logit_rows), decoder.config.hidden_size), dtype=decoder.dtype, device=batch.token_ids.device
        )
        if others:
            part, mine = batch.part(others)
            hidden[mine] = super().forward(decoder, part, attend.part(part))
        for s in mixed:
            part, mine = batch.part([s])
            hidden[mine] = self._blend(decoder, part, attend.part(part))
        return hidden

    def _blend(self, decoder: Decoder, batch: TokenBatch, attend: StepAttend) -> Tensor:
        """One prompt with its chunks → hidden states of the rows whose logits are wanted."""
        sequence = batch.allotments[0].sequence
        spans = sequence.request.chunks
        ids = [sequence.tokens[start:end] for start, end in spans]
        library = self.library.within(attend.store, len(decoder.layers))
        opened = library.open(sequence.request.chunk_namespace, ids, lambda new: read_alone(decoder, new))
        try:
            prompt = _Prompt(decoder, batch, attend, list(zip(spans, opened, strict=True)))
            hidden = self._layers(decoder, prompt)
            for chunk in set(opened):
                chunk.finish()
        finally:
            for chunk in opened:
                chunk.release()
        return hidden

    def _layers(self, decoder: Decoder, prompt: "_Prompt") -> Tensor:
        """The first layer for all tokens, which its keys cost anyway; from the second on those that deviate."""
        began = prompt.now()
        kinds = decoder.config.layer_kinds
        x = decoder.embed(prompt.batch.token_ids)
        x = decoder.layers[0](x, prompt.rows[kinds[0]], prompt.attend)
        first = prompt.now() - began
        rows, ratio = prompt.places, self.ratio
        for index in range(1, len(kinds)):
            layer: Any = decoder.layers[index]
            attention = layer.attention
            rotary = prompt.rotary(kinds[index], rows)
            projected = attention.qkv(layer.attention_norm(x))
            size = attention.spec.num_heads * attention.spec.head_dim
            k, v = attention.keys_values(projected[:, size:], rotary)
            stored = prompt.place(attention.spec, kinds[index])
            if ratio is None:
                ratio = affordable(self.library.layer_seconds, first) if prompt.loads else LEAST
            kept = prompt.deviating(rows, v, stored, self._count(ratio, index, len(kinds), prompt))
            self._counts["tokens recomputed"] += len(rows)
            self._counts["tokens of chunks"] += len(prompt.places)
            prompt.among(rows).keep(attention.spec, k, v)
            rows, x = rows[kept], x[kept]
            q = attention.queries(projected[kept, :size], RotaryRows(*(part[kept] for part in rotary)))
            out = attention.output(prompt.among(rows).attend(attention.spec, q).reshape(len(x), -1))
            x = x + layer.attention_post_norm(out)
            x = x + layer.mlp_post_norm(layer.mlp(layer.mlp_norm(x)))
        return decoder.norm(x.index_select(0, torch.searchsorted(rows, prompt.batch.logit_rows)))

    def _count(self, ratio: float, index: int, layers: int, prompt: "_Prompt") -> int:
        """So many tokens of chunks go through this layer."""
        depth = (index - 1) / (layers - 2) if layers > 2 else 0.5
        return int(ratio ** (1 + self.gradual * (2 * depth - 1)) * prompt.num_stored)


def _blends(allotment: Allotment) -> bool:
    """Whether a sequence begins here, with chunks."""
    sequence = allotment.sequence
    return bool(sequence.request.chunks) and sequence.num_computed == 0


@dataclass
class _Prompt:
    """A prompt of T tokens and the chunks in it, C tokens together.

    Attributes:
        places: int64 `[T]`, of all tokens.
        stored: int64 `[C]`, of those in chunks.
        always: bool `[T]`, tokens that every layer computes: those outside of chunks, and whose logits are wanted.
        num_stored: tokens of chunks that need not be computed.
        moves: what rotates the chunks' keys to their places, by kind of layer.
    """

    decoder: Decoder
    batch: TokenBatch
    attend: StepAttend
    chunks: list[tuple[tuple[int, int], Chunk]]

    def __post_init__(self) -> None:
        batch, device = self.batch, self.batch.token_ids.device
        self.places = torch.arange(len(batch.token_ids), device=device)
        self.stored = torch.cat([self.places[start:end] for (start, end), _ in self.chunks])
        self.always = torch.ones(len(self.places), dtype=torch.bool, device=device)
        self.always[self.stored] = False
        self.always[batch.logit_rows] = True
        self.num_stored = int((~self.always).sum())
        self.rows = self.decoder.rope_rows(batch.positions, batch.lengths)
        counts = [end - start for (start, end), _ in self.chunks]
        own = torch.cat([self.places[:count] for count in counts])
        lengths = torch.cat([torch.full((count,), count, device=device) for count in counts])
        new = batch.positions[self.stored], batch.lengths[self.stored]
        self.moves = {kind: rerotation(rope(own, lengths), rope(*new)) for kind, rope in self.decoder.ropes.items()}
        self.loads = any(chunk.loads for _, chunk in self.chunks)

    def now(self) -> float:
        """Seconds of a clock; what a GPU still computes counts where it matters."""
        if self.loads and self.places.is_cuda:
            torch.cuda.synchronize(self.places.device)
        return time.perf_counter()

    def rotary(self, kind: LayerKind, rows: Tensor) -> RotaryRows:
        """What rotates the tokens at these places."""
        return RotaryRows(*(part[rows] for part in self.rows[kind]))

    def among(self, rows: Tensor) -> Any:
        """Attention of tokens at these places over all that stand before each."""
        return self.attend.among([rows], [self.places])

    def place(self, spec: Any, kind: LayerKind) -> Tensor:
        """Write a layer's stored keys where the chunks stand; its stored values `[C, Hkv, D]`."""
        found = [chunk.layer(spec.layer) for _, chunk in self.chunks]
        keys, values = (torch.cat(part) for part in zip(*found, strict=True))
        self.among(self.stored).keep(spec, apply_rotary(keys, self.moves[kind]), values)
        return values

    def deviating(self, rows: Tensor, v: Tensor, stored: Tensor, count: int) -> Tensor:
        """Which of these rows go on, ascending: those that always do, and so many whose new values `v [R, Hkv, D]`
        are farthest from the stored ones `[C, Hkv, D]`."""
        mine = ~self.always[rows]
        where = torch.searchsorted(self.stored, rows[mine])
        apart = (v[mine].float() - stored[where].float()).square().sum((1, 2))
        chosen = mine.nonzero()[:, 0][apart.topk(min(count, len(apart))).indices]
        return torch.cat(((~mine).nonzero()[:, 0], chosen)).sort().values
