"""What a watcher sees of an engine: its last steps, the requests in it, and who holds its pages. All plain data."""

import hashlib
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from headstart.engine.batch import Allotment
from headstart.engine.outputs import Chunk
from headstart.engine.planner import StepPlanner
from headstart.engine.request import Request
from headstart.engine.request import Sequence as Output
from headstart.engine.seams import KVStore

STEPS_KEPT = 2048
"""So many steps are remembered: a minute of a busy GPU, or a few seconds of a tiny model."""
STEP_TOKENS = tuple(2**power for power in range(15))
"""Upper bounds of the histogram of tokens per step; one more bucket holds what is above."""
REQUESTS_SHOWN = 32
# Whose pages are whose is told from walking the whole prefix tree, so not more often than this many seconds.
_WALK_EVERY = 0.5
TENANT_SALT_LENGTH = 64
"""A server with tenants puts a salt of this many characters before a request's own, so they say whose keys they are."""


def tenant_digest(cache_salt: str | None) -> str:
    """What names the owner of cached keys. Requests without a salt have one owner, everybody."""
    return hashlib.sha256((cache_salt or "")[:TENANT_SALT_LENGTH].encode()).hexdigest()[:16]


def namespace_of(cache_salt: str | None, *identity: str) -> str:
    """The name under which keys are shared: whose they are (`tenant_digest`), and of what salt, model and methods."""
    parts = (*identity, cache_salt or "")
    # Hashed, since a salt may be long and is kept as long as its pages.
    return f"{tenant_digest(cache_salt)}:{hashlib.sha256(chr(31).join(parts).encode()).hexdigest()}"


@dataclass(frozen=True)
class Step:
    """One step: when it ran, and what for.

    Attributes:
        number: counts from 1.
        began: seconds of `time.monotonic()`.
        seconds: how long it took.
        prefill: tokens that were read, of prompts and of what preemption made to be read again.
        decode: tokens that were run to write the next one.
        sequences: how many took part.
        waiting: sequences that stood in line meanwhile.
        free, cached: pages without a holder: empty, and kept for reuse.
    """

    number: int
    began: float
    seconds: float
    prefill: int
    decode: int
    sequences: int
    waiting: int
    free: int
    cached: int


@dataclass(frozen=True)
class Planned:
    """A step that is about to run; `chunks` are those who read, by request, and how many tokens."""

    began: float
    prefill: int
    decode: int
    sequences: int
    chunks: list[tuple[str, int]]


