"""Runs one batch through the model: the decoder meets the KV cache and the methods in force here."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from headstart.engine.batch import Allotment, TokenBatch
from headstart.engine.graphs import DecodeGraphs
from headstart.engine.seams import Attention, KVStore, LastAttend, Prefill, Selector
from headstart.engine.stack import Stack
from headstart.models.decoder import AttentionSpec, Decoder
from headstart.ops.attention import RaggedLayout, attention_among


@dataclass(frozen=True)
class _Group:
    """Sequences of a step that share an attention and a selector; `rows` is None when that is all of them."""

    attention: Attention
    selector: Selector
    layout: RaggedLayout
    rows: Tensor | None


class StepAttention:
    """The `Attend` of one step: writes the new keys, then lets each group of sequences attend its own way."""

    def __init__(self, batch: TokenBatch, store: KVStore, stack: Stack, groups: list[_Group] | None = None) -> None:
        self.store = store
        self.layout = batch.layout
        self._batch, self._stack = batch, stack
        self._given = groups

    @cached_property
    def _groups(self) -> list[_Group]:
        return _groups(self._batch.allotments, self.layout, self._stack) if self._given is None else self._given

    def __call__(self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`q [T, H, D]`, `k, v [T, Hkv, D]` → `[T, H, D]`."""
        self.keep(spec, k, v)
        return self._attend(self._groups, spec, q)

    def keep(self, spec: AttentionSpec, k: Tensor, v: Tensor) -> None:
        """Write the new keys, as `StepAttend` says."""
        self.store.write(spec.layer, k, v, self.layout.slots)

    def last(self, counts: Seq[int]) -> LastAttend:
        """Attention for the last rows of each sequence, as `StepAttend` says."""
        chosen = [s for s, count in enumerate(counts) if count]
        whole = self.layout
        layout = RaggedLayout(
            [counts[s] for s in chosen],
            [whole.kv_lengths[s] for s in chosen],
            [whole.page_tables[s] for s in chosen],
            whole.page_size,
            whole.device,
        )
        groups = _groups([self._batch.allotments[s] for s in chosen], layout, self._stack)
        return lambda spec, q: self._attend(groups, spec, q)

    def part(self, batch: TokenBatch) -> "StepAttention":
        """The same for some of the sequences, as `StepAttend` says."""
        return StepAttention(batch, self.store, self._stack)

    def among(self, rows: Seq[Tensor], keys: Seq[Tensor]) -> "AmongAttention":
        """Attention for chosen rows over chosen keys, as `StepAttend` says."""
        return AmongAttention(self.store, self.layout, rows, keys)

    def _attend(self, groups: list[_Group], spec: AttentionSpec, q: Tensor) -> Tensor:
        """Each group its own way, over the keys that the layer has kept."""
        if groups[0].rows is None:
            return self._attend_group(groups[0], spec, q)
        out = torch.empty_like(q)
        for group in groups:
            out[group.rows] = self._attend_group(group, spec, q[group.rows])
        return out

    def _attend_group(self, group: _Group, spec: AttentionSpec, q: Tensor) -> Tensor:
        keys, values = self.store.layer(spec.layer)
        selection = group.selector.select(spec, q, keys, group.layout)
        out, _ = group.attention.attend(spec, q, keys, values, group.layout, selection)
        return out.to(q.dtype)


