"""APE (arXiv 2502.05431): contexts read in parallel behind one beginning, weighed by a temperature and a scale."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstart.checkpoints.reader import Checkpoint
from headstart.engine.batch import TokenBatch
from headstart.engine.chunk_library import ChunkLibrary, LayerKeys, namespace_behind
from headstart.engine.chunk_marks import marked, no_longer_than, pattern
from headstart.engine.chunk_prefill import read_alone
from headstart.engine.request import Sequence
from headstart.engine.seams import EveryLayer, StepAttend
from headstart.errors import MethodError
from headstart.methods.prefill.ape_numbers import attend_weighed, read_numbers, search
from headstart.methods.registry import Claim, Paper, method
from headstart.models.decoder import AttentionSpec, Decoder

if TYPE_CHECKING:
    from headstart.checkpoints.tokenizer import Tokenizer
    from headstart.evaluation.method_bench_spec import MethodBench


DEMO = (0.9, 0.9)
"""Temperature and scale of the official demo."""


@dataclass(frozen=True)
class Places:
    """Where the parts of a prompt with contexts stand.

    Attributes:
        bounds: where the first context begins, and where each ends; what stands between two chunks belongs to the
            second.
        num_prompt: tokens of the prompt.
    """

    bounds: tuple[int, ...]
    num_prompt: int

    @classmethod
    def of(cls, sequence: Sequence) -> "Places | None":
        """Those of a sequence; None where it has no contexts. The prompt's last token is in none."""
        spans = sequence.request.chunks
        ends = [min(end, sequence.num_prompt - 1) for _, end in spans]
        bounds = (spans[0][0], *ends) if spans else ()
        bounds = tuple(dict.fromkeys(bounds))
        return cls(bounds, sequence.num_prompt) if len(bounds) > 1 else None

    @property
    def contexts(self) -> list[tuple[int, int]]:
        """Begin and end of each."""
        return list(pairwise(self.bounds))

    @property
    def gap(self) -> int:
        """By how much positions behind the contexts are less than places."""
        return self.bounds[-1] - self.bounds[0] - max(end - start for start, end in self.contexts)

    @property
    def length(self) -> int:
        """The prompt's length in positions."""
        return self.num_prompt - self.gap

    def rows(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and RoPE lengths of tokens behind the contexts."""
        positions = places - self.gap
        return positions, (positions + 1).clamp(min=self.length)


@method(
    "ape",
    stage="prefill",
    paper=Paper(
        "APE: Faster and Longer Context-Augmented Generation via Adaptive Parallel Encoding",
        arxiv="2502.05431",
        venue="ICLR 2025",
    ),
    exact=False,
    chunking="whole",
    needs=("text chunks that recur, and two numbers that `headstart calibrate ape` finds for a model",),
    when_not="""When contexts must be read in order or reason over each other, as in a long narrative or in
    code, or when the two numbers cannot be tuned.""",
    claim=Claim(
        "up to 4.5 times faster end to end at 128K, with 98% of the quality for RAG",
        setting="""against sequential encoding; 93% for in-context learning; prefill time 28 times shorter;
        speed on an H100 with Llama-3.1-8B, question and answer of 256 tokens""",
        source="abstract and the paper's section on efficiency",
    ),
    composes="Any scheduler that leaves prompts whole, lower tiers of the cache.",
    conflicts="""`cacheblend` (the other cure for the same problem), models with sliding windows or capped scores,
    methods that attend in another way, which do not run where there are contexts; the cache of prefixes.""",
)
class APE(EveryLayer):
    """Computes the cache of each retrieved context alone, once, and gives all contexts the same positions. Attention
    over such parallel parts is too flat and too heavy, which costs quality. Three repairs need no training: a shared
    prefix in front of every context, a softmax temperature below one on their keys, and a scale below one on their
    total weight. Stored contexts are found again, so that a request pays for its question only.

    Args:
        temperature: of the contexts' scores, above 0 and at most 1; by default that of `numbers`, or 0.9 as in the
            official demo.
        scale: of the contexts' logarithmic weight, from 0 to 1; by default as above.
        numbers: a file with both that `headstart calibrate ape MODEL FILE` made for the model.
        mark: where a request names no chunks, the regular expression of a line that begins a document; auto takes lines
            such as `Document 3:` or `<document id="7">`, and none the whole prompt but its last token.
        chunk: tokens of a chunk that nobody named; longer ones are cut (ours: 512).
    """

    def __init__(
        self,
        temperature: float | None = None,
        scale: float | None = None,
        numbers: str | None = None,
        mark: str | None = "auto",
        chunk: int = 512,
    ) -> None:
        found = DEMO if numbers is None else read_numbers(Path(numbers))
        self._numbers = tuple(
            default if given is None else given for given, default in zip((temperature, scale), found, strict=True)
        )
        if not 0 < self._numbers[0] <= 1:
            raise MethodError(f"ape: temperature must be above 0 and at most 1, not {self._numbers[0]}")
        if not 0 <= self._numbers[1] <= 1:
            raise MethodError(f"ape: scale must be from 0 to 1, not {self._numbers[1]}")
        if chunk < 1:
            raise MethodError(f"ape: chunk must be at least 1, not {chunk}")
        self.temperature, self.scale, self.numbers = temperature, scale, numbers
        self.mark, self.chunk = mark, chunk
        self._pattern = None if mark is None else pattern(mark, "ape")
        self.library = ChunkLibrary()

    plain_reuse = "ape:temperature=1,scale=1"
    """The stack that reuses keys alone, for its bench."""

    @classmethod
    def bench(cls) -> "MethodBench":
        """Time to first token and answers over documents that recur."""
        from headstart.evaluation.method_bench_spec import MethodBench, Own

        return MethodBench((), (Own("headstart.evaluation.reuse_bench"),), ("TTFT",))

    def calibrate(self, checkpoint: Checkpoint, tokens: list[int]) -> dict[str, float]:
        """Search both numbers on a text: the content of a file for `numbers`."""
        self.start(checkpoint)
        return search(checkpoint, tokens)

    def identity(self) -> str:
        """Both numbers, wherever they come from."""
        return repr(self._numbers)

    def start(self, checkpoint: Checkpoint) -> None:
        """Refuse models in which the contexts' weight means something else."""
        if any(spec.window or spec.softcap for spec in checkpoint.decoder.attention_specs):
            raise MethodError("ape: this model has sliding windows or capped scores, beside which it means nothing")

    def counters(self) -> dict[str, int]:
        """What became of contexts (`ChunkLibrary.counts`)."""
        return dict(self.library.counts)

    def chunks(self, token_ids: list[int], tokenizer: "Tokenizer | None") -> list[tuple[int, int]]:
        if self._pattern is None:
            return no_longer_than([(0, len(token_ids) - 1)], self.chunk)
        found = [] if tokenizer is None else marked(token_ids, tokenizer, self._pattern)
        return no_longer_than(found, self.chunk)

    def forward(self, decoder: Decoder, batch: TokenBatch, attend: StepAttend) -> Tensor:
        places = [Places.of(each.sequence) for each in batch.allotments]
        members = [s for s, each in enumerate(places) if each is not None]
        if not members:
            return super().forward(decoder, batch, attend)
        others = [s for s, each in enumerate(places) if each is None]
        hidden = torch.empty(
            (len(batch.logit_rows), decoder.config.hidden_size), dtype=decoder.dtype, device=batch.token_ids.device
        )
        if others:
            part, mine = batch.part(others)
            hidden[mine] = super().forward(decoder, part, attend.part(part))
        part, mine = batch.part(members)
        hidden[mine] = self._ask(decoder, part, attend.part(part), [each for each in places if each is not None])
        return hidden

    def _ask(self, decoder: Decoder, batch: TokenBatch, attend: StepAttend, places: list[Places]) -> Tensor:
        """Prompts with contexts, and the outputs that follow them → hidden states of the rows whose logits are
        wanted: what stands behind the contexts runs through the layers."""
        rows, device = [], batch.token_ids.device
        for s, (each, allotment) in enumerate(zip(places, batch.allotments, strict=True)):
            first, end = allotment.sequence.num_computed, batch.layout.kv_lengths[s]
            if first == 0:
                first = each.bounds[-1]
                self._read(decoder, allotment.sequence, each, attend, s, len(places))
            rows.append(torch.arange(first, end, device=device))
        starts = batch.layout.query_starts
        mine = torch.cat([start + each - batch.positions[start] for start, each in zip(starts, rows, strict=False)])
        x = decoder.embed(batch.token_ids[mine])
        positions, lengths = zip(*(each.rows(own) for each, own in zip(places, rows, strict=True)), strict=True)
        rotary = decoder.rope_rows(torch.cat(positions), torch.cat(lengths))
        merged = _Merged(attend, places, rows, *self._numbers)
        for kind, layer in zip(decoder.config.layer_kinds, decoder.layers, strict=True):
            x = layer(x, rotary[kind], merged)
        return decoder.norm(x.index_select(0, torch.searchsorted(mine, batch.logit_rows)))

    def _read(
        self, decoder: Decoder, sequence: Sequence, places: Places, attend: StepAttend, s: int, count: int
    ) -> None:
        """Put the keys of the beginning and of the contexts into the cache of sequence s of so many."""
        tokens, first = sequence.tokens, places.bounds[0]
        beginning = tokens[:first]
        prefix = read_alone(decoder, [beginning], length=places.length)[0] if beginning else []
        name = namespace_behind(sequence.request.chunk_namespace, beginning, decoder.reuse_salt(places.length))
        ids = [tokens[start:end] for start, end in places.contexts]
        library = self.library.within(attend.store, len(decoder.layers))
        opened = library.open(name, ids, lambda new: read_alone(decoder, new, prefix, places.length))
        device = decoder.embedding.weight.device
        none = torch.empty(0, dtype=torch.int64, device=device)
        whole = torch.arange(places.bounds[-1], device=device)
        written = attend.among([whole if at == s else none for at in range(count)], [none] * count)
        try:
            for spec in decoder.attention_specs:
                parts = [*prefix[spec.layer : spec.layer + 1], *(chunk.layer(spec.layer) for chunk in opened)]
                written.keep(spec, *(torch.cat(part) for part in zip(*parts, strict=True)))
            for chunk in set(opened):
                chunk.finish()
        finally:
            for chunk in opened:
                chunk.release()


@dataclass
class _Merged:
    """The `Attend` of rows behind contexts: over the contexts, weighed, and over all else.

    Attributes:
        rows: per sequence int64 `[R]`, the rows' places.
    """

    attend: StepAttend
    places: Seq[Places]
    rows: list[Tensor]
    temperature: float
    scale: float

    def __post_init__(self) -> None:
        contexts, others = [], []
        for places, rows in zip(self.places, self.rows, strict=True):
            every = torch.arange(int(rows[-1]) + 1, device=rows.device)
            first, end = places.bounds[0], places.bounds[-1]
            contexts.append(every[first:end])
            others.append(torch.cat((every[:first], every[end:])))
        self._contexts = self.attend.among(self.rows, contexts)
        self._others = self.attend.among(self.rows, others)

    def __call__(self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`q [T, H, D]`, `k, v [T, Hkv, D]` → `[T, H, D]`."""
        self._others.keep(spec, k, v)
        parts = [self._of(spec, s, part) for s, part in enumerate(q.split([len(rows) for rows in self.rows]))]
        return torch.cat(parts).to(q.dtype)

    def _of(self, spec: AttentionSpec, s: int, q: Tensor) -> Tensor:
        def kept(among: object) -> LayerKeys:
            return among.keys_of(spec, s), among.values_of(spec, s)  # type: ignore[attr-defined]

        parts = kept(self._contexts), kept(self._others)
        return attend_weighed(spec, q, *parts, self.rows[s], self._others.keys[s], self.temperature, self.scale)
