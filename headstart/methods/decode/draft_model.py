"""A small model that guesses for a large one, with a KV cache of its own that follows the large one's sequences."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import takewhile
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from headstart.checkpoints.reader import Checkpoint, load_checkpoint
from headstart.engine.batch import TokenBatch
from headstart.engine.cache import PagedKVStore
from headstart.engine.graphs import StepGraphs
from headstart.engine.request import Sequence
from headstart.engine.sampler import DRAFTED, distribution
from headstart.engine.seams import Draft, DraftLength, LayerKV, PageLease
from headstart.errors import MethodError
from headstart.models.decoder import AttentionSpec
from headstart.ops.attention import RaggedLayout, paged_attention
from headstart.ops.sampling import invert, uniforms
from headstart.ops.staging import to_device

# Rows per sequence that one round reads of what the draft model has not seen yet, so that no step is held up by it.
_CATCH_UP = 512


@dataclass
class _State:
    """What the draft model has read of one sequence: `read` of its tokens, then `fed`, guesses that may not stand."""

    lease: PageLease
    read: int
    fed: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Keys in the cache."""
        return self.read + len(self.fed)

    def settle(self, tokens: list[int]) -> None:
        """Sort what was fed into what has been said meanwhile, and what has not; the former may be shared."""
        said = min(len(self.fed), len(tokens) - self.read)
        self.read, self.fed = self.read + said, self.fed[said:]
        self.lease.commit(tokens, self.read)


@dataclass
class _Growing:
    """A draft that is being made: it follows the `text`, and the model reads `feed` next."""

    sequence: Sequence
    state: _State
    length: int
    text: list[int]
    feed: list[int]
    number: int
    tokens: list[int] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)

    @property
    def place(self) -> int:
        """The output position of the next guess."""
        return len(self.text) + len(self.tokens) - self.sequence.num_prompt


