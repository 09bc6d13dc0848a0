"""SwiftKV (arXiv 2410.03960): prompt tokens leave the network early, and later layers take their keys from there."""

import hashlib
from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headstart.checkpoints.default import default_checkpoint_path, embedded_checkpoints
from headstart.checkpoints.hub import resolve
from headstart.checkpoints.reader import Checkpoint, load_weights
from headstart.engine.batch import TokenBatch
from headstart.engine.seams import KVLayout, LastAttend, LayerKV, Prefill, StepAttend
from headstart.errors import MethodError
from headstart.methods.distil.swiftkv.form import KEY, Form, Projection, projection_parameters, untrained
from headstart.methods.registry import Claim, Paper, method
from headstart.models.config import LayerKind
from headstart.models.decoder import AttentionSpec, Decoder
from headstart.models.layers import Linear
from headstart.ops.rotary import RotaryRows

if TYPE_CHECKING:
    from headstart.evaluation.method_bench_spec import MethodBench

UNTRAINED = "untrained"
"""The value of `weights` that asks for no distilled ones."""


@method(
    KEY,
    stage="distil",
    paper=Paper(
        "SwiftKV: Fast Prefill-Optimized Inference with Knowledge-Preserving Model Transformation",
        arxiv="2410.03960",
        venue="arXiv, 2024",
    ),
    exact=False,
    needs=("projections distilled for it by `swiftkv-distil`",),
    when_not="""When answers are long beside their prompts, since decoding itself gets no cheaper. Small or already
    distilled models lose more, and scores that need the logits of every prompt token cannot use the skip.""",
    claim=Claim(
        "prefill compute down 50%, KV memory down 62.5%, up to 2 times the throughput",
        setting="""Llama-3.1-8B and 70B with little loss of quality; 16K tokens/s for the 70B model in 16 bits
        on 4 H100; lengths of that run not known here""",
        source="abstract",
    ),
    composes="Chunked prefill, prefix caching, speculative decoding, any scheduler, methods of attention.",
    conflicts="""Pruning by prompt attention in late layers; adapters trained on the original later projections.""",
)
class SwiftKV(Prefill, KVLayout):
    """Lets prompt tokens leave the network early. All layers after a chosen one take their keys and values from the
    hidden state that enters it, so that a prompt token skips the rest of them, and decoding follows the same rule.
    Neighbouring layers of the later part may share one cache, which saves memory. A short distillation that trains only
    the later query, key and value projections repairs quality.

    Args:
        weights: a checkpoint whose later projections were distilled for this model, of which nothing else is read; by
            default those of the model itself, or for the built-in model those that come with it. `untrained` cuts any
            model at `depth` with the projections that it has, which costs quality.
        depth: how many layers stay ordinary; distilled weights say it themselves.
        group: so many neighbours of the later layers share one cache (AcrossKV); distilled weights say it themselves,
            untrained ones are shared by 1.
    """

    slots = ("prefill", "kv_layout")

    def __init__(self, weights: str | None = None, depth: int | None = None, group: int | None = None) -> None:
        self.weights, self.depth, self.group = weights, depth, group
        self._counts: Counter[str] = Counter()
        self._digest = ""

    @classmethod
    def bench(cls) -> "MethodBench":
        """Time to first token over lengths, what is still found, and what prose costs."""
        from headstart.evaluation.method_bench_spec import MethodBench, OfflineLengths, Quality

        return MethodBench(
            (),
            (
                OfflineLengths((1024, 4096, 8192), decode_tokens=16),
                Quality(("niah_multikey_1", "niah_multivalue", "kv_retrieval", "bits_per_byte"), (4096,), 4),
            ),
            ("TTFT", "decode", "KV cache"),
        )

    def start(self, checkpoint: Checkpoint) -> None:
        """Find the projections, and lay them out as they are used."""
        decoder, config = checkpoint.decoder, checkpoint.config
        self._form, directory = self._find(checkpoint)
        self._form.check(config)
        if self.weights == UNTRAINED:
            projections = untrained(decoder, self._form)
        else:
            projections = _read(decoder, self._form, directory)
        size = config.num_heads * config.head_dim
        self._members = self._form.members(config)
        self._queries = {layer: _stacked([each.rows(slice(size))]) for layer, each in projections.items()}
        # The keys and values of all later layers come from one stream, by one product.
        shared = [projections[leader].rows(slice(size, None)) for leader in self._members]
        self._keys_values = _stacked(shared) if shared else None
        digest = hashlib.blake2b(str(self._form).encode(), digest_size=8)
        for each in projections.values():
            digest.update(each.weight.detach().float().sum(1).cpu().numpy().tobytes())
        self._digest = digest.hexdigest()

    def identity(self) -> str:
        """Of the projections, which may be others under the same name."""
        return self._digest

    def counters(self) -> dict[str, int]:
        """Rows that ran through each layer; all others only left their keys for the later ones."""
        return dict(self._counts)

    def layers(self, specs: Seq[AttentionSpec], dtype: torch.dtype) -> list[LayerKV]:
        kept = [LayerKV(spec.num_kv_heads, spec.head_dim, dtype) for spec in specs]
        for leader, members in self._members.items():
            for layer in members[1:]:
                kept[layer] = replace(kept[layer], alias_of=leader)
        return kept

    def forward(self, decoder: Decoder, batch: TokenBatch, attend: StepAttend) -> Tensor:
        kinds, depth = decoder.config.layer_kinds, self._form.depth
        x = decoder.embed(batch.token_ids)
        rows = decoder.rope_rows(batch.positions, batch.lengths)
        for kind, layer in zip(kinds[:depth], decoder.layers, strict=False):
            x = layer(x, rows[kind], attend)
        self._count(range(depth), len(x))
        if self._keys_values is not None:
            self._leave(decoder, x, rows, attend)
        # Those whose logits are wanted go on: of each sequence the last rows, or none.
        x = x.index_select(0, batch.logit_rows)
        if len(x) and depth < len(kinds):
            going = {kind: RotaryRows(*(part[batch.logit_rows] for part in each)) for kind, each in rows.items()}
            last = attend.last(_counts(batch))
            for index in range(depth, len(kinds)):
                x = self._later(decoder, index, x, going[kinds[index]], last)
            self._count(range(depth, len(kinds)), len(x))
        return decoder.norm(x)

    def _leave(self, decoder: Decoder, x: Tensor, rows: dict[LayerKind, RotaryRows], attend: StepAttend) -> None:
        """Keep the later layers' keys and values of all rows `[T, hidden]`, which have come to the first of them."""
        assert self._keys_values is not None
        first: Any = decoder.layers[self._form.depth]
        parts = self._keys_values(first.attention_norm(x)).chunk(len(self._members), -1)
        for leader, part in zip(self._members, parts, strict=True):
            layer: Any = decoder.layers[leader]
            attention = layer.attention
            k, v = attention.keys_values(part, rows[decoder.config.layer_kinds[leader]])
            attend.keep(attention.spec, k, v)

    def _later(self, decoder: Decoder, index: int, x: Tensor, rows: RotaryRows, last: LastAttend) -> Tensor:
        """A later layer `[R, hidden]` → `[R, hidden]`, whose keys are kept already."""
        layer: Any = decoder.layers[index]
        attention = layer.attention
        q = attention.queries(self._queries[index](layer.attention_norm(x)), rows)
        out = attention.output(last(attention.spec, q).reshape(len(x), -1))
        x = x + layer.attention_post_norm(out)
        return x + layer.mlp_post_norm(layer.mlp(layer.mlp_norm(x)))

    def _count(self, layers: range, rows: int) -> None:
        for layer in layers:
            self._counts[f"tokens of layer {layer}"] += rows

    def _find(self, checkpoint: Checkpoint) -> tuple[Form, Path | None]:
        """The form, and where its projections lie; None for the model's own."""
        own = Form.of(checkpoint.config.raw)
        if own is not None:
            if self.weights is not None:
                raise MethodError(f"{KEY}: the model {checkpoint.name} was distilled itself: leave out weights")
            return self._agreed(own, checkpoint.name), None
        if self.weights == UNTRAINED:
            if self.depth is None:
                raise MethodError(f"{KEY}: weights={UNTRAINED} needs depth, the number of layers that stay ordinary")
            return Form(self.depth, 1 if self.group is None else self.group), None
        if self.weights is not None:
            directory = resolve(self.weights)
            return self._agreed(Form.of_directory(directory), self.weights), directory
        if checkpoint.path == default_checkpoint_path():
            for name, directory in embedded_checkpoints().items():
                form = Form.of_directory(directory) if name.startswith("headstart-swiftkv") else None
                if form is not None and self._differs(form) is None:
                    return form, directory
        raise MethodError(
            f"{KEY}: there are no projections that were distilled for {checkpoint.name}: make some with "
            "`headstart train recipes/headstart-swiftkv/train.yaml` and name them by weights=DIR"
        )

    def _differs(self, form: Form) -> str | None:
        """The option that asks for something else than the form of distilled weights."""
        asked = {"depth": self.depth, "group": self.group}
        return next((name for name, value in asked.items() if value not in (None, getattr(form, name))), None)

    def _agreed(self, form: Form, where: str) -> Form:
        option = self._differs(form)
        if option is None:
            return form
        raise MethodError(
            f"{KEY}: {where} was distilled with {option}={getattr(form, option)}, not {getattr(self, option)}: leave "
            f"out {option}"
        )


