"""Keys of chunks of text that are read by themselves: each as if it stood alone, or alone behind one beginning."""

from collections.abc import Sequence

import torch
from torch import Tensor

from headstart.engine.chunk_library import LayerKeys
from headstart.models.decoder import AttentionSpec, Decoder
from headstart.ops.attention import attention_among
from headstart.ops.rotary import RotaryRows

# So many tokens are read at once, however many chunks there are.
_ROWS = 8192


@torch.inference_mode()
def read_alone(
    decoder: Decoder,
    chunks: Sequence[list[int]],
    prefix: Sequence[LayerKeys] = (),
    length: int | None = None,
) -> list[list[LayerKeys]]:
    """The keys and values of chunks that do not see each other, every layer's `[C, Hkv, D]`.

    Args:
        decoder: the model.
        chunks: token ids.
        prefix: per layer the keys and values `[P, Hkv, D]` of what stands before each of them; none begins at 0.
        length: of the prompt, for RoPEs that depend on it (default: each chunk's own).
    """
    found: list[list[LayerKeys]] = []
    batch: list[list[int]] = []
    for ids in chunks:
        if batch and sum(map(len, batch)) + len(ids) > _ROWS:
            found += _read(decoder, batch, prefix, length)
            batch = []
        batch.append(ids)
    return found + _read(decoder, batch, prefix, length) if batch else found


def _read(
    decoder: Decoder, chunks: list[list[int]], prefix: Sequence[LayerKeys], length: int | None
) -> list[list[LayerKeys]]:
    device = decoder.embedding.weight.device
    before = len(prefix[0][0]) if prefix else 0
    counts = [len(ids) for ids in chunks]
    positions = torch.cat([torch.arange(before, before + count, device=device) for count in counts])
    lengths = torch.tensor([before + count if length is None else length for count in counts], device=device)
    lengths = lengths.repeat_interleave(torch.tensor(counts, device=device))
    rows = decoder.rope_rows(positions, lengths)
    x = decoder.embed(torch.tensor([token for ids in chunks for token in ids], device=device))
    attend = _Alone(counts, prefix)
    last = len(decoder.layers) - 1
    for index, kind in enumerate(decoder.config.layer_kinds):
        layer = decoder.layers[index]
        if index == last:
            attend.keep(*keys_of(layer, layer.attention_norm(x), rows[kind]))  # type: ignore[operator]
        else:
            x = layer(x, rows[kind], attend)
    return [list(layers) for layers in zip(*attend.kept, strict=True)]


def keys_of(layer: torch.nn.Module, normed: Tensor, rows: RotaryRows) -> LayerKeys:
    """A layer's keys and values `[T, Hkv, D]` of its normalised stream `[T, hidden]`."""
    attention = layer.attention
    queries = attention.spec.num_heads * attention.spec.head_dim  # type: ignore[union-attr]
    return attention.keys_values(attention.qkv(normed)[:, queries:], rows)  # type: ignore[union-attr,operator]


class _Alone:
    """The `Attend` of chunks that follow each other in the rows and see but themselves and what stands before all.

    Attributes:
        kept: per layer so far, per chunk, its keys and values.
    """

    def __init__(self, counts: list[int], prefix: Sequence[LayerKeys]) -> None:
        self.counts, self.prefix = counts, prefix
        self.kept: list[list[LayerKeys]] = []

    def keep(self, k: Tensor, v: Tensor) -> None:
        """Note a layer's keys and values; copies, since they may be views of something larger."""
        parts = zip(k.split(self.counts), v.split(self.counts), strict=True)
        self.kept.append([(keys.clone(), values.clone()) for keys, values in parts])

    def __call__(self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.keep(k, v)
        out = []
        for queries, (keys, values) in zip(q.split(self.counts), self.kept[-1], strict=True):
            if self.prefix:
                first = self.prefix[spec.layer]
                keys, values = torch.cat((first[0], keys)), torch.cat((first[1], values))
            places = torch.arange(len(keys), device=q.device)
            own = places[len(keys) - len(queries) :]
            rule = {"scale": spec.scale, "window": spec.window, "softcap": spec.softcap}
            out.append(attention_among(queries, keys, values, own, places, **rule)[0])
        return torch.cat(out).to(q.dtype)