class DraftModel:
    """Drafts from a checkpoint.

    Args:
        checkpoint: the small model.
        owner: the key of the method that drafts, for complaints.
    """

    def __init__(self, checkpoint: Checkpoint, owner: str) -> None:
        self.checkpoint = checkpoint
        self.owner = owner
        self._states: WeakKeyDictionary[Sequence, _State] = WeakKeyDictionary()
        self._graphs: StepGraphs | None = None

    @classmethod
    def load(cls, directory: str, target: Checkpoint, owner: str) -> "DraftModel":
        """Read a checkpoint that is to guess for `target`, on its device and in its dtype.

        Raises:
            CheckpointError: the directory cannot be read.
            MethodError: it is the target itself, or it has another vocabulary.
        """
        decoder = target.decoder
        draft = load_checkpoint(
            directory, decoder.dtype, decoder.embedding.weight.device, skip_tokenizer_init=target.tokenizer is None
        )
        if target.path is not None and draft.path is not None and draft.path.resolve() == target.path.resolve():
            raise MethodError(
                f"{owner}: draft is the model itself ({directory}), which can save nothing; name a smaller one"
            )
        mine, its = draft.config.vocab_size, target.config.vocab_size
        if mine != its:
            raise MethodError(
                f"{owner}: the draft {draft.name} has a vocabulary of {mine} tokens and the model one of {its}; use a "
                "draft with the model's tokenizer"
            )
        if draft.tokenizer is not None and target.tokenizer is not None:
            words = draft.tokenizer.inner.get_vocab(with_added_tokens=True)
            if words != target.tokenizer.inner.get_vocab(with_added_tokens=True):
                raise MethodError(
                    f"{owner}: the draft {draft.name} has other tokens than the model, though as many; use a draft "
                    "with the model's tokenizer"
                )
        return cls(draft, owner)

    def layers(self) -> list[LayerKV]:
        """What its cache keeps per token."""
        specs = self.checkpoint.decoder.attention_specs
        return [LayerKV(spec.num_kv_heads, spec.head_dim, self.checkpoint.decoder.dtype) for spec in specs]

    def allocate(self, num_pages: int, page_size: int, max_model_len: int) -> None:
        """Take the memory.

        Raises:
            MethodError: sequences may become longer than the draft model can read.
        """
        most = self.checkpoint.config.max_extended_position
        if most < max_model_len:
            raise MethodError(
                f"{self.owner}: the draft {self.checkpoint.name} reads at most {most} tokens, fewer than the "
                f"{max_model_len} served; set max_model_len to {most}, or use a draft with a longer context"
            )
        device = self.checkpoint.decoder.embedding.weight.device
        self.store = PagedKVStore().allocate(self.layers(), num_pages, page_size, device)

    def capture(self, max_num_seqs: int, max_model_len: int) -> None:
        """Capture its small steps as CUDA graphs, on a GPU."""
        device = self.checkpoint.decoder.embedding.weight.device
        if device.type == "cuda":
            max_pages = -(-max_model_len // self.store.page_size)
            self._graphs = StepGraphs(self._run, max_num_seqs, max_pages, self.store.page_size, device, mixed=True)
            self._graphs.capture()

    @torch.inference_mode()
    def guess(
        self,
        sequences: Seq[Sequence],
        lengths: list[int],
        rule: DraftLength,
        after: Seq[list[int]] | None = None,
        numbers: Seq[int] | None = None,
    ) -> list[Draft]:
        """As `Drafter.guess` says; each draft may follow guesses that are not decided yet (`after`), and then bears a
        number of its own that keeps its draws apart."""
        after = after or [[]] * len(sequences)
        numbers = numbers or [sequence.num_drafts for sequence in sequences]
        asked = [
            growing
            for each in zip(sequences, lengths, after, numbers, strict=True)
            if (growing := self._begin(*each)) is not None
        ]
        live = asked
        while live:
            hidden = self._forward(live)
            live, hidden = self._caught_up(live, hidden)
            live = self._grow(live, hidden, rule) if live else []
        drafts = {growing.sequence: growing for growing in asked}
        return [self._finished(drafts.get(sequence)) for sequence in sequences]

    def forget(self, sequence: Sequence) -> None:
        """Give the sequence's pages back."""
        state = self._states.pop(sequence, None)
        if state is not None:
            state.lease.release()

    def _begin(self, sequence: Sequence, length: int, after: list[int], number: int) -> _Growing | None:
        """Roll back what did not stand, and make room; None when there is none."""
        state = self._states.get(sequence)
        if state is None:
            lease = self.store.open(sequence.request.namespace, sequence.tokens)
            state = self._states[sequence] = _State(lease, lease.num_cached)
        text = [*sequence.tokens, *after]
        pairs = zip(state.fed, text[state.read :], strict=False)
        state.fed = [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
        state.settle(sequence.tokens)
        # The newest token is always read again: what is drawn comes from its row.
        if state.length == len(text) and state.fed:
            state.fed.pop()
        state.read = min(state.read, len(text) - 1)
        if not state.lease.reserve(len(text) + length):
            self.forget(sequence)
            return None
        feed = text[state.length : state.length + _CATCH_UP]
        return _Growing(sequence, state, length, text, feed, number)

    def _forward(self, live: list[_Growing]) -> Tensor:
        """Read what each feeds → `[N, hidden]`, the last row of each after the final norm; good until the next call."""
        device = self.checkpoint.decoder.embedding.weight.device
        starts = [each.state.length for each in live]
        ends = [start + len(each.feed) for start, each in zip(starts, live, strict=True)]
        layout = RaggedLayout(
            [len(each.feed) for each in live],
            ends,
            [each.state.lease.pages for each in live],
            self.store.page_size,
            device,
        )
        tokens = [token for each in live for token in each.feed]
        positions = np.concatenate([np.arange(start, end) for start, end in zip(starts, ends, strict=True)])
        prompts = np.repeat([each.sequence.num_prompt for each in live], layout.query_lengths)
        parts = [np.array(tokens), positions, np.maximum(prompts, positions + 1), np.array(layout.query_starts[1:]) - 1]
        there = to_device(np.concatenate(parts), device)
        token_ids, places, lengths, rows = there.split([len(part) for part in parts])
        batch = TokenBatch(token_ids, places, lengths, layout, rows, [])
        graphs = self._graphs if self._graphs is not None and self._graphs.fits(batch) else None
        hidden = self._run(batch) if graphs is None else graphs.run(batch)
        for each in live:
            each.state.fed += each.feed
            each.state.settle(each.sequence.tokens)
        return hidden

    def _run(self, batch: TokenBatch) -> Tensor:
        """Through the network → `[N, hidden]` of the batch's `logit_rows`."""

        def attend(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.store.write(spec.layer, k, v, batch.layout.slots)
            rule = {"scale": spec.scale, "window": spec.window, "softcap": spec.softcap}
            return paged_attention(q, *self.store.layer(spec.layer), batch.layout, **rule)[0].to(q.dtype)

        hidden = self.checkpoint.decoder(batch.token_ids, batch.positions, attend, batch.lengths)
        return hidden.index_select(0, batch.logit_rows)

    def _caught_up(self, live: list[_Growing], hidden: Tensor) -> tuple[list[_Growing], Tensor]:
        """Those that have read all that was said, and their rows; the others go on in the next round."""
        rows = [i for i, each in enumerate(live) if each.state.length == len(each.text) + len(each.tokens)]
        if len(rows) == len(live):
            return live, hidden
        return [live[i] for i in rows], hidden[to_device(np.array(rows, dtype=np.int64), hidden.device)]

    def _grow(self, live: list[_Growing], hidden: Tensor, rule: DraftLength) -> list[_Growing]:
        """Draw one more token for each; returns those that go on."""
        logits = self.checkpoint.decoder.logits(hidden)
        tokens = logits.argmax(-1)
        probabilities = torch.zeros_like(logits).scatter_(1, tokens[:, None], 1.0)
        random = [i for i, each in enumerate(live) if not each.sequence.params.greedy]
        if random:
            rows = to_device(np.array(random), logits.device)
            drawn_for = [live[i].sequence for i in random]
            probabilities[rows] = distribution(logits[rows], [sequence.params for sequence in drawn_for])
            seeds = [sequence.seed % 2**64 for sequence in drawn_for]
            places, numbers = [live[i].place for i in random], [live[i].number for i in random]
            points = to_device(uniforms(seeds, places, DRAFTED, numbers), logits.device)
            tokens[rows] = invert(probabilities[rows], points[:, None])
        for i, (each, token) in enumerate(zip(live, tokens.tolist(), strict=True)):
            each.tokens.append(token)
            each.feed = [token]
            if not each.sequence.params.greedy:
                each.rows.append(probabilities[i])
        wanted = rule.go_on(
            [each.sequence for each in live], [len(each.tokens) for each in live], hidden, probabilities
        )
        return [each for each, more in zip(live, wanted, strict=True) if more and len(each.tokens) < each.length]

    def _finished(self, growing: _Growing | None) -> Draft:
        if growing is None or not growing.tokens:
            return Draft([])
        return Draft(growing.tokens, torch.stack(growing.rows) if growing.rows else None)