def _counts(batch: TokenBatch) -> list[int]:
    """Per sequence, how many of its rows have logits that are wanted."""
    starts = torch.tensor(batch.layout.query_starts[1:-1], device=batch.logit_rows.device)
    sequences = torch.bucketize(batch.logit_rows, starts, right=True)
    return torch.bincount(sequences, minlength=len(batch.allotments)).tolist()


@torch.no_grad()
def _read(decoder: Decoder, form: Form, directory: Path | None) -> dict[int, Projection]:
    """The later projections in a directory, or the decoder's own."""
    parameters: dict[str, Tensor] = dict(decoder.named_parameters())
    names = projection_parameters(form, decoder.config)
    if directory is not None:
        parameters = {name: torch.empty_like(parameters[name]) for each in names.values() for name in each}
        load_weights(decoder, directory, parameters)
    return {
        layer: Projection(parameters[each[0]].detach(), parameters[each[1]].detach() if len(each) > 1 else None)
        for layer, each in names.items()
    }


@torch.no_grad()
def _stacked(parts: Seq[Projection]) -> Linear:
    """One weight whose outputs are those of the parts, one after the other."""
    weight = torch.cat([part.weight for part in parts])
    biases = [part.bias for part in parts if part.bias is not None]
    made = Linear(weight.shape[1], weight.shape[0], bool(biases), weight.dtype, weight.device)
    made.weight.copy_(weight)
    if made.bias is not None:
        made.bias.copy_(torch.cat(biases))
    return made