class AmongAttention:
    """Exact attention of chosen rows of each sequence over chosen keys of its own, whatever the step's rows are."""

    def __init__(self, store: KVStore, layout: RaggedLayout, rows: Seq[Tensor], keys: Seq[Tensor]) -> None:
        self.store = store
        self.rows, self.keys = rows, keys
        tables = [torch.tensor(table, dtype=torch.int64, device=layout.device) for table in layout.page_tables]

        def slots(table: Tensor, places: Tensor) -> Tensor:
            return table[places // layout.page_size] * layout.page_size + places % layout.page_size

        self._written = torch.cat([slots(*pair) for pair in zip(tables, rows, strict=True)])
        self._read = [slots(*pair) for pair in zip(tables, keys, strict=True)]

    def __call__(self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`q [R, H, D]`, `k, v [R, Hkv, D]`, the sequences' rows one after the other → `[R, H, D]`."""
        self.keep(spec, k, v)
        return self.attend(spec, q)

    def keep(self, spec: AttentionSpec, k: Tensor, v: Tensor) -> None:
        """Write the rows' keys, as `AmongAttend` says."""
        self.store.write(spec.layer, k, v, self._written)

    def attend(self, spec: AttentionSpec, q: Tensor) -> Tensor:
        """Attend over keys that are written, as `AmongAttend` says."""
        parts = []
        for s, part in enumerate(q.split([len(rows) for rows in self.rows])):
            out, _ = attention_among(
                part,
                self.keys_of(spec, s),
                self.values_of(spec, s),
                self.rows[s],
                self.keys[s],
                scale=spec.scale,
                window=spec.window,
                softcap=spec.softcap,
            )
            parts.append(out)
        return torch.cat(parts).to(q.dtype)

    def keys_of(self, spec: AttentionSpec, s: int) -> Tensor:
        """`[N, Hkv, D]`, the chosen keys of sequence s at a layer."""
        return self.store.layer(spec.layer)[0].flatten(0, 1)[self._read[s]]

    def values_of(self, spec: AttentionSpec, s: int) -> Tensor:
        """`[N, Hkv, D]`, their values."""
        return self.store.layer(spec.layer)[1].flatten(0, 1)[self._read[s]]


def _groups(allotments: Seq[Allotment], layout: RaggedLayout, stack: Stack) -> list[_Group]:
    """Sequences by what attends for them: the prefill or the decode slot, or the default for short contexts."""
    members: dict[tuple[int, int], list[int]] = {}
    ways: dict[tuple[int, int], tuple[Attention, Selector]] = {}
    for s, allotment in enumerate(allotments):
        phase = "decode" if allotment.sequence.decoding else "prefill"
        # What counts is the whole prompt: however it is cut, the same way attends to all of it.
        context = max(layout.kv_lengths[s], allotment.sequence.num_prompt)
        attention, selector = f"attention.{phase}", f"selector.{phase}"
        way = (
            (stack.get if context >= stack.min_context(attention) else stack.default)(attention, Attention),
            (stack.get if context >= stack.min_context(selector) else stack.default)(selector, Selector),
        )
        key = (id(way[0]), id(way[1]))
        ways[key] = way
        members.setdefault(key, []).append(s)
    if len(members) == 1:
        return [_Group(*next(iter(ways.values())), layout, None)]
    return [_Group(*ways[key], *layout.subset(sequences)) for key, sequences in members.items()]


# What must answer as the ordinary engine does, for a decode step to be the same work every time.
_DECODE_SLOTS = ("selector.decode", "prefill")


class Runner:
    """A decoder with its KV cache and the methods in force."""

    def __init__(self, decoder: Decoder, store: KVStore, stack: Stack, device: torch.device) -> None:
        self.decoder = decoder
        self.store = store
        self.stack = stack
        self.device = device
        self._prefill = stack.get("prefill", Prefill)
        self._graphs: DecodeGraphs | None = None

    def capture(self, max_num_seqs: int, max_model_len: int) -> None:
        """Capture the decode steps as CUDA graphs; nothing where a method in force takes part in them."""
        if self.device.type != "cuda" or any(self.stack.filled(slot) for slot in _DECODE_SLOTS):
            return
        attention, selector = self.stack.get("attention.decode", Attention), self.stack.get("selector.decode", Selector)
        if not attention.capturable:
            return

        def forward(batch: TokenBatch) -> Tensor:
            groups = [_Group(attention, selector, batch.layout, None)]
            return self._prefill.forward(self.decoder, batch, StepAttention(batch, self.store, self.stack, groups))

        max_pages = -(-max_model_len // self.store.page_size)
        graphs = DecodeGraphs(forward, max_num_seqs, max_pages, self.store.page_size, self.device)
        console = Console(stderr=True, quiet=self.decoder.ranks.rank > 0)
        graphs.capture(lambda sizes: track(sizes, "Capturing decode steps", console=console, transient=True))
        self._graphs = graphs

    @torch.inference_mode()
    def run(self, batch: TokenBatch) -> Tensor:
        """Compute a step → hidden states `[N, hidden]` of the rows whose logits are wanted, good until the next."""
        if self._graphs is not None and self._graphs.fits(batch):
            return self._graphs.run(batch)
        attend = StepAttention(batch, self.store, self.stack)
        return self._prefill.forward(self.decoder, batch, attend)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """`[N, hidden]` → float32 `[N, V]`."""
        return self.decoder.logits(hidden)
