"""The methods in force: which object fills which slot, and what they mean together."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from typing import Any, TypeVar

from headstart.checkpoints.reader import Checkpoint, refuse_without_method
from headstart.engine.cache import PagedKVStore
from headstart.engine.request import Sequence
from headstart.engine.scheduler import StallFree
from headstart.engine.seams import DEFAULTS, SLOTS, LogitRule, Prefill, Retention, Scheduler, Seam
from headstart.errors import MethodError, did_you_mean

S = TypeVar("S", bound=Seam)


class Stack:
    """Methods by slot, defaults where none was named.

    Args:
        use: methods, or their descriptions as `--use` takes them (`"sarathi-serve:chunk=512"`).
        ranks: how many processes hold the model together.

    Attributes:
        methods: the methods in force, in the order given.
        exact: whether together, and with the settings, they leave the model's output distribution unchanged.
        fingerprint: of the lossy ones and their options, and of lossy settings; part of the identity of cached keys.
        shares_keys: whether a prompt's keys may serve another that begins alike: not where they depend on what
            follows them (a prompt that a lossy method needs whole) or on what is no longer there (`Retention`).
        whole_prompts: whether a method needs each prompt in one piece (its `chunking` trait).
        holders: unfinished requests of the engine that have this stack.
        short_prompts: by method, prompts that were too short for it.

    Raises:
        MethodError: an unknown method or option, two methods in one slot, or one that needs the model in one piece.
    """

    def __init__(self, use: Iterable[Any] = (), ranks: int = 1) -> None:
        from headstart.methods import registry

        self.methods = [registry.build(item, "inference") if isinstance(item, str) else item for item in use]
        self.holders = 0
        self._ranks = ranks
        self._checkpoint: Checkpoint | None = None
        self._filled: dict[str, Seam] = {}
        self.short_prompts: Counter[str] = Counter()
        for item in self.methods:
            if not isinstance(item, Seam) or not hasattr(item, "card"):
                raise MethodError(f"{item!r} is no method of the engine: give a key, or an instance of a method")
            self._check(item, ranks)
            for slot in item.slots:
                if slot in self._filled:
                    first, second = self._filled[slot].card.key, item.card.key  # type: ignore[attr-defined]
                    raise MethodError(f"{first} and {second} both fill the {slot} slot: use one of them")
                self._filled[slot] = item
        cards = [item.card for item in self.methods]
        self._lossy_settings: list[str] = []
        self.exact = all(card.exact for card in cards)
        self.whole_prompts = any(card.chunking == "whole" for card in cards)
        self.fingerprint = self._fingerprint()
        self.shares_keys = self.exact or not (self.whole_prompts or "retention" in self._filled)
        made = {seam: seam() for seam in DEFAULTS.values()}
        self._defaults: dict[str, Seam] = {slot: made[seam] for slot, seam in DEFAULTS.items()}
        self._defaults |= {"scheduler": StallFree(), "kv_store": PagedKVStore()}

    @staticmethod
    def _check(item: Any, ranks: int) -> None:
        """Refuse a method whose slots or traits the engine could not honour."""
        key, min_context = item.card.key, _min_context(item)
        if ranks > 1 and not item.splits:
            raise MethodError(
                f"{key} needs all heads of the model in one place, and {ranks} ranks hold some each: leave it out, or "
                "use a tensor_parallel_size of 1"
            )
        for slot in item.slots:
            if slot not in SLOTS:
                raise MethodError(f"{key} fills the slot {slot!r}, which does not exist{did_you_mean(slot, SLOTS)}")
            if not isinstance(item, SLOTS[slot]):
                raise MethodError(f"{key} fills the slot {slot}, but is no {SLOTS[slot].__name__}")
            if min_context and not slot.startswith(("attention.", "selector.")):
                raise MethodError(f"{key} declares min_context, which the slot {slot} cannot honour")

    def start(self, checkpoint: Checkpoint, lossy_settings: Iterable[str] = ()) -> None:
        """Show each method the model that it is to serve.

        Args:
            checkpoint: the model.
            lossy_settings: of the engine, which change the model's distribution too (`"quantization=int8"`).

        Raises:
            MethodError: one cannot.
        """
        for item in self.methods:
            item.start(checkpoint)
        self._checkpoint = checkpoint
        self._settle(lossy_settings)

    def of_request(self, use: Iterable[Any]) -> "Stack":
        """Another stack with these methods instead of those of this one that can be a request's own.

        Args:
            use: as for a new stack.

        Raises:
            MethodError: as for a new stack; or a method can only be the whole engine's, or is left out that the model
                needs.
        """
        assert self._checkpoint is not None, "this stack has not been started"
        kept = [item for item in self.methods if why_for_all(item)]
        made = Stack([*kept, *use], self._ranks)
        own = made.methods[len(kept) :]
        for item in own:
            if why := why_for_all(item):
                raise MethodError(
                    f"{item.card.key} cannot be one request's own, since {why}: give it to the whole engine, as --use"
                )
        keys = [item.card.key for item in made.methods]
        refuse_without_method(self._checkpoint.config.raw, self._checkpoint.name, keys)
        for item in own:
            item.start(self._checkpoint)
        # The same objects, so that those who have no method in a slot are still run together.
        made._defaults = self._defaults
        made._settle(self._lossy_settings)
        return made

    def _settle(self, lossy_settings: Iterable[str]) -> None:
        self._lossy_settings = sorted(lossy_settings)
        self.exact = self.exact and not self._lossy_settings
        self.fingerprint = self._fingerprint()

    def _fingerprint(self, *, alone: bool = False) -> str:
        """Of the lossy methods with their options, and of what else decides what they compute; `alone` without the one
        that fills the prefill slot."""
        from headstart.methods import registry

        methods = [item for item in self.methods if not (item.card.exact or (alone and "prefill" in item.slots))]
        lossy = sorted(f"{registry.describe(item)} {item.identity()}" for item in methods)
        lossy += self._lossy_settings
        return hashlib.sha256("\n".join(lossy).encode()).hexdigest()[:16] if lossy else ""

    def identity(self, prompt_length: int) -> str:
        """The fingerprint for a prompt of this length: it says too which lossy methods a short context keeps out."""
        if not self.fingerprint:
            return ""
        sides = "".join(str(int(prompt_length >= _min_context(item))) for item in self.methods if not item.card.exact)
        return f"{self.fingerprint}:{sides}"

    @property
    def chunk_identity(self) -> str:
        """The fingerprint for a chunk of text that is computed on its own, whichever prompt it stands in."""
        return self._fingerprint(alone=True)

    def num_shareable(self, sequence: Sequence) -> int:
        """How many of its computed tokens have keys that another prompt's own computation would give."""
        # A lossy decode writes other keys than a lossy prefill of the same tokens; what only the device knows has no
        # name yet.
        known = len(sequence.tokens) if self.exact else sequence.num_prompt
        return min(sequence.num_computed, known)

    @property
    def scheduler(self) -> Scheduler:
        """What fills the scheduler slot."""
        return self.get("scheduler", Scheduler)

    @cached_property
    def prefill(self) -> Prefill:
        """What fills the prefill slot."""
        return self.get("prefill", Prefill)

    @cached_property
    def retention(self) -> Retention | None:
        """What fills the retention slot."""
        return self.optional("retention", Retention)

    @cached_property
    def logit_rule(self) -> LogitRule | None:
        """What fills the slot of logit rules."""
        return self.optional("logit_rule", LogitRule)

    @cached_property
    def looks_on(self) -> bool:
        """Whether a method looks at every token before the next can be drawn."""
        return self.retention is not None or self.logit_rule is not None

    def get(self, slot: str, kind: type[S]) -> S:
        """What fills a slot: a method, or the slot's default."""
        found = self._filled.get(slot, self._defaults.get(slot))
        assert isinstance(found, kind), f"slot {slot} holds {found!r}, which is no {kind.__name__}"
        return found

    def default(self, slot: str, kind: type[S]) -> S:
        """The slot's default, whatever fills it."""
        found = self._defaults[slot]
        assert isinstance(found, kind)
        return found

    def filled(self, slot: str) -> bool:
        """Whether a method fills a slot."""
        return slot in self._filled

    def optional(self, slot: str, kind: type[S]) -> S | None:
        """What fills a slot that may stay empty."""
        return self.get(slot, kind) if slot in self._filled else None

    def min_context(self, slot: str) -> int:
        """Tokens of context below which the slot's default runs instead of its method."""
        found = self._filled.get(slot)
        return 0 if found is None else _min_context(found)

    def choose(self, slot: str, kind: type[S], context: int, ends_prompt: bool) -> S:
        """What fills a slot for so many tokens of context: its default where these are too few for the method.

        Args:
            slot, kind: as for `get`.
            context: tokens of the sequence.
            ends_prompt: whether this is the step that a prompt ends with, so that each is counted once.
        """
        if context >= self.min_context(slot):
            return self.get(slot, kind)
        if ends_prompt:
            self.short_prompts[self._filled[slot].card.key] += 1  # type: ignore[attr-defined]
        return self.default(slot, kind)


def _min_context(item: Any) -> int:
    return item.card.min_context if item.min_context is None else item.min_context


def why_for_all(item: Any) -> str:
    """Why a method can only be the whole engine's; empty where it can be one request's own."""
    return item.for_all or next((why for slot in item.slots if (why := SLOTS[slot].for_all)), "")
