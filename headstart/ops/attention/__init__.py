"""Attention of ragged query rows over a paged KV cache: a plain reference, the CPU and GPU paths, one dispatcher.

Every path returns `(out, lse)`: the log-sum-exp of each row's scores lets partial results over disjoint keys be
merged exactly (`merge_attention`).
"""

from headstart.ops.attention.among import attention_among, attention_among_reference, attention_to_all
from headstart.ops.attention.dispatch import paged_attention
from headstart.ops.attention.layout import KeyBlocks, PagedIndex, RaggedLayout, Selection
from headstart.ops.attention.merge import merge_attention
from headstart.ops.attention.reference import paged_attention_reference
from headstart.ops.write_kv import write_kv

__all__ = [
    "KeyBlocks",
    "PagedIndex",
    "RaggedLayout",
    "Selection",
    "attention_among",
    "attention_among_reference",
    "attention_to_all",
    "merge_attention",
    "paged_attention",
    "paged_attention_reference",
    "write_kv",
]
