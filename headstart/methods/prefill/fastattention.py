"""FastAttention (arXiv 2410.16663): two levels of tiles, and one small mask from which all others are cut."""

from collections.abc import Sequence as Seq
from dataclasses import replace

import torch
from torch import Tensor

from headstart.engine.seams import Attention, FullLayout, LayerKV
from headstart.errors import MethodError
from headstart.evaluation.method_bench_spec import MethodBench, OfflineLengths, Quality
from headstart.methods.registry import Claim, Paper, method
from headstart.models.decoder import AttentionSpec
from headstart.ops.attention import AnySelection, RaggedLayout, paged_attention
from headstart.ops.attention.host import attend_host_pages
from headstart.ops.attention.shape import Shape
from headstart.ops.attention.tiled import Tiling, attend_tiled


@method(
    "fastattention",
    stage="prefill",
    paper=Paper(
        "FastAttention: Extend FlashAttention2 to NPUs and Low-resource GPUs",
        arxiv="2410.16663",
        venue="arXiv, 2024",
    ),
    needs=("a GPU with Triton, for speed",),
    claim=Claim(
        "attention 10.7 times faster on Ascend NPUs, 1.43 times over xformers on Volta",
        setting="""single operator, against standard attention on the NPU, where Llama-7B reaches up to 5.16
        times the throughput; Pangu-38B 1.46 times end to end, 256K tokens on 8 V100; lengths not known here""",
        source="abstract",
    ),
    when_not="For its kernels alone on recent GPUs, where tuned flash kernels leave nothing to gain.",
    composes="KV quantisation, paged caches.",
    conflicts="Another way to attend, such as `flashattention`.",
)
class FastAttention(Attention, FullLayout):
    """Brings the ideas of FlashAttention-2 to hardware that its kernels leave out. Large tiles feed the matrix unit,
    and their rows go through the softmax in slices that suit the vector unit. On a GPU the large tiles are the
    kernel's, and the next tile's scores are multiplied while a tile's softmax is under way. One small triangle
    generates the causal mask of every tile, so that no mask grows with the length.

    Args:
        rows: query rows of a large tile, on a GPU a power of two from 16 to 256 (the paper's is not known; ours: 128).
        keys: keys of a large tile, on a GPU a power of two from 16 to 256 (as above).
        slices: rows of a slice where there is no GPU (as above; ours: 32).
        overlap: multiply and exponentiate at once on a GPU.
        host_layers: the last so many layers keep their cache in the host's memory, which makes room for longer
            contexts on the device: decodes attend to them on the processor, and only queries and outputs travel;
            chunks of prompts bring the keys to the device (the paper's cooperation of CPU and GPU).
    """

    slots = Attention.slots
    # Each rank's heads and layers are its own.
    splits = True

    def __init__(
        self, rows: int = 128, keys: int = 128, slices: int = 32, overlap: bool = True, host_layers: int = 0
    ) -> None:
        if min(rows, keys, slices) < 1 or max(rows, keys, slices) > 1024:
            raise MethodError(
                f"fastattention: rows, keys and slices must be from 1 to 1024, not {rows}, {keys} and {slices}"
            )
        if host_layers < 0:
            raise MethodError(f"fastattention: host_layers must be at least 0, not {host_layers}")
        self.rows, self.keys, self.slices, self.overlap = rows, keys, slices, overlap
        self.host_layers = host_layers
        # No step is the device's alone where layers live on the host.
        self.capturable = not host_layers
        if host_layers:
            self.slots = (*Attention.slots, "kv_layout")

    def layers(self, specs: Seq[AttentionSpec], dtype: torch.dtype) -> list[LayerKV]:
        if self.host_layers > len(specs):
            raise MethodError(f"fastattention: host_layers must be at most the model's {len(specs)} layers")
        kept, first = super().layers(specs, dtype), len(specs) - self.host_layers
        return [replace(layer, on_host=number >= first) for number, layer in enumerate(kept)]

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
        if not q.is_cuda:
            return attend_tiled(q, keys, values, layout, **rule, tiling=Tiling(self.rows, self.keys, self.slices))
        if any(size not in (16, 32, 64, 128, 256) for size in (self.rows, self.keys)):
            raise MethodError(
                f"fastattention: on a GPU a tile has a power of two from 16 to 256 rows and keys, not {self.rows} "
                f"and {self.keys}"
            )
        if not keys.is_cuda:
            if selection is not None:
                raise MethodError("fastattention: a selector needs the keys on the device; leave out host_layers")
            del rule["selection"]
            return attend_host_pages(q, keys, values, layout, **rule, shape=self._shape(q))
        return paged_attention(q, keys, values, layout, **rule, path="triton", shape=self._shape(q))

    def _shape(self, q: Tensor) -> Shape | None:
        """The kernel's, with fewer keys for wide heads, whose tiles would not fit; its usual one in float32."""
        if q.dtype.itemsize > 2:
            return None
        keys = self.keys if q.shape[2] <= 128 else min(self.keys, 32)
        warps = 8 if self.rows >= 128 else 4
        return Shape(self.rows, keys, warps, stages=2, tensor_maps=True, behind=self.overlap)
