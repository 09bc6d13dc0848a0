"""The questions that the engine asks and a method may answer. Each seam here has a default: the ordinary engine.

A method subclasses a seam, says which **slots** it fills, and declares its traits on its card (`headstart.methods`).
Choosing is separate from computing: a `Selector` says which keys to look at, an `Attention` computes over them.
Attending is separate from keeping: what a query skips is still there for the next one.
"""

from headstart.engine.seams.base import Seam
from headstart.engine.seams.cache import FullLayout, KVLayout, KVPart, KVStore, LayerKV, PageLease, Retention
from headstart.engine.seams.drafts import Draft, Drafter, DraftLength, FullLength, RejectionSampling, Verifier
from headstart.engine.seams.running import (
    AmongAttend,
    Attention,
    EveryKey,
    EveryLayer,
    LastAttend,
    LinearOp,
    PagedAttention,
    Piece,
    Prefill,
    Scheduler,
    Selector,
    StepAttend,
)
from headstart.engine.seams.text import LogitRule, PromptRule, Tokenization, TokenizerIds

SLOTS: dict[str, type[Seam]] = {
    slot: seam
    for seam in (
        Scheduler,
        Attention,
        Selector,
        Prefill,
        KVLayout,
        KVStore,
        Retention,
        Drafter,
        DraftLength,
        Verifier,
        LinearOp,
        LogitRule,
        PromptRule,
        Tokenization,
    )
    for slot in seam.slots
}
"""Every slot with the seam that fills it."""

DEFAULTS: dict[str, type[Seam]] = {
    "attention.prefill": PagedAttention,
    "attention.decode": PagedAttention,
    "selector.prefill": EveryKey,
    "selector.decode": EveryKey,
    "prefill": EveryLayer,
    "kv_layout": FullLayout,
    "draft_length": FullLength,
    "verifier": RejectionSampling,
    "tokenization": TokenizerIds,
}
"""What stands in a slot that no method fills. The remaining slots are empty by default, which leaves things as they
are (`retention`, `drafter`, `linear`, `logit_rule`, `prompt_rule`), or have their default beside the machinery that it
drives (`scheduler`, `kv_store`)."""

__all__ = [
    "DEFAULTS",
    "SLOTS",
    "AmongAttend",
    "Attention",
    "Draft",
    "DraftLength",
    "Drafter",
    "EveryKey",
    "EveryLayer",
    "FullLayout",
    "FullLength",
    "KVLayout",
    "KVPart",
    "KVStore",
    "LastAttend",
    "LayerKV",
    "LinearOp",
    "LogitRule",
    "PageLease",
    "PagedAttention",
    "Piece",
    "Prefill",
    "PromptRule",
    "RejectionSampling",
    "Retention",
    "Scheduler",
    "Seam",
    "Selector",
    "StepAttend",
    "Tokenization",
    "TokenizerIds",
    "Verifier",
]
