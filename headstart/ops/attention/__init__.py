"""Attention of ragged query rows over a paged KV cache: a plain reference, the CPU and GPU paths, one dispatcher.

Every path returns `(out, lse)`: the log-sum-exp of each row's scores lets partial results over disjoint keys be
merged exactly (`merge_attention`).
"""

from headstart.ops.attention.among import attention_among, attention_among_reference, attention_to_all
from headstart.ops.attention.dispatch import paged_attention
from headstart.ops.attention.layout import PagedIndex, RaggedLayout
from headstart.ops.attention.merge import merge_attention
from headstart.ops.attention.reference import paged_attention_reference
from headstart.ops.attention.selection import AnySelection, KeyBlocks, Lines, Selection
from headstart.ops.attention.shared import SharedKeys, shared_attention
from headstart.ops.write_kv import write_kv

__all__ = [
    "AnySelection",
    "KeyBlocks",
    "Lines",
    "PagedIndex",
    "RaggedLayout",
    "Selection",
    "SharedKeys",
    "attention_among",
    "attention_among_reference",
    "attention_to_all",
    "merge_attention",
    "paged_attention",
    "paged_attention_reference",
    "shared_attention",
    "write_kv",
]
