"""Qwen2.5-1M (arXiv 2501.15383): prompts longer than the model was trained for, read sparsely."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstart.checkpoints.reader import Checkpoint
from headstart.engine.seams import Attention, Selector
from headstart.errors import MethodError
from headstart.methods.prefill.qwen1m.chunks import DualChunkAttention, Turner, default_chunks
from headstart.methods.prefill.qwen1m.lines import KEY, Budgets, Estimate, read_budgets, refine
from headstart.methods.registry import Claim, Paper, method
from headstart.models.config import ModelConfig
from headstart.models.decoder import AttentionSpec
from headstart.ops.attention import AnySelection, RaggedLayout, paged_attention

if TYPE_CHECKING:
    from headstart.evaluation.method_bench_spec import MethodBench

_MOST = 1 << 30


@method(
    KEY,
    stage="prefill",
    paper=Paper("Qwen2.5-1M Technical Report", arxiv="2501.15383", venue="arXiv, 2025"),
    exact=False,
    chunking="per_chunk",
    when_not="""For prompts below the chunk of the positions and the sparse threshold of 32,768 tokens: nothing
    changes there.""",
    claim=Claim(
        "prefill of 1M tokens 3 to 7 times faster",
        setting="Qwen2.5-1M models against full attention; figures per model and GPU not known here",
        source="abstract",
    ),
    composes="Chunked prefill, prefix caching, paged caches, tensor parallelism, `sarathi-serve`.",
    conflicts="ALiBi, sliding windows, soft caps, RoPE that depends on the prompt's length, other selectors.",
)
class Qwen1M(Attention, Selector):
    """Reads prompts longer than the model was trained for, without training, and reads them sparsely. Dual chunk
    attention remaps relative positions so that none exceeds the trained window, and attention is sharpened as length
    grows. Of a long prompt each head reads vertical and slash lines that an estimate finds anew in every chunk; how
    many is refined per head until they hold enough of its attention. Decoding stays dense.

    Lines are as wide as a block of tokens, where the paper's vertical ones are single keys. Queries are turned, and not
    keys, so that what is cached is what the plain model caches; each is sharpened by the tokens that it sees, where the
    official code takes the prompt's length for all.

    Args:
        chunk: the largest distance between a query and a key (1M models: 262144; by default the model's length).
        local: so many queries of a chunk at least are at their true distance from the chunk before (1M models: 8192;
            by default a 32nd of `chunk`).
        budgets: a file that `headstart calibrate qwen2.5-1m` wrote for this model; without it all heads have the same.
        vertical: keys of vertical lines (official file: from 1000).
        slash: distances of slashes (official file: from 6096).
        recall: the share of its attention that the refinement wants each head to keep (paper: not known; ours: 0.95).
        sparse_from: tokens of a prompt from which it is read sparsely (official code: 32768); 0 never is.
        sink: first keys that are read whatever the estimate says (official code: 30).
        recent: nearest distances that are read whatever it says (official code: 100).
        block: tokens of a block, a multiple of the page size (paper: 64).
        stretch: so many times the model's length is the most that may be asked for (paper: 4).
    """

    slots = ("attention.prefill", "attention.decode", "selector.prefill")

    def __init__(
        self,
        chunk: int | None = None,
        local: int | None = None,
        budgets: str | None = None,
        vertical: int = 1000,
        slash: int = 6096,
        recall: float = 0.95,
        sparse_from: int = 32768,
        sink: int = 30,
        recent: int = 100,
        block: int = 64,
        stretch: int = 4,
    ) -> None:
        limits = {"chunk": (chunk, 1), "local": (local, 0), "sparse_from": (sparse_from, 0), "stretch": (stretch, 1)}
        limits |= {"vertical": (vertical, 1), "slash": (slash, 1), "sink": (sink, 0), "recent": (recent, 0)}
        limits |= {"block": (block, 1)}
        for name, (value, least) in limits.items():
            if value is not None and not least <= value <= _MOST:
                nothing = ", since 0 keeps nothing" if name in ("vertical", "slash") else ""
                raise MethodError(f"{KEY}: {name} must be {least} to {_MOST}{nothing}, not {value}")
        if not 0 < recall <= 1:
            raise MethodError(f"{KEY}: recall must be a share above 0 and up to 1, not {recall}")
        self.chunk, self.local, self.budgets, self.vertical, self.slash = chunk, local, budgets, vertical, slash
        self.recall, self.sparse_from, self.stretch = recall, sparse_from, stretch
        self.sink, self.recent, self.block = sink, recent, block
        self.estimate = Estimate(block, sink, recent)
        self._digest = ""
        self._estimates = self._short = 0

    @classmethod
    def bench(cls) -> "MethodBench":
        """Where its claim lies: time to first token over lengths, and what is still found."""
        from headstart.evaluation.method_bench_spec import MethodBench, OfflineLengths, Quality

        return MethodBench(
            (),
            (
                OfflineLengths((8192, 16384, 31000), decode_tokens=8),
                Quality(("niah_depth", "niah_multikey_1", "kv_retrieval", "bits_per_byte"), (16384,), 3),
            ),
            ("TTFT", "decode", "KV cache"),
        )

    def start(self, checkpoint: Checkpoint) -> None:
        """Settle the positions of this model and the budgets of the heads that this rank holds."""
        decoder, config = checkpoint.decoder, checkpoint.config
        if any(config.windows):
            raise MethodError(f"{KEY}: this model has sliding windows, in which no position is too far")
        if config.attention_softcap is not None:
            raise MethodError(f"{KEY}: this model caps the scores of attention, which its parts cannot share")
        rope = config.ropes["full_attention"]
        if decoder.ropes["full_attention"].length_dependent:
            raise MethodError(f"{KEY}: this model's RoPE of type {rope.kind} depends on the prompt's length already")
        self.chunks = default_chunks(config.max_position, self.block, self.chunk, self.local)
        if self.chunks.most > config.max_position:
            raise MethodError(
                f"{KEY}: chunk must be at most the {config.max_position} positions that the model was trained for, not "
                f"{self.chunk}"
            )
        if self.chunks.size < self.block:
            raise MethodError(
                f"{KEY}: a chunk of {self.chunks.most} less the local tokens holds no block of {self.block}: raise "
                "chunk or lower local"
            )
        every: Budgets = [[(self.vertical, self.slash)] * config.num_heads] * config.num_layers
        if self.budgets is not None:
            path = Path(self.budgets)
            every = read_budgets(path, config)
            self._digest = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
        own = decoder.attention_specs[0].num_heads
        first = decoder.ranks.rank * own
        self._turner = Turner(rope)
        self._budgets = [self.estimate.in_blocks(torch.tensor(heads[first : first + own])) for heads in every]

    def longest(self, config: ModelConfig) -> int:
        return self.stretch * config.max_position

    def identity(self) -> str:
        """Of the file of budgets."""
        return self._digest

    def counters(self) -> dict[str, int]:
        """Layers of a chunk for which lines were estimated, and those read whole, since the prompt was short."""
        return {"estimates": self._estimates, "dense_layers": self._short}

    def calibrate(self, checkpoint: Checkpoint, tokens: list[int]) -> dict[str, object]:
        """Refine the budgets on a text: the content of a file of budgets."""
        return refine(checkpoint, tokens, self.estimate, self.vertical, self.slash, self.recall)

    def select(self, spec: AttentionSpec, q: Tensor, keys: Tensor, layout: RaggedLayout) -> AnySelection | None:
        prompts = [owner.num_prompt for owner in layout.owners] or layout.kv_lengths
        least = self.sparse_from or _MOST + 1
        dense = {s for s, length in enumerate(prompts) if length < least}
        budgets = self._budgets[spec.layer]
        if len(dense) == len(prompts) or max(layout.kv_lengths) <= int(budgets.amax(1).min()) * self.block:
            self._short += 1
            return None
        self._estimates += 1
        return self.estimate.choose(q, keys, layout, spec.scale, budgets, self._as_estimated, dense)

    def _as_estimated(self, keys: Tensor, last: int) -> Tensor:
        """Keys turned so that one rotation of the queries meets all of them at distances that go on growing: those of
        clamped positions would break the slashes."""
        own = (last - 1) // self.chunks.size
        if not own:
            return keys
        query = torch.tensor([last - 1], device=keys.device)
        turned = keys.clone()
        for chunk in range(own):
            part = slice(chunk * self.chunks.size, (chunk + 1) * self.chunks.size)
            by = -self.chunks.turn(query, chunk, clamped=False)
            turned[part] = self._turner(keys[part], by.expand(len(keys[part])))
        return turned

    def attend(
        self,
        spec: AttentionSpec,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        layout: RaggedLayout,
        selection: AnySelection | None,
    ) -> tuple[Tensor, Tensor]:
        if self.chunks.size % layout.page_size:
            raise MethodError(
                f"{KEY}: chunks of {self.chunks.size} tokens are not made of whole pages of {layout.page_size}: set "
                f"page_size to a divisor of {self.block}"
            )
        blocks = None if selection is None else selection.key_blocks(layout)
        if max(layout.kv_lengths) <= min(self.chunks.size, self.chunks.trained):
            return paged_attention(q, keys, values, layout, scale=spec.scale, selection=blocks)
        return DualChunkAttention(self.chunks, self._turner, spec.scale).attend(q, keys, values, layout, blocks)
