"""LazyLLM (arXiv 2407.14057): prompt tokens are dropped layer by layer, and taken up again where they were dropped."""

from collections import Counter
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from headstart.checkpoints.reader import Checkpoint
from headstart.engine.batch import TokenBatch
from headstart.engine.request import Sequence
from headstart.engine.seams import AmongAttend, KVStore, Prefill, Retention, StepAttend
from headstart.errors import MethodError
from headstart.methods.registry import Claim, Paper, method
from headstart.models.decoder import AttentionSpec, Decoder

if TYPE_CHECKING:
    from headstart.evaluation.method_bench_spec import MethodBench

# Room for so many tokens more than are known, so that parked states are not copied with every token.
_SPARE = 64

N = TypeVar("N", int, float)


@dataclass
class _Parked:
    """How far each token of a sequence has come.

    Attributes:
        layers: int64 `[C]`, how many layers each token has been through: their keys are in the cache.
        hidden: `[C, hidden]`, what each gives to its next layer: the auxiliary cache.
    """

    layers: Tensor
    hidden: Tensor

    def grow(self, length: int) -> None:
        """Make room for so many tokens."""
        missing = length - len(self.layers)
        if missing > 0:
            rows = missing + _SPARE
            self.layers = torch.cat((self.layers, self.layers.new_zeros(rows)))
            self.hidden = torch.cat((self.hidden, self.hidden.new_zeros(rows, self.hidden.shape[1])))


@dataclass
class _Member:
    """A sequence in a step.

    Attributes:
        start, end: the places of its new tokens.
        active: int64 `[N]`, ascending, the places that the next layer sees.
        always: int64, the places that no layer may lose: those whose logits are wanted, and the newest.
    """

    sequence: Sequence
    parked: _Parked
    start: int
    end: int
    active: Tensor
    always: Tensor

    def waiting(self, layer: int) -> Tensor:
        """The active places that have not been through this layer."""
        return self.active[self.parked.layers[self.active] == layer]


