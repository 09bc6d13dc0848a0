"""FlashAttention (arXiv 2205.14135): exact attention tile by tile, by the project's own Triton kernel."""

from torch import Tensor

from headstart.engine.seams import Attention
from headstart.errors import MethodError
from headstart.evaluation.method_bench_spec import MethodBench, OfflineLengths, Quality
from headstart.methods.registry import Claim, Paper, method
from headstart.models.decoder import AttentionSpec
from headstart.ops.attention import AnySelection, RaggedLayout, paged_attention
from headstart.ops.attention.tiled import Tiling, attend_tiled


@method(
    "flashattention",
    stage="prefill",
    paper=Paper(
        "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness",
        arxiv="2205.14135",
        venue="NeurIPS 2022",
    ),
    needs=("a GPU with Triton, for speed",),
    claim=Claim(
        "training of GPT-2 up to 3 times faster, BERT-large 15% faster",
        setting="""end to end: GPT-2 at 1K against HuggingFace, BERT-large at 512 against the MLPerf 1.1 record;
        Long Range Arena at 1K to 4K 2.4 times""",
        source="abstract",
    ),
    when_not="""Without a GPU, where the plain engine attends in tiles already; and beside cuDNN, whose kernel the
    plain engine takes for long chunks where it is faster.""",
    composes="Every method that needs the log-sum-exp of its parts: `hydragen`, `ape`, `qwen2.5-1m`.",
    conflicts="Methods that read the full matrix of scores.",
)
class FlashAttention(Attention):
    """Computes exact attention tile by tile with an online softmax, so that the matrix of all scores never reaches
    main memory. Extra memory grows linearly with length, and traffic to slow memory falls. Pages that a selector leaves
    out are skipped, which is the paper's block-sparse variant. Training takes the same algorithm, backward pass
    included, under HEADSTART_ATTENTION=triton.

    Args:
        rows: query rows of a tile where there is no GPU (ours: 128); on one, tiles are as measured on an H100.
        keys: keys of such a tile (ours: 256).
    """

    capturable = True

    def __init__(self, rows: int = 128, keys: int = 256) -> None:
        if min(rows, keys) < 1 or max(rows, keys) > 1024:
            raise MethodError(f"flashattention: rows and keys must be from 1 to 1024, not {rows} and {keys}")
        self.rows, self.keys = rows, keys

    @classmethod
    def bench(cls) -> MethodBench:
        """Beside the plain engine, which takes the fastest kernel that it knows."""
        return MethodBench((), (OfflineLengths(), Quality(tasks=())), ("TTFT", "decode", "KV cache"), needs_gpu=True)

    def attend(
        self,
        spec: AttentionSpec,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        layout: RaggedLayout,
        selection: AnySelection | None,
    ) -> tuple[Tensor, Tensor]:
        rule = {"scale": spec.scale, "window": spec.window, "softcap": spec.softcap, "selection": selection}
        if q.is_cuda:
            return paged_attention(q, keys, values, layout, **rule, path="triton")
        return attend_tiled(q, keys, values, layout, **rule, tiling=Tiling(self.rows, self.keys, self.rows))
