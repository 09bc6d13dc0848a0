"""LServe (arXiv 2502.14866): some heads keep little, the others read little, in prefill and decode alike."""

import hashlib
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from headstart.checkpoints.default import default_checkpoint_path
from headstart.checkpoints.reader import Checkpoint
from headstart.engine.seams import KVLayout, LayerKV, Selector
from headstart.errors import MethodError
from headstart.methods.cache.lserve.heads import calibrate, read_scores, streaming_heads
from headstart.methods.cache.lserve.pages import PageSelector
from headstart.methods.registry import Claim, Paper, method
from headstart.models.decoder import AttentionSpec
from headstart.ops.attention import AnySelection, RaggedLayout
from headstart.ops.attention.reach import Reach

if TYPE_CHECKING:
    from headstart.evaluation.method_bench_spec import MethodBench

_DEFAULT_HEADS = Path(__file__).parent / "headstart-base.json"
_MOST = 1 << 30


@method(
    "lserve",
    stage="cache",
    paper=Paper(
        "LServe: Efficient Long-sequence LLM Serving with Unified Sparse Attention",
        arxiv="2502.14866",
        venue="MLSys 2025",
    ),
    exact=False,
    needs=("a file that tells streaming from retrieval heads, found by `headstart calibrate lserve`",),
    when_not="""For contexts below the page budget of 4,096 tokens, where the retrieval heads read everything anyway and
    what streaming heads lose buys little.""",
    claim=Claim(
        "prefill up to 2.9 times and decode 1.3 to 2.1 times faster than vLLM",
        setting="""at equal accuracy; Llama-3-8B, Llama-2-7B and Minitron-4B on A100 80GB and L40S with W8A8KV8
        or W4A8KV4 quantisation; tables per length not at hand""",
        source="abstract and official README",
    ),
    composes="Chunked prefill, prefix caching, tensor parallelism, quantised weights, any scheduler.",
    conflicts="""Methods that delete pages of retrieval heads, other selectors, lower tiers of the cache, models with
    sliding windows.""",
)
class LServe(Selector, KVLayout):
    """Makes prefill and decode attention sparse in one system. Half of the key-value heads become streaming heads,
    which see and store only the first and the most recent tokens. The other heads read a constant budget of cache pages
    per decode step, chosen by a cheap upper bound on the scores of a page and kept for a few steps. Keys and values can
    be kept in eight bits besides.

    Args:
        heads: a file that `headstart calibrate lserve` wrote for this model; the built-in model needs none.
        streaming: the share of all KV heads that stream, those that lose least (paper: 0.5); 0 needs no file.
        sink: first tokens that streaming heads see, in whole blocks (official code: 128).
        recent: tokens before a query's block that they see, in whole blocks (official code: 256 in decode; where its
            prefill sees 8192, ours keeps to the same, so that no result depends on where a prompt was cut).
        budget: tokens that a query head of a retrieval head reads in decode (official code: 4096).
        block: tokens that are read together: a physical page of the paper (official code: 64).
        logical: tokens whose least and greatest keys are one bound, a logical page of the paper (official code: 16).
        interval: steps that a choice serves (official code: 4).
        kv: "fp8_e4m3" keeps keys and values in eight bits; "auto" in the run's dtype (the paper's 8 and 4 bits are
            integers).
    """

    slots = ("selector.prefill", "selector.decode", "kv_layout")
    splits = True
    movable = False

    def __init__(
        self,
        heads: str | None = None,
        streaming: float = 0.5,
        sink: int = 128,
        recent: int = 256,
        budget: int = 4096,
        block: int = 64,
        logical: int = 16,
        interval: int = 4,
        kv: Literal["auto", "fp8_e4m3"] = "auto",
    ) -> None:
        if not 0 <= streaming <= 1:
            raise MethodError(f"lserve: streaming must be a share from 0 to 1, not {streaming}")
        for name, value, least in (
            ("sink", sink, 0),
            ("recent", recent, 0),
            ("block", block, 1),
            ("logical", logical, 1),
        ):
            if not least <= value <= _MOST:
                raise MethodError(f"lserve: {name} must be {least} to {_MOST}, not {value}")
        if block % logical:
            raise MethodError(f"lserve: a block of {block} tokens must be made of whole runs of {logical} (logical)")
        if not 2 * block <= budget <= _MOST:
            raise MethodError(
                f"lserve: budget must be at least {2 * block}, since the newest block of {block} tokens alone keeps "
                f"nothing of what came before, and at most {_MOST}, not {budget}"
            )
        if not 1 <= interval <= block:
            raise MethodError(f"lserve: interval must be 1 to {block}, the tokens of a block, not {interval}")
        self.heads, self.streaming, self.sink, self.recent = heads, streaming, sink, recent
        self.budget, self.block, self.logical, self.interval, self.kv = budget, block, logical, interval, kv
        self._digest = ""
        self._pages: dict[int, PageSelector] = {}

    @classmethod
    def bench(cls) -> "MethodBench":
        """Where its claim lies: decode over lengths, and what is still found."""
        from headstart.evaluation.method_bench_spec import MethodBench, OfflineLengths, Quality

        return MethodBench(
            (),
            (
                OfflineLengths((4096, 8192, 16384), decode_tokens=16),
                Quality(("niah_depth", "niah_multikey_1", "kv_retrieval", "bits_per_byte"), (8192,), 4),
            ),
            ("decode", "TTFT", "KV cache"),
        )

    @property
    def reach(self) -> Reach:
        """What a streaming head sees."""
        return Reach(self.block, -(-self.sink // self.block), -(-self.recent // self.block) + 1)

    def start(self, checkpoint: Checkpoint) -> None:
        """Settle the class of each head that this rank holds."""
        decoder, config = checkpoint.decoder, checkpoint.config
        own = decoder.attention_specs[0].num_kv_heads
        first = decoder.ranks.rank * own
        every: list[tuple[int, ...]] = [()] * config.num_layers
        if self.streaming:
            if any(config.windows):
                raise MethodError(
                    "lserve: this model has sliding windows already, which streaming heads cannot stand beside"
                )
            path = self._file(checkpoint)
            every = streaming_heads(read_scores(path, config), self.streaming)
            self._digest = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
        self._streams = [tuple(head - first for head in heads if first <= head < first + own) for heads in every]
        self._pages = {
            layer: PageSelector(self.logical, self.block, self.budget, self.interval)
            for layer in range(config.num_layers)
        }

    def _file(self, checkpoint: Checkpoint) -> Path:
        """Where the classes of the heads stand."""
        if self.heads is not None:
            return Path(self.heads)
        if checkpoint.path == default_checkpoint_path():
            return _DEFAULT_HEADS
        raise MethodError(
            f"lserve: which heads of {checkpoint.name} may stream is not known: `headstart calibrate lserve MODEL "
            "FILE` finds out, and heads=FILE names it"
        )

    def calibrate(self, checkpoint: Checkpoint, tokens: list[int]) -> dict[str, object]:
        """What each KV head loses by streaming on a text: the content of a file of heads."""
        return calibrate(checkpoint, tokens, self.reach)

    def identity(self) -> str:
        """Of the file of heads."""
        return self._digest

    def counters(self) -> dict[str, int]:
        """Choices of pages, of all layers, and how often one of an earlier step served again."""
        chosen = sum(each.chosen for each in self._pages.values())
        return {"choices": chosen, "choices_reused": sum(each.reused for each in self._pages.values())}

    def layers(self, specs: Seq[AttentionSpec], dtype: torch.dtype) -> list[LayerKV]:
        kept = torch.float8_e4m3fn if self.kv == "fp8_e4m3" else dtype
        every = [LayerKV(spec.num_kv_heads, spec.head_dim, kept) for spec in specs]
        if not self.streaming:
            return every
        return [
            replace(each, bounded=heads, reach=self.reach) for each, heads in zip(every, self._streams, strict=True)
        ]

    def select(self, spec: AttentionSpec, q: Tensor, keys: Tensor, layout: RaggedLayout) -> AnySelection | None:
        if self.block % layout.page_size:
            raise MethodError(
                f"lserve: blocks of {self.block} tokens are not made of whole pages of {layout.page_size}: set "
                f"page_size to a divisor of {self.block}"
            )
        pages = self._pages[spec.layer]
        pages.bounds.update(keys, layout, q.dtype)
        if spec.window is not None or not all(owner.decoding for owner in layout.owners):
            return None
        return pages.decode(q, layout)