@method(
    "lazyllm",
    stage="prefill",
    paper=Paper(
        "LazyLLM: Dynamic Token Pruning for Efficient Long Context LLM Inference",
        arxiv="2407.14057",
        venue="arXiv, 2024",
    ),
    exact=False,
    chunking="whole",
    when_not="When every token matters, as in summarisation, or when the prompt is short.",
    claim=Claim(
        "prefill 2.34 times faster with accuracy kept",
        setting="Llama-2-7B, multi-document question answering, against the plain model; hardware not known here",
        source="abstract",
    ),
    composes="KV quantisation, any scheduler that leaves prompts whole.",
    conflicts="""Prefix caching (pruned prompts are not shared), speculative decoding, sparse attention within the
    layers, other methods that drop keys, models with sliding windows.""",
)
class LazyLLM(Prefill, Retention):
    """Drops, layer after layer, the prompt tokens that the last token attends to least, so that deep layers run on a
    fraction of the prompt. A dropped token is not lost: its hidden state is parked at the layer where it was dropped.
    Any later decode step may revive it and continue its computation from there. The choice is made anew at each step,
    and no token passes a layer twice.

    Args:
        keep: shares of the context that are left after each drop, falling, with slashes between them. The paper does
            not say its own; its finding is that late layers bear more than early ones.
        layers: how many layers run before each drop, rising, as many as there are shares; by default they are spread
            from a third to two thirds of the model's.
    """

    slots = ("prefill", "retention")

    def __init__(self, keep: str = "0.7/0.5/0.3", layers: str | None = None) -> None:
        self.keep, self.layers = keep, layers
        self._shares = _numbers(float, keep, "keep")
        if not all(0 < share <= 1 for share in self._shares):
            raise MethodError(
                f"lazyllm: keep must be shares above 0, since 0 leaves nothing, and up to 1, not {keep!r}"
            )
        if self._shares != sorted(self._shares, reverse=True):
            raise MethodError(f"lazyllm: keep must fall from drop to drop, and {keep!r} does not")
        self._asked = None if layers is None else _numbers(int, layers, "layers")
        if self._asked is not None and (
            len(self._asked) != len(self._shares) or self._asked != sorted(set(self._asked))
        ):
            raise MethodError(f"lazyllm: layers must rise, one for each share of keep ({keep!r}), not {layers!r}")
        self._drops: dict[int, float] = {}
        self._parked: WeakKeyDictionary[Sequence, _Parked] = WeakKeyDictionary()
        self._counts: Counter[str] = Counter()

    @classmethod
    def bench(cls) -> "MethodBench":
        """Where its claim lies: time to first token of long prompts, and what is still found in them."""
        from headstart.evaluation.method_bench_spec import MethodBench, OfflineLengths, Quality

        return MethodBench(
            (),
            (
                OfflineLengths((2048, 8192), decode_tokens=16),
                Quality(("niah_multikey_1", "niah_multivalue", "kv_retrieval"), (8192,), 4),
            ),
            ("TTFT", "decode", "KV cache"),
        )

    def start(self, checkpoint: Checkpoint) -> None:
        """Settle the layers."""
        count, drops = checkpoint.config.num_layers, len(self._shares)
        asked = self._asked
        if count < 2:
            raise MethodError("lazyllm: this model has one layer, and there is nothing to save behind it")
        if asked is None:
            places = [(drop / (drops - 1) if drops > 1 else 0.5) for drop in range(drops)]
            asked = [min(max(1, round((1 + place) * count / 3)), count - 1) for place in places]
        if asked[0] < 1 or asked[-1] >= count:
            raise MethodError(
                f"lazyllm: layers must be 1 to {count - 1} for this model of {count} layers, not {self.layers!r}"
            )
        self._drops = dict(zip(asked, self._shares, strict=True))

    def counters(self) -> dict[str, int]:
        """Tokens run per layer, and how many of them were revived."""
        return dict(self._counts)

    def retain(self, sequence: Sequence, store: KVStore) -> None:
        """Keep all keys: they are found by their places, so nobody else may drop any."""
        return

    def forward(self, decoder: Decoder, batch: TokenBatch, attend: StepAttend) -> Tensor:
        members = self._members(decoder, batch)
        for index, (kind, layer) in enumerate(zip(decoder.config.layer_kinds, decoder.layers, strict=True)):
            rows = [member.waiting(index) for member in members]
            self._count(index, members, rows)
            meet = _Noted(attend.among(rows, [member.active for member in members]))
            x = torch.cat([member.parked.hidden[places] for member, places in zip(members, rows, strict=True)])
            x = layer(x, decoder.rope_rows(*_positions(members, rows))[kind], meet)
            for s, (member, places, out) in enumerate(
                zip(members, rows, x.split([len(places) for places in rows]), strict=True)
            ):
                member.parked.hidden[places] = out
                member.parked.layers[places] = index + 1
                if index + 1 in self._drops:
                    member.active = _kept(member, meet.scores(s), self._drops[index + 1])
        out = torch.cat([member.parked.hidden[member.start : member.end] for member in members])
        return decoder.norm(out.index_select(0, batch.logit_rows))

    def _members(self, decoder: Decoder, batch: TokenBatch) -> list[_Member]:
        """The step's sequences, their new tokens parked before the first layer."""
        hidden = decoder.embed(batch.token_ids)
        members = []
        for s, allotment in enumerate(batch.allotments):
            first, after = batch.layout.query_starts[s : s + 2]
            end = batch.layout.kv_lengths[s]
            start = end - (after - first)
            parked = self._parked.get(allotment.sequence)
            if start == 0 or parked is None:
                parked = _Parked(batch.positions.new_zeros(0), hidden[:0])
                self._parked[allotment.sequence] = parked
            parked.grow(end)
            parked.layers[start:] = 0
            parked.hidden[start:end] = hidden[first:after]
            wanted = batch.logit_rows[(batch.logit_rows >= first) & (batch.logit_rows < after)] - first + start
            every = torch.arange(end, device=hidden.device)
            members.append(_Member(allotment.sequence, parked, start, end, every, torch.cat((wanted, every[-1:]))))
        return members

    def _count(self, index: int, members: list[_Member], rows: list[Tensor]) -> None:
        self._counts[f"tokens of layer {index}"] += sum(len(places) for places in rows)
        revived = sum(int((places < member.start).sum()) for member, places in zip(members, rows, strict=True))
        if revived:
            self._counts["revived"] += revived


class _Noted:
    """An `Attend` that remembers the last layer's queries, for the scores of its keys."""

    def __init__(self, attend: AmongAttend) -> None:
        self.attend = attend

    def __call__(self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.spec, self.queries = spec, q
        return self.attend(spec, q, k, v)

    def scores(self, s: int) -> Tensor:
        """float32 `[N]`: how much sequence s's newest row attends to each key, over its heads' mean."""
        newest = self.queries[sum(len(rows) for rows in self.attend.rows[: s + 1]) - 1].float()
        keys = self.attend.keys_of(self.spec, s).float()
        heads = newest.view(keys.shape[1], -1, keys.shape[2])  # [Hkv, G, D]
        scores = torch.einsum("hgd,nhd->hgn", heads, keys) * self.spec.scale
        if self.spec.softcap is not None:
            scores = self.spec.softcap * torch.tanh(scores / self.spec.softcap)
        return torch.softmax(scores, -1).mean((0, 1))


def _positions(members: list[_Member], rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Positions and RoPE lengths of the rows, both int64 `[R]`."""
    lengths = [(places + 1).clamp(min=member.sequence.num_prompt) for member, places in zip(members, rows, strict=True)]
    return torch.cat(rows), torch.cat(lengths)


def _kept(member: _Member, scores: Tensor, share: float) -> Tensor:
    """The active places that stay: the best so many, and whatever is always needed."""
    scores = scores.clone()
    scores[torch.searchsorted(member.active, member.always)] = torch.inf
    count = min(len(member.active), max(len(member.always.unique()), ceil(share * member.end)))
    return member.active[scores.topk(count).indices.sort().values]


def _numbers(kind: type[N], text: str, option: str) -> list[N]:
    try:
        return [kind(part) for part in text.split("/")]
    except ValueError:
        raise MethodError(f"lazyllm: {option} must be numbers with slashes between them, not {text!r}") from None
