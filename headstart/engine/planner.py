"""What a scheduler fills: one step's tokens, under a budget, with memory reserved and order kept."""

from collections.abc import Callable

from headstart.engine.batch import Allotment
from headstart.engine.lease import Lease
from headstart.engine.request import Sequence
from headstart.engine.seams import KVStore
from headstart.engine.swap import Swap
from headstart.engine.waiting import ByArrival, Waiting

# Sarathi-Serve keeps this share of the pages free when it admits, so that running decodes can grow (paper, section 4).
WATERMARK = 0.01


class StepPlanner:
    """The queues, and the step being planned.

    A scheduler reads `running` (in order of admission) and `waiting` (in the order of its policy) and
    calls `decode`, `prefill` and `admit`. Running out of pages while decoding preempts the sequence admitted last: it
    gives its pages back and is computed again later.

    Args:
        store: the KV cache.
        max_num_seqs: at most this many sequences run at once.
        max_num_batched_tokens: the budget of a step. Decodes are never refused for lack of it.
        line: the waiting line, empty (default: in order of arrival).
        swap: where keys of preempted sequences may go (default: they are computed again).

    Attributes:
        guesses: how many guesses a decoding sequence gets in this step, told how many rows the budget leaves to them.
    """

    def __init__(
        self,
        store: KVStore,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        line: Waiting | None = None,
        swap: Swap | None = None,
    ) -> None:
        self.store = store
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: Waiting = ByArrival() if line is None else line
        self.swap = swap
        self.running: dict[Sequence, None] = {}
        self.num_preemptions = 0
        self.budget = 0
        self.guesses: Callable[[Sequence, int], int] = lambda sequence, room: 0
        # Tokens that each sequence computes, and rows that it takes of the budget, guesses among them.
        self._shares: dict[Sequence, int] = {}
        self._rows: dict[Sequence, int] = {}
        # Who could not be admitted with how many pages at hand: not tried again before that number changes.
        self._blocked: tuple[Sequence, int] | None = None

    def begin(self) -> None:
        """Start planning a step."""
        self.budget = self.max_num_batched_tokens
        self._shares, self._rows = {}, {}
        self.waiting.begin(self.store)

    def allotments(self) -> list[Allotment]:
        """The planned step, in the order in which tokens were handed out."""
        return [Allotment(sequence, share) for sequence, share in self._shares.items()]

    @property
    def decoding(self) -> list[Sequence]:
        """Running sequences whose next step is one token."""
        return [s for s in self.running if s.decoding and not s.spent]

    @property
    def prefilling(self) -> list[Sequence]:
        """Running sequences with more to read before they can go on."""
        return [s for s in self.running if not s.decoding]

    @property
    def can_admit(self) -> bool:
        """Whether the next waiting sequence could start: one waits, and there is budget and a place."""
        return bool(self.waiting) and self.budget > 0 and len(self.running) < self.max_num_seqs

    def decode(self, sequence: Sequence, *, may_preempt: bool = True) -> bool:
        """Give a decoding sequence its one token and room for guesses, preempting later ones if pages run out.

        False if the sequence itself had to be preempted (or was, for an earlier one), or if pages run out and nobody
        may be preempted.
        """
        if sequence not in self.running:
            return False
        assert sequence.lease is not None
        if not sequence.lease.reserve(sequence.kv_length + 1) and not (may_preempt and self._make_room(sequence, 1)):
            return False
        self._share(sequence, 1, 1 + self.guesses(sequence, max(0, self.budget - 1)))
        return True

    def prefill(self, sequence: Sequence, limit: int | None = None, *, whole: bool = False) -> int:
        """Give a running sequence the next chunk of what it has to read; returns the chunk's length.

        The chunk is bounded by the budget and by `limit`; with `whole` it is all that is left, whatever the budget,
        as long as some budget is left. Its pages were reserved at admission, unless a `Retention` has cut them since.
        """
        if sequence not in self.running or sequence in self._shares or self.budget <= 0:
            return 0
        chunk = sequence.num_uncomputed
        if not (whole or sequence.needs_whole_prompt):
            chunk = min(chunk, self.budget, chunk if limit is None else limit)
        chunk = min(chunk, self.store.most_written or chunk)
        if chunk <= 0 or not self._make_room(sequence, chunk):
            return 0
        self._share(sequence, chunk, chunk)
        return chunk

    def admit(
        self, limit: int | None = None, *, whole: bool = False, sequence: Sequence | None = None, spare: int = 0
    ) -> int:
        """Start a waiting sequence with its first chunk; returns the chunk's length.

        Reserves pages for all that it knows, so that a prompt once begun can go on. Returns 0 and changes nothing
        when there is no budget, no place, or not enough pages: later arrivals must not overtake it for that.

        Args:
            limit: most tokens of the chunk.
            whole: the chunk is all that it knows, whatever the budget, as long as some is left.
            sequence: which one (default: the head of the line).
            spare: tokens for which pages must be available beyond what it knows.
        """
        if not self.can_admit or (limit is not None and limit <= 0):
            return 0
        sequence = self.waiting[0] if sequence is None else sequence
        if self._blocked == (sequence, self.store.num_available):
            return 0
        # Keys that are found bring no logits with them.
        namespace = None if sequence.wants_prompt_rows else sequence.request.namespace
        if not self.store.bring_up(namespace, sequence.tokens):
            return 0  # what runs goes on meanwhile, and aborts are heard
        lease = self.store.open(namespace, sequence.tokens)
        margin = max(1, int(self.store.num_pages * WATERMARK)) if self.running else 0
        wanted = -(-(len(sequence.tokens) + spare) // self.store.page_size) - len(lease.pages)
        known = len(sequence.tokens)
        chunk = min(known if whole or sequence.needs_whole_prompt else self.budget, self.store.most_written or known)
        written = min(known, lease.num_cached + chunk)
        if wanted + margin > self.store.num_available or not lease.reserve(known, written):
            lease.release()
            self._blocked = (sequence, self.store.num_available)
            return 0
        self.waiting.remove(sequence)
        sequence.lease = lease
        sequence.num_computed = lease.num_cached
        if self.swap is not None and isinstance(lease, Lease):
            sequence.num_computed = self.swap.restore(sequence, lease)
        self.running[sequence] = None
        return self.prefill(sequence, limit, whole=whole)

    def preempt(self, sequence: Sequence, *, last: bool = False, sound: bool = True) -> None:
        """Take a running sequence's pages away, to be computed again or, if that costs less, to be put back from the
        host; it goes to the head of the waiting line, or to its end if it is to be the `last`.

        Args:
            sequence: which one.
            last: it waits behind all others.
            sound: its keys are what they should be; those of a step that has failed are not.
        """
        swapped = sound and self.swap is not None and self.swap.save(sequence)
        self._free(sequence)
        if self.swap is not None and not swapped:
            self.swap.drop(sequence)
        self._shares.pop(sequence, 0)
        self.budget += self._rows.pop(sequence, 0)
        (self.waiting.append if last else self.waiting.appendleft)(sequence)
        sequence.request.metrics.preemptions += 1
        self.num_preemptions += 1

    def release(self, sequence: Sequence) -> None:
        """Remove a sequence from wherever it stands and give its pages back."""
        self._free(sequence)
        if self.swap is not None:
            self.swap.drop(sequence)

    def _free(self, sequence: Sequence) -> None:
        if sequence in self.running:
            del self.running[sequence]
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        if sequence.lease is not None:
            sequence.lease.release()
            sequence.lease = None
        # A token that is on the device only is drawn again, and comes out the same.
        sequence.num_computed = sequence.num_dropped = sequence.num_ahead = 0

    def _make_room(self, sequence: Sequence, tokens: int) -> bool:
        """Reserve pages for so many more keys, preempting what was admitted last; False if that is the sequence."""
        assert sequence.lease is not None
        while not sequence.lease.reserve(sequence.kv_length + tokens):
            victim = next(reversed(self.running))
            self.preempt(victim)
            if victim is sequence:
                return False
        return True

    def _share(self, sequence: Sequence, tokens: int, rows: int) -> None:
        self._shares[sequence], self._rows[sequence] = tokens, rows
        self.budget -= rows
        self.waiting.served(sequence, tokens)
