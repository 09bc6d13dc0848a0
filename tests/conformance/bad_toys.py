"""Broken methods, at least one for each contract: the suite catches every one."""

import random
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from headstart.engine.batch import TokenBatch
from headstart.engine.cache import PagedKVStore
from headstart.engine.lease import Lease
from headstart.engine.planner import StepPlanner
from headstart.engine.request import Sequence
from headstart.engine.sampler import uniform
from headstart.engine.scheduler import StallFree
from headstart.engine.seams import EveryLayer, FullLayout, KVStore, LogitRule, PagedAttention, PageLease, PromptRule
from headstart.models.decoder import Attend, AttentionSpec, Decoder
from headstart.ops.attention import RaggedLayout, Selection
from tests.conformance.examples import Example
from tests.conformance.good_toys import LOSSY, Guess, Recent, Sinks, sinks_share


class Warm(LogitRule):
    """Sharpens the distribution by a hundredth, which greedy text does not show."""

    def apply(self, logits: Tensor, sequences: Seq[Sequence]) -> Tensor:
        return logits * 1.01


class Stuck(Guess):
    """Uses one random number for all tokens of an answer."""

    def number(self, sequence: Sequence) -> float:
        return uniform(sequence.seed + 1, 0)


class Whim(LogitRule):
    """Adds noise of its own, which no seed decides."""

    def apply(self, logits: Tensor, sequences: Seq[Sequence]) -> Tensor:
        return logits + torch.randn(logits.shape)


class Crowded(Recent):
    """Looks at the more pages the more sequences there are."""

    def select(self, spec: AttentionSpec, q: Tensor, keys: Tensor, layout: RaggedLayout) -> Selection:
        self.keep = len(layout.kv_lengths)
        return super().select(spec, q, keys, layout)


class Moody(Recent):
    """Looks at another number of pages each time."""

    numbers = random.Random(0)

    def select(self, spec: AttentionSpec, q: Tensor, keys: Tensor, layout: RaggedLayout) -> Selection:
        self.keep = self.numbers.randrange(1, 5)
        return super().select(spec, q, keys, layout)


class Chunkwise(Recent):
    """Looks the farther back the longer the piece of the prompt is."""

    def select(self, spec: AttentionSpec, q: Tensor, keys: Tensor, layout: RaggedLayout) -> Selection:
        self.keep = 1 + max(layout.query_lengths) // 10
        return super().select(spec, q, keys, layout)


class Cutter(StallFree):
    """Says that it needs prompts whole, and cuts them."""

    def schedule(self, step: StepPlanner) -> None:
        for sequence in step.waiting:
            sequence.stack.whole_prompts = False
        super().schedule(step)


class Gap(Recent):
    """Never looks at the third page, however many it is to keep."""

    def select(self, spec: AttentionSpec, q: Tensor, keys: Tensor, layout: RaggedLayout) -> Selection:
        found = super().select(spec, q, keys, layout)
        found.pages[..., 2:3] = False
        return found


