"""The waiting line: who is started next. Schedulers read its head; what runs already is not interrupted."""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, Self

import numpy as np

from headstart.engine.cache import PagedKVStore
from headstart.engine.request import Sequence
from headstart.engine.seams import KVStore
from headstart.errors import HeadstartError, did_you_mean

# A level of priority is worth so many seconds of waiting: whoever has waited longer goes first, so that none starves.
AGING = 60.0
# Generated tokens count twice, since they keep a step's place longer (Fairness in Serving LLMs, arXiv 2401.00588).
_OUTPUT_WEIGHT = 2.0
# So many of those at the head are compared by what is cached, and pass each other for so many steps at most.
_WINDOW, _PATIENCE = 16, 256


class Waiting(Protocol):
    """A line of sequences. Its order is its own; where it has a choice, it keeps the order of arrival."""

    def append(self, sequence: Sequence, /) -> None:
        """Somebody arrives."""

    def appendleft(self, sequence: Sequence, /) -> None:
        """Somebody comes back who has been started before."""

    def extend(self, sequences: Iterable[Sequence], /) -> None:
        """Some arrive, in this order."""

    def extendleft(self, sequences: Iterable[Sequence], /) -> None:
        """Some come back; the last of them stands first."""

    def remove(self, sequence: Sequence, /) -> None:
        """Somebody leaves the line, to run or for good."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sequence]: ...

    def __getitem__(self, place: int, /) -> Sequence: ...

    def fresh(self, sequences: Iterable[Sequence] = ()) -> Self:
        """Another line of this kind with these in it."""
        ...

    def begin(self, store: KVStore) -> None:
        """A step is about to be planned."""

    def served(self, sequence: Sequence, tokens: int) -> None:
        """A sequence gets so many tokens of a step."""


class ByArrival(deque[Sequence]):
    """First come, first served: the default."""

    def fresh(self, sequences: Iterable[Sequence] = ()) -> Self:
        return type(self)(sequences)

    def begin(self, store: KVStore) -> None:
        return

    def served(self, sequence: Sequence, tokens: int) -> None:
        return


class ByPriority(ByArrival):
    """By `SamplingParams.priority`, lower numbers first, then by arrival. Who has waited `aging` seconds longer for
    each level goes first: that order never changes while they wait, so it is kept rather than made.

    Args:
        sequences: in the line from the beginning.
        aging: seconds of waiting that a level is worth.
    """

    def __init__(self, sequences: Iterable[Sequence] = (), aging: float = AGING) -> None:
        super().__init__()
        self.aging = aging
        self.extend(sequences)

    def fresh(self, sequences: Iterable[Sequence] = ()) -> Self:
        return type(self)(sequences, self.aging)

    def append(self, sequence: Sequence, /) -> None:
        self.insert(bisect_right(self, self._key(sequence), key=self._key), sequence)

    # Who comes back has arrived before all that are later in line.
    appendleft = append

    def extend(self, sequences: Iterable[Sequence], /) -> None:
        for sequence in sequences:
            self.append(sequence)

    def extendleft(self, sequences: Iterable[Sequence], /) -> None:
        self.extend(reversed(list(sequences)))

    def _key(self, sequence: Sequence) -> float:
        return sequence.params.priority * self.aging + sequence.request.metrics.arrival_time


class ByCache(ByArrival):
    """Who finds most of its prompt in the cache goes first, among the first few of the line, so that prefixes are used
    before they are evicted. Whoever has been among those for long goes before all others."""

    def __init__(self, sequences: Iterable[Sequence] = ()) -> None:
        super().__init__(sequences)
        self._step = 0
        self._seen: dict[Sequence, tuple[int, np.ndarray]] = {}

    def begin(self, store: KVStore) -> None:
        self._step += 1
        if len(self) < 2 or not isinstance(store, PagedKVStore):
            return
        first = [self.popleft() for _ in range(min(_WINDOW, len(self)))]
        self._seen = {s: self._seen.get(s) or (self._step, np.asarray(s.tokens, dtype=np.int32)) for s in first}
        first.sort(key=lambda sequence: self._rank(sequence, store))
        self.extendleft(reversed(first))

    def _rank(self, sequence: Sequence, store: PagedKVStore) -> tuple[int, float]:
        since, tokens = self._seen[sequence]
        if self._step - since > _PATIENCE:
            return 0, since
        return 1, -store.num_found(sequence.request.namespace, tokens)


class ByTenant:
    """Fair between tenants: whoever has been served least goes next, and within a tenant who came first.

    A tenant is a cache salt's owner. What it was served is counted as tokens read plus twice the tokens written; one
    that comes back after a pause starts level with those who stayed, so that nobody saves up (virtual token counter,
    arXiv 2401.00588).
    """

    def __init__(self, sequences: Iterable[Sequence] = (), counters: dict[str, float] | None = None) -> None:
        self._lines: dict[str, deque[Sequence]] = {}
        self._served = {} if counters is None else counters
        self._level = 0.0
        self.extend(sequences)

    def fresh(self, sequences: Iterable[Sequence] = ()) -> Self:
        return type(self)(sequences, self._served)

    def append(self, sequence: Sequence, /) -> None:
        self._line(sequence).append(sequence)

    def appendleft(self, sequence: Sequence, /) -> None:
        self._line(sequence).appendleft(sequence)

    def extend(self, sequences: Iterable[Sequence], /) -> None:
        for sequence in sequences:
            self.append(sequence)

    def extendleft(self, sequences: Iterable[Sequence], /) -> None:
        for sequence in sequences:
            self.appendleft(sequence)

    def remove(self, sequence: Sequence, /) -> None:
        tenant = sequence.request.tenant
        line = self._lines.get(tenant)
        if line is None:
            raise ValueError("this sequence is not in the line")
        line.remove(sequence)
        if not line:
            del self._lines[tenant]
            self._level = self._served[tenant]

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[Sequence]:
        """The head first, then tenant by tenant."""
        for tenant in sorted(self._lines, key=self._served.__getitem__):
            yield from self._lines[tenant]

    def __getitem__(self, place: int, /) -> Sequence:
        if place == 0 and self._lines:
            return self._lines[min(self._lines, key=self._served.__getitem__)][0]
        return list(self)[place]

    def begin(self, store: KVStore) -> None:
        return

    def served(self, sequence: Sequence, tokens: int) -> None:
        reads = sequence.num_computed < sequence.num_prompt
        tenant = sequence.request.tenant
        self._served[tenant] = self._served.get(tenant, 0.0) + (tokens if reads else _OUTPUT_WEIGHT * tokens)

    def _line(self, sequence: Sequence) -> deque[Sequence]:
        tenant = sequence.request.tenant
        if tenant not in self._lines:
            least = min((self._served[other] for other in self._lines), default=self._level)
            self._served[tenant] = max(self._served.get(tenant, 0.0), least)
            self._lines[tenant] = deque()
        return self._lines[tenant]


POLICIES: dict[str, Callable[[], Waiting]] = {
    "fcfs": ByArrival,
    "priority": ByPriority,
    "fair": ByTenant,
    "cache-aware": ByCache,
}
"""By what `--scheduling-policy` calls them."""


def line_of(policy: str) -> Waiting:
    """An empty line of a policy: a key of `POLICIES`, or `priority:aging=SECONDS`.

    Raises:
        HeadstartError: there is none of this name, or the number is none.
    """
    name, colon, option = policy.partition(":")
    if name not in POLICIES:
        known = ", ".join(POLICIES)
        raise HeadstartError(f"scheduling_policy must be one of {known}, not {policy!r}{did_you_mean(name, POLICIES)}")
    if not colon:
        return POLICIES[name]()
    key, _, value = option.partition("=")
    try:
        aging = float(value)
    except ValueError:
        aging = 0.0
    if name != "priority" or key != "aging" or not 0 < aging < float("inf"):
        raise HeadstartError(f"a policy takes no options but priority:aging=SECONDS, above 0, unlike {policy!r}")
    return ByPriority(aging=aging)