class Watch:
    """Keeps the last steps of an engine, and answers what is going on. Belongs to the engine's thread.

    Attributes:
        methods: those in force, as `--use` takes them.
        prefill_tokens, decode_tokens: tokens of all steps so far (see `Step`).
        step_seconds, last_seconds: spent within steps so far, and within the last one.
        step_sizes: steps by number of tokens; `STEP_TOKENS` are the buckets' upper bounds.
    """

    def __init__(
        self, planner: StepPlanner, store: KVStore, requests: Mapping[str, Request], methods: Sequence[Any] = ()
    ) -> None:
        from headstart.methods import registry

        self.methods = [registry.describe(method) for method in methods]
        self.prefill_tokens = self.decode_tokens = 0
        self.step_seconds = self.last_seconds = 0.0
        self.step_sizes = [0] * (len(STEP_TOKENS) + 1)
        self._planner, self._store, self._requests = planner, store, requests
        self._steps: deque[Step] = deque(maxlen=STEPS_KEPT)
        self._number = 0
        self._ended = 0.0
        self._holdings: tuple[float, dict[str, tuple[int, int]]] = (-_WALK_EVERY, {})
        self._chunks: dict[str, list[Chunk]] = {}

    def planned(self, allotments: Sequence[Allotment]) -> "Planned":
        """Note a step that is about to run; `ran` wants what this returns."""
        reading = [a for a in allotments if a.sequence.num_computed < a.sequence.num_prompt]
        chunks = [(a.sequence.request.request_id, a.num_tokens) for a in reading]
        prefill = sum(a.num_tokens for a in reading)
        decode = sum(a.num_tokens for a in allotments) - prefill
        return Planned(time.monotonic(), prefill, decode, len(allotments), chunks)

    def ran(self, planned: "Planned") -> None:
        """Record the step that `planned` has noted."""
        # A step that was started while the one before it ran has taken what came after that one's end.
        began, self._ended = max(planned.began, self._ended), time.monotonic()
        seconds = self._ended - began
        self._number += 1
        self.prefill_tokens += planned.prefill
        self.decode_tokens += planned.decode
        self.step_seconds += seconds
        self.last_seconds = seconds
        self.step_sizes[bisect_left(STEP_TOKENS, planned.prefill + planned.decode)] += 1
        for request_id, tokens in planned.chunks:
            if request_id in self._requests:
                self._chunks.setdefault(request_id, []).append((began, self._ended, tokens))
        self._steps.append(
            Step(
                number=self._number,
                began=began,
                seconds=seconds,
                prefill=planned.prefill,
                decode=planned.decode,
                sequences=planned.sequences,
                waiting=len(self._planner.waiting),
                free=self._store.num_free,
                cached=self._store.num_cached,
            )
        )

    def chunks(self, request_id: str) -> tuple[Chunk, ...]:
        """The chunks in which a request was read; they are forgotten with this call, which its end must make."""
        return tuple(self._chunks.pop(request_id, ()))

    def look(self, after: int, tenants: Mapping[str, str]) -> dict[str, Any]:
        """What goes on, as plain data; nothing of any prompt is in it.

        Args:
            after: number of the last step that is known already.
            tenants: names by cache salt. Of others than these, only sums are told.

        Returns:
            `now` (seconds of `time.monotonic()`), `methods` (those in force, as `--use` takes them), `step` (number of
            the last one), `budget` (tokens that a step may have), `steps` (those after `after` as far as they are
            remembered, each a list in the order of `Step`'s fields), `requests` (the oldest `REQUESTS_SHOWN`),
            `others` (how many more there are), `pages` (`page_size`, `total`, `free`, and by tenant what is `held` and
            what is `cached`; None is everybody else).
        """
        names = {tenant_digest(salt): name for salt, name in tenants.items()}
        now = time.monotonic()
        new = max(0, min(self._number - after, len(self._steps)))
        steps = islice(self._steps, len(self._steps) - new, None)
        shown = list(islice(self._requests.values(), REQUESTS_SHOWN))
        return {
            "now": now,
            "methods": self.methods,
            "step": self._number,
            "budget": self._planner.max_num_batched_tokens,
            "steps": [list(vars(step).values()) for step in steps],
            "requests": [_request(request, now, names) for request in shown],
            "others": len(self._requests) - len(shown),
            "pages": {
                "page_size": self._store.page_size,
                "total": self._store.num_pages,
                "free": self._store.num_free,
                "tenants": self._by_tenant(now, names),
            },
        }

    def _by_tenant(self, now: float, names: Mapping[str, str]) -> list[dict[str, Any]]:
        """Pages by tenant, those without a name together and last."""
        if now - self._holdings[0] >= _WALK_EVERY:
            self._holdings = (now, _by_digest(self._store))
        found: dict[str | None, list[int]] = {}
        for digest, (held, cached) in self._holdings[1].items():
            pages = found.setdefault(names.get(digest), [0, 0])
            pages[0] += held
            pages[1] += cached
        order = sorted(found, key=lambda name: (name is None, name or ""))
        return [{"name": name, "held": found[name][0], "cached": found[name][1]} for name in order]


def _by_digest(store: KVStore) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for namespace, (held, cached) in store.holdings().items():
        digest = (namespace or "").partition(":")[0]
        before = found.get(digest, (0, 0))
        found[digest] = (before[0] + held, before[1] + cached)
    return found


def _request(request: Request, now: float, names: Mapping[str, str]) -> dict[str, Any]:
    """A request's progress: `state` is waiting, reading or writing."""
    reader = request.sequences[0]
    scheduled = any(sequence.lease is not None for sequence in request.sequences)
    return {
        "tenant": names.get((request.namespace or "").partition(":")[0]),
        "state": _state(reader, scheduled, request.prompt_done),
        "age": now - request.metrics.arrival_time,
        "prompt": len(request.prompt_ids),
        "cached": request.num_cached,
        "read": len(request.prompt_ids) if request.prompt_done else reader.num_computed,
        "written": sum(sequence.num_output for sequence in request.sequences),
        "most": request.max_tokens * len(request.sequences),
        "preemptions": request.metrics.preemptions,
    }


def _state(reader: Output, scheduled: bool, prompt_done: bool) -> str:
    if not scheduled:
        return "waiting"
    return "writing" if prompt_done and reader.num_computed >= reader.num_prompt else "reading"
