"""The later layers' attention while they are trained: every token runs through all layers, so that each has a loss."""

from typing import Any

import torch
from torch import Tensor, nn

from headstart.methods.distil.swiftkv.form import Form, Projection, untrained
from headstart.models.decoder import Attend, Attention, Decoder
from headstart.models.layers import Linear
from headstart.ops.rotary import RotaryRows


class Stream:
    """What the later layers of one forward pass tell each other.

    Attributes:
        plain: the network computes what it did before it was changed: it is its own teacher.
        entering: `[T, hidden]`, the normalised stream that enters the first of them.
        kept: the keys and values of the group in progress, both `[T, Hkv, D]`.
        last: `[T, hidden]`, the normalised stream that enters the last layer.
    """

    def __init__(self) -> None:
        self.plain = False
        self.entering: Tensor | None = None
        self.kept: tuple[Tensor, Tensor] | None = None
        self.last: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Stream":
        """Of a copied network, without what the last pass left."""
        return Stream()


class SwiftAttention(nn.Module):
    """Queries of a layer's own stream; keys and values of the stream that entered the first later layer.

    Args:
        inner: the layer's ordinary attention, whose norms and output go on being used.
        projection: the new queries, keys and values.
        stream: shared by all later layers.
        first, leads, last: whether it is the first of them, the first of its group, and the model's last.
    """

    def __init__(
        self, inner: Attention, projection: Projection, stream: Stream, *, first: bool, leads: bool, last: bool
    ) -> None:
        super().__init__()
        self.inner, self.stream = inner, stream
        self.first, self.last = first, last
        queries = inner.spec.num_heads * inner.spec.head_dim
        self.query = plain_linear(projection.rows(slice(None, queries)))
        self.key_value = plain_linear(projection.rows(slice(queries, None))) if leads else None

    def forward(self, x: Tensor, rows: RotaryRows, attend: Attend) -> Tensor:
        """`[T, hidden]` → `[T, hidden]`."""
        stream, inner = self.stream, self.inner
        if self.last:
            stream.last = x
        if stream.plain:
            return inner(x, rows, attend)
        if self.first:
            stream.entering = x
        if self.key_value is not None:
            assert stream.entering is not None
            stream.kept = inner.keys_values(self.key_value(stream.entering), rows)
        assert stream.kept is not None
        q = inner.queries(self.query(x), rows)
        return inner.output(attend(inner.spec, q, *stream.kept).reshape(x.shape[0], -1))

    @torch.no_grad()
    def folded(self, key_value: Linear) -> Attention:
        """The ordinary attention with the new projections in the place of its own."""
        queries = self.query.weight.shape[0]
        for whole, query, shared in (
            (self.inner.qkv.weight, self.query.weight, key_value.weight),
            (self.inner.qkv.bias, self.query.bias, key_value.bias),
        ):
            if whole is not None and query is not None and shared is not None:
                whole[:queries] = query
                whole[queries:] = shared
        return self.inner


def plain_linear(projection: Projection) -> Linear:
    """A trained weight of its own, in plain memory as optimizers want it."""
    out_features, in_features = projection.weight.shape
    weight = projection.weight
    made = Linear(in_features, out_features, projection.bias is not None, weight.dtype, weight.device)
    made.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
    if projection.bias is not None:
        made.bias = nn.Parameter(projection.bias.detach().clone())
    return made


def stream_of(network: nn.Module) -> Stream | None:
    """What the later layers of a changed network share; None for a plain one."""
    return next((module.stream for module in network.modules() if isinstance(module, SwiftAttention)), None)


def change_(decoder: Decoder, form: Form) -> None:
    """Give the later layers their new attention."""
    stream, leaders, projections = Stream(), form.leaders(decoder.config), untrained(decoder, form)
    for layer, leader in leaders.items():
        block: Any = decoder.layers[layer]
        block.attention = SwiftAttention(
            block.attention,
            projections[layer],
            stream,
            first=layer == form.depth,
            leads=layer == leader,
            last=layer == decoder.config.num_layers - 1,
        )


def fold_(decoder: Decoder, form: Form) -> None:
    """Put the new projections where a checkpoint of this architecture keeps its own."""
    blocks: Any = decoder.layers
    changed = {layer: blocks[layer].attention for layer in form.leaders(decoder.config)}
    for layer, leader in form.leaders(decoder.config).items():
        blocks[layer].attention = changed[layer].folded(changed[leader].key_value)
