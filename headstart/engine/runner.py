"""Runs one batch through the model: the decoder meets the KV cache and the methods in force here."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from headstart.engine.batch import Allotment, TokenBatch
from headstart.engine.graphs import StepGraphs
from headstart.engine.seams import Attention, KVPart, KVStore, LastAttend, Prefill, Seam, Selector
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

    def __init__(self, batch: TokenBatch, store: KVStore, groups: list[_Group] | None = None) -> None:
        self.store = store
        self.layout = batch.layout
        self._batch = batch
        self._given = groups

    @cached_property
    def _groups(self) -> list[_Group]:
        return _groups(self._batch.allotments, self.layout) if self._given is None else self._given

    def __call__(self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`q [T, H, D]`, `k, v [T, Hkv, D]` → `[T, H, D]`."""
        self.keep(spec, k, v)
        return self._attend(self._groups, spec, q)

    def keep(self, spec: AttentionSpec, k: Tensor, v: Tensor) -> None:
        """Write the new keys, as `StepAttend` says."""
        self.store.write(spec.layer, k, v, self.layout.slots)
        if self.store.bounded:
            self.store.write_bounded(spec.layer, k, v, self._within(self.layout).slots)

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
            [whole.owners[s] for s in chosen] if whole.owners else (),
        )
        groups = _groups([self._batch.allotments[s] for s in chosen], layout, first=False)
        return lambda spec, q: self._attend(groups, spec, q)

    def part(self, batch: TokenBatch) -> "StepAttention":
        """The same for some of the sequences, as `StepAttend` says."""
        return StepAttention(batch, self.store)

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
        parts = self.store.parts(spec.layer)
        if parts[0].heads is None:
            return self._attend_part(group, spec, q, parts[0])
        heads = q.unflatten(1, (spec.num_kv_heads, -1))
        out = torch.empty(heads.shape, dtype=q.dtype, device=q.device)
        for part in parts:
            own = heads[:, part.heads].flatten(1, 2)
            mine = replace(spec, num_heads=own.shape[1], num_kv_heads=part.keys.shape[2])
            out[:, part.heads] = self._attend_part(group, mine, own, part).unflatten(1, (part.keys.shape[2], -1))
        return out.flatten(1, 2)

    def _attend_part(self, group: _Group, spec: AttentionSpec, q: Tensor, part: KVPart) -> Tensor:
        """Heads whose keys lie together; what is bounded lies where all of it is seen, and nothing is chosen."""
        layout, selection = group.layout, None
        if part.bounded:
            layout = self._within(layout)
        else:
            selection = group.selector.select(spec, q, part.keys, layout)
        out, _ = group.attention.attend(spec, q, part.keys, part.values, layout, selection)
        return out.to(q.dtype)

    def _within(self, layout: RaggedLayout) -> RaggedLayout:
        """Where the bounded heads' keys of these rows lie, found out once a step."""
        if "within" not in layout.routes:
            layout.routes["within"] = self.store.within(layout)
        return layout.routes["within"]


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


def by_prefill(allotments: Seq[Allotment]) -> list[list[Allotment]]:
    """A step in parts, each of them read in one way."""
    parts: dict[Prefill, list[Allotment]] = {}
    for allotment in allotments:
        parts.setdefault(allotment.sequence.stack.prefill, []).append(allotment)
    return list(parts.values())


def _groups(allotments: Seq[Allotment], layout: RaggedLayout, first: bool = True) -> list[_Group]:
    """Sequences by what attends for them: their stack's prefill or decode slot, or the default for short contexts;
    `first` says that the step has not asked for them before."""
    members: dict[tuple[int, int, str], list[int]] = {}
    ways: dict[tuple[int, int, str], tuple[Attention, Selector]] = {}
    for s, allotment in enumerate(allotments):
        stack = allotment.sequence.stack
        phase = "decode" if allotment.sequence.decoding else "prefill"
        # What counts is the whole prompt: however it is cut, the same way attends to all of it.
        context = max(layout.kv_lengths[s], allotment.sequence.num_prompt)
        ends = first and phase == "prefill" and allotment.completes
        way = (
            stack.choose(f"attention.{phase}", Attention, context, ends),
            stack.choose(f"selector.{phase}", Selector, context, ends),
        )
        # A method's selector is asked about chunks and decodes apart, since its lists are as long as the longest.
        key = (id(way[0]), id(way[1]), "" if way[1] is stack.default(f"selector.{phase}", Selector) else phase)
        ways[key] = way
        members.setdefault(key, []).append(s)
    if len(members) == 1:
        return [_Group(*next(iter(ways.values())), layout, None)]
    return [_Group(*ways[key], *layout.subset(sequences)) for key, sequences in members.items()]


# What must answer as the ordinary engine does, for a decode step, or any small one, to be the same work every time.
_DECODE_SLOTS = ("selector.decode", "prefill")
_MIXED_SLOTS = ("attention.prefill", "attention.decode", "selector.prefill")


class Runner:
    """A decoder with its KV cache and the engine's methods; requests may have others."""

    def __init__(self, decoder: Decoder, store: KVStore, stack: Stack, device: torch.device) -> None:
        self.decoder = decoder
        self.store = store
        self.stack = stack
        self.device = device
        self._graphs: StepGraphs | None = None

    def capture(self, max_num_seqs: int, max_model_len: int) -> None:
        """Capture small steps as CUDA graphs; nothing where a method in force takes part in decode steps, and these
        alone where one takes part in others."""
        if self.device.type != "cuda" or any(self.stack.filled(slot) for slot in _DECODE_SLOTS):
            return
        if self.store.bounded:  # where its keys lie, only the host can tell
            return
        attention, selector = self.stack.get("attention.decode", Attention), self.stack.get("selector.decode", Selector)
        if not attention.capturable:
            return

        def forward(batch: TokenBatch) -> Tensor:
            groups = [_Group(attention, selector, batch.layout, None)]
            return self.stack.prefill.forward(self.decoder, batch, StepAttention(batch, self.store, groups))

        max_pages = -(-max_model_len // self.store.page_size)
        mixed = not any(self.stack.filled(slot) for slot in _MIXED_SLOTS)
        graphs = StepGraphs(
            forward, max_num_seqs, max_pages, self.store.page_size, self.device, mixed, attention=attention
        )
        console = Console(stderr=True, quiet=self.decoder.ranks.rank > 0)
        graphs.capture(lambda kinds: track(kinds, "Capturing small steps", console=console, transient=True))
        self._graphs = graphs

    @torch.inference_mode()
    def run(self, batch: TokenBatch) -> Tensor:
        """Compute a step, or one of its parts (`by_prefill`) → hidden states `[N, hidden]` of the rows whose logits are
        wanted, good until the next step."""
        if self._graphs is not None and self._graphs.fits(batch) and self._as_captured(batch):
            return self._graphs.run(batch)
        prefill = batch.allotments[0].sequence.stack.prefill
        return prefill.forward(self.decoder, batch, StepAttention(batch, self.store))

    def _as_captured(self, batch: TokenBatch) -> bool:
        """Whether nobody runs by methods of their own."""
        stacks = {allotment.sequence.stack for allotment in batch.allotments} - {self.stack}
        decoding = all(allotment.sequence.decoding for allotment in batch.allotments)
        slots = ("attention.decode",) if decoding else _MIXED_SLOTS
        return all(
            stack.get(slot, Seam) is self.stack.get(slot, Seam) for stack in stacks for slot in (*slots, *_DECODE_SLOTS)
        )

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """`[N, hidden]` → float32 `[N, V]`."""
        return self.decoder.logits(hidden)
