"""LongGen (arXiv 2410.01485): two thirds of the layers keep a few blocks of a long context, the middle third all."""

from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from headstart.checkpoints.reader import Checkpoint
from headstart.engine.seams import KVLayout, LayerKV
from headstart.errors import MethodError
from headstart.methods.adapt.longgen.form import KEY, Form, middle
from headstart.methods.registry import Claim, Paper, method
from headstart.models.decoder import AttentionSpec

if TYPE_CHECKING:
    from headstart.evaluation.method_bench_spec import MethodBench


@method(
    KEY,
    stage="adapt",
    paper=Paper(
        "A Little Goes a Long Way: Efficient Long Context Training and Inference with Partial Contexts",
        arxiv="2410.01485",
        venue="ICLR 2025",
    ),
    exact=False,
    needs=("a checkpoint converted by `longgen-convert`",),
    when_not="""As a switch on a finished model: without the training (5 billion tokens in the paper) quality is
    lost.""",
    claim=Claim(
        "at 128K: KV cache down 62%, prefill 1.67 and decode 1.41 times faster",
        setting="""Llama-2 7B and 70B extended from 4K to 128K with 5B tokens, against full-attention models
        extended alike; training 1.55 times faster""",
        source="abstract",
    ),
    composes="Chunked prefill, prefix caching, tensor parallelism, any scheduler, methods of attention.",
    conflicts="""Methods that drop keys by themselves, lower tiers of the cache, ALiBi-like positions, models with
    sliding windows.""",
)
class LongGen(KVLayout):
    """Lets two thirds of the layers see few blocks of a long context: the first ones, the nearest ones, and every
    so-manieth one. The middle third keeps full attention, and with it direct access to every token. What the sparse
    layers can never see again is not kept: their pages are freed while the prompt is still read. A short training turns
    a model into such a one and stretches its context in one go.

    Args:
        untrained: cut a model that was not trained for it, as a control; it loses quality.
        block: tokens of a block, a multiple of the page size (paper: not known; ours: 64). A converted checkpoint
            says it itself, and what follows too.
        sink: first blocks that are seen (ours: 1).
        local: nearest blocks that are seen, the query's own among them (ours: 16).
        stride: every so-manieth block is seen from everywhere, 0 is none (paper: about 1 in 64; ours: 64). All heads
            see the same ones, since the heads of a group share what is kept.
        full: layers in the middle that see everything (paper: a third of them).
    """

    splits = True
    movable = False

    def __init__(
        self,
        untrained: bool = False,
        block: int | None = None,
        sink: int | None = None,
        local: int | None = None,
        stride: int | None = None,
        full: int | None = None,
    ) -> None:
        self.untrained, self.block, self.sink = untrained, block, sink
        self.local, self.stride, self.full = local, stride, full

    @classmethod
    def bench(cls) -> "MethodBench":
        """Memory and decode over lengths, beside what is still found: the converted model beside the one that it was
        made of. Of another model, `untrained=true` measures the form alone."""
        from headstart.evaluation.method_bench_spec import MethodBench, OfflineLengths, Quality

        return MethodBench(
            (),
            (
                OfflineLengths((4096, 8192, 16384), decode_tokens=16),
                Quality(("niah_multikey_1", "kv_retrieval", "bits_per_byte"), (8192,), 4),
            ),
            ("KV cache", "decode", "TTFT"),
            trained="headstart-longgen",
        )

    def start(self, checkpoint: Checkpoint) -> None:
        """Find out the form."""
        config, own = checkpoint.config, Form.of(checkpoint.config.raw)
        asked = {name: getattr(self, name) for name in ("block", "sink", "local", "stride", "full")}
        given = {name: value for name, value in asked.items() if value is not None}
        if own is not None:
            differs = next((name for name, value in given.items() if value != getattr(own, name)), None)
            if differs is not None:
                raise MethodError(
                    f"{KEY}: {checkpoint.name} was converted with {differs}={getattr(own, differs)}, not "
                    f"{given[differs]}: leave out {differs}"
                )
            self._form = own
        elif not self.untrained:
            raise MethodError(
                f"{KEY}: {checkpoint.name} was not converted: make a model with `headstart train "
                f"recipes/headstart-longgen/train.yaml`, or cut this one as a control by {KEY}:untrained=true"
            )
        else:
            self._form = Form(**{"block": 64, "sink": 1, "local": 16, "stride": 64, "full": middle(config)} | given)
        self._form.check(config)
        self._sparse = set(self._form.sparse(config))

    def layers(self, specs: Seq[AttentionSpec], dtype: torch.dtype) -> list[LayerKV]:
        kept = [LayerKV(spec.num_kv_heads, spec.head_dim, dtype) for spec in specs]
        for layer in self._sparse:
            heads = tuple(range(kept[layer].num_kv_heads))
            kept[layer] = replace(kept[layer], bounded=heads, reach=self._form.reach)
        return kept
