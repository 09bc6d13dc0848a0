"""The stacks of an engine: its own, and those of requests that bring methods of their own."""

from collections import Counter
from collections.abc import Sequence
from threading import Lock
from typing import Any

from headstart.engine.seams import KVLayout
from headstart.engine.speculation import refuse_unverifiable
from headstart.engine.stack import Stack
from headstart.errors import HeadstartError, InvalidRequestError, MethodError

MOST_STACKS = 8
"""So many different sets of methods of requests' own are held at once: each may take memory, and parts a step."""

# Slots whose methods see the cache's tensors.
_READ_KEYS = ("attention.", "selector.", "retention", "kv_layout", "kv_store", "prefill", "drafter")


class Stacks:
    """Finds the stack of a request. Safe to call from any thread.

    Args:
        base: the engine's own, started.
        windowed: the model has sliding windows.
        narrow_keys: keys are kept in another dtype than the run's.
        rank: of this engine; only rank 0 refuses for want of room, and the others follow.

    Attributes:
        rewrites: whether any stack so far rewrites prompts.

    Raises:
        MethodError: the engine's own methods do not go with the model or with each other.
    """

    def __init__(self, base: Stack, windowed: bool, narrow_keys: bool, rank: int = 0) -> None:
        self.base = base
        self._windowed, self._narrow_keys, self._rank = windowed, narrow_keys, rank
        # In order of their last use.
        self._own: dict[tuple[Any, ...], Stack] = {}
        self._lock = Lock()
        self._check(base)
        self.rewrites = base.filled("prompt_rule")

    def of(self, use: Sequence[Any] | str | None) -> Stack:
        """The stack of a request.

        Args:
            use: its own methods, as keys with options or as instances; they stand in the place of the engine's as far
                as those can be a request's own. None leaves the engine's.

        Raises:
            InvalidRequestError: they cannot be used, in one sentence.
            HeadstartError: too many different ones are in use now.
        """
        if use is None:
            return self.base
        items = [use] if isinstance(use, str) or not isinstance(use, Sequence) else list(use)
        key = tuple(item.strip() if isinstance(item, str) else id(item) for item in items)
        with self._lock:
            found = self._own.pop(key, None)
            if found is None:
                found = self._made(items)
            self._own[key] = found
        return found

    def _made(self, items: list[Any]) -> Stack:
        """A new stack, if there is room for it, or somebody's who has gone makes room."""
        if len(self._own) >= MOST_STACKS:
            gone = next((key for key, stack in self._own.items() if not stack.holders), None)
            if gone is not None:
                del self._own[gone]
            elif self._rank == 0:
                raise HeadstartError(
                    f"requests with {MOST_STACKS} different sets of methods of their own are running, and no more are "
                    "held at once: try again when one has ended"
                )
        try:
            made = self.base.of_request(items)
            self._check(made)
        except MethodError as error:
            raise InvalidRequestError(str(error), "use") from None
        self.rewrites |= made.filled("prompt_rule")
        return made

    def counters(self) -> dict[str, dict[str, int]]:
        """What the methods have counted, by key."""
        found: dict[str, Counter[str]] = {}
        with self._lock:
            stacks = [self.base, *self._own.values()]
        # A method of the whole engine stands in all of them.
        for item in {id(item): item for stack in stacks for item in stack.methods}.values():
            found.setdefault(item.card.key, Counter()).update(item.counters())
        for stack in stacks:
            for key, short in stack.short_prompts.items():
                found.setdefault(key, Counter())["short_prompts"] += short
        return {key: dict(counts) for key, counts in found.items() if counts}

    def _check(self, stack: Stack) -> None:
        """Refuse what does not go with the model, or with each other."""
        if stack.retention is not None and self._windowed:
            raise MethodError("a method that drops keys cannot run on a model with sliding windows")
        if stack.filled("drafter"):
            refuse_unverifiable(stack)
        layout: Any = stack.get("kv_layout", KVLayout)
        for item in [] if layout.movable else stack.methods:
            if {"retention", "prefill"} & set(item.slots) or item.card.chunking == "whole":
                raise MethodError(
                    f"{layout.card.key} drops keys by a rule of its own, and {item.card.key} counts on all of them: "
                    "use one of them"
                )
        for item in stack.methods if self._narrow_keys else ():
            if any(slot.startswith(_READ_KEYS) for slot in item.slots):
                raise MethodError(
                    f"{item.card.key} reads cached keys in the run's dtype: leave kv_cache_dtype at auto with it"
                )