class Doubled(EveryLayer):
    """Keeps keys twice as long and halves the queries: right for itself, wrong for whoever finds the keys."""

    def forward(self, decoder: Decoder, batch: TokenBatch, attend: Attend) -> Tensor:
        def scaled(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend(spec, q / 2, k * 2, v)

        return super().forward(decoder, batch, scaled)


class Hurried(EveryLayer):
    """Computes otherwise where keys were found."""

    def forward(self, decoder: Decoder, batch: TokenBatch, attend: Attend) -> Tensor:
        hidden = super().forward(decoder, batch, attend)
        leases = [each.sequence.lease for each in batch.allotments]
        return hidden * 1.01 if any(lease and lease.num_cached for lease in leases) else hidden


class Common(PagedKVStore):
    """Shares everything with everybody."""

    def open(self, namespace: str | None, tokens: list[int]) -> Lease:
        return super().open(namespace and "everybody", tokens)


class Alike(Recent):
    """Forgets which option it was given."""

    def __init__(self, keep: int = 4) -> None:
        super().__init__(4)


class Losing(PagedKVStore):
    """Loses the last page of every lease that it closes."""

    def close(self, lease: Lease) -> None:
        lease.pages = lease.pages[: max(lease.shared, len(lease.pages) - 1)]
        super().close(lease)


class Hoarder(StallFree):
    """Holds a page of its own from each step to the next."""

    lease: PageLease | None = None

    def schedule(self, step: StepPlanner) -> None:
        if self.lease is not None:
            self.lease.release()
        self.lease = step.store.open(None, [])
        self.lease.reserve(1)
        super().schedule(step)


class Loyal(StallFree):
    """Reads one prompt at a time, and never learns that it was aborted."""

    current: Sequence | None = None

    def schedule(self, step: StepPlanner) -> None:
        for sequence in step.decoding:
            step.decode(sequence)
        if self.current is not None and self.current.num_output == 0:
            step.prefill(self.current)
        elif step.admit():
            self.current = next(reversed(step.running))


class InTurn(PagedAttention):
    """Takes it for granted that it is asked for both layers of every step."""

    calls = 0

    def attend(self, spec: AttentionSpec, *rest: Any) -> tuple[Tensor, Tensor]:
        if spec.layer != self.calls % 2:
            raise RuntimeError("the layers come in another order")
        self.calls += 1
        return super().attend(spec, *rest)


class Careless(StallFree):
    """Drops who has waited in a long line."""

    def schedule(self, step: StepPlanner) -> None:
        while len(step.waiting) > 2:
            step.waiting.pop()
        super().schedule(step)


class Diary(LogitRule):
    """Remembers every sequence that it saw."""

    def __init__(self) -> None:
        self.seen: list[Sequence] = []

    def apply(self, logits: Tensor, sequences: Seq[Sequence]) -> Tensor:
        self.seen += sequences
        return logits


class Parking(Sinks):
    """Frees pages, and parks what was in them elsewhere."""

    def __init__(self, recent: int = 64) -> None:
        super().__init__(recent)
        self.parked: list[Tensor] = []

    def retain(self, sequence: Sequence, store: KVStore) -> Tensor | None:
        kept = super().retain(sequence, store)
        if kept is not None:
            self.parked += [tensor[sequence.pages].clone() for index in (0, 1) for tensor in store.layer(index)]
        return kept


class Stride(PromptRule):
    """Reads every so-manieth token, also every zeroth."""

    def __init__(self, step: int = 2) -> None:
        self.step = step

    def rewrite(self, token_ids: list[int]) -> list[int]:
        return token_ids[:: self.step]


class Lavish(StallFree):
    """Allows itself more than the budget."""

    def schedule(self, step: StepPlanner) -> None:
        step.budget += 3
        super().schedule(step)


class Shortest(StallFree):
    """Admits the shortest prompt first, whoever came first."""

    def schedule(self, step: StepPlanner) -> None:
        order = sorted(step.waiting, key=lambda sequence: sequence.num_uncomputed)
        step.waiting.clear()
        step.waiting.extend(order)
        super().schedule(step)


class Newest(StallFree):
    """Admits who came last."""

    def schedule(self, step: StepPlanner) -> None:
        order = sorted(step.waiting, key=lambda sequence: -sequence.request.metrics.arrival_time)
        step.waiting.clear()
        step.waiting.extend(order)
        super().schedule(step)


@dataclass(frozen=True)
class Broken:
    """A method, its card's traits and its example, and the contract that catches it with which complaint."""

    toy: type
    contract: str
    complaint: str
    traits: dict[str, Any] = field(default_factory=dict)
    example: Example = field(default_factory=Example)

    @property
    def options(self) -> str:
        """The setting that is caught: the first, or the one that keeps everything where there is no other."""
        return self.example.settings[0] if self.example.settings else self.example.dense or ""


NEVER_DENSE = Example(no_dense="it is broken")

BAD = {
    "toy-blind": Broken(Recent, "text", "alone: answer .* differ|token .* and not", example=Example(("keep=1",))),
    "toy-warm": Broken(Warm, "text", "alone: answer 0: log-probabilities differ"),
    "toy-reseeded": Broken(Guess, "text", "drawn with seeds: answer"),
    "toy-gap": Broken(Gap, "text", "answer .* differ|token .* and not", LOSSY, Example((), dense="keep=100")),
    "toy-stuck": Broken(Stuck, "draws", "chi-square", example=Example(same_draws=False)),
    "toy-whim": Broken(Whim, "repeat", "drawn again", LOSSY, NEVER_DENSE),
    "toy-crowded": Broken(Crowded, "company", "in a batch", LOSSY, NEVER_DENSE),
    "toy-influenced": Broken(Crowded, "own", "requests with the method, .*: answer", LOSSY, NEVER_DENSE),
    "toy-sliced": Broken(Sinks, "cuts", "cut at .* and not at all", LOSSY, Example(("recent=8",), dense="recent=99")),
    "toy-moody": Broken(Moody, "cuts", "cut at .* both times", LOSSY | {"chunking": "per_chunk"}, NEVER_DENSE),
    "toy-cutter": Broken(Cutter, "cuts", "a prompt of .* tokens is cut", {"chunking": "whole"}),
    "toy-hurried": Broken(Hurried, "hit", "found in the cache: answer"),
    "toy-hurried-on": Broken(Hurried, "conversation", "turn 1, of which .* found in the cache: answer"),
    "toy-doubled": Broken(Doubled, "strangers", "the plain engine after the method"),
    "toy-common": Broken(Common, "tenants", "the tenant 'b' finds 36 tokens of another"),
    "toy-alike": Broken(Alike, "description", "keeps keep as 4", LOSSY, Example(("keep=2",), dense="keep=100")),
    "toy-twins": Broken(Alike, "identity", "have the same fingerprint", LOSSY, Example(("keep=2",), dense="keep=100")),
    "toy-losing": Broken(Losing, "aborts", "a page was lost"),
    "toy-hoarder": Broken(Hoarder, "aborts", "pages are leased although no request runs"),
    "toy-loyal": Broken(Loyal, "aborts", "does not get done"),
    "toy-in-turn": Broken(InTurn, "errors", "after an error behind attend: RuntimeError"),
    "toy-careless": Broken(Careless, "traffic", "does not get done"),
    "toy-diary": Broken(Diary, "forgets", "of 3 sequences are still held"),
    "toy-boastful": Broken(FullLayout, "savings", "not at most", LOSSY, replace(NEVER_DENSE, kv_share=lambda *_: 0.5)),
    "toy-parking": Broken(
        Parking,
        "savings",
        "not at most",
        LOSSY,
        Example(("recent=8",), dense="recent=99", kv_share=sinks_share),
    ),
    "toy-idle": Broken(Recent, "acts", "answers as the plain engine", LOSSY, Example(("keep=99",), dense="keep=100")),
    "toy-stride": Broken(Stride, "options", "step=0 is neither used nor refused: ValueError", LOSSY, NEVER_DENSE),
    "toy-chunkwise": Broken(Chunkwise, "threshold", "cut at .* and not at all", LOSSY, NEVER_DENSE),
    "toy-lavish": Broken(Lavish, "budget", "beyond the budget of 1"),
    "toy-shortest": Broken(Shortest, "starvation", "has not ended after .* steps"),
    "toy-newest": Broken(Newest, "starvation", "has not ended after .* steps"),
    "toy-sorter": Broken(Shortest, "decisions", "with 20 requests in line"),
}
"""By key."""
