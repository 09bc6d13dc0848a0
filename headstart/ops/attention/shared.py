"""Attention over keys that several sequences share: read once for all of them, and merged with their own keys."""

from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.ops import kernels
from headstart.ops.attention.dispatch import paged_attention
from headstart.ops.attention.layout import RaggedLayout
from headstart.ops.attention.merge import merge_attention


@dataclass(frozen=True)
class SharedKeys:
    """How the keys of a step fall into parts: segments that several sequences share, and what each has for itself.

    Attributes:
        rows: int64 `[V]`, the step's rows that look at segments, one segment after another; a row stands here once for
            each segment it looks at.
        segments: the layout of those V rows: a segment counts as a sequence, its keys are the shared ones.
        places: int32 `[L, T]`, where in `rows` a row's part at each level is computed; negative where it has none.
        own: the step's layout without the shared keys.
    """

    rows: Tensor
    segments: RaggedLayout
    places: Tensor
    own: RaggedLayout


def shared_attention(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, parts: SharedKeys, *, scale: float, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """`paged_attention` of a step in parts. Exact, since every key is in one part of each row that sees it.

    Args:
        q: `[T, H, D]`.
        k_pages, v_pages: `[P, page_size, Hkv, D]`.
        parts: where the keys lie; the shared ones stand before the rows of all sequences that share them.
        scale, softcap: as for `paged_attention`.

    Returns:
        `out [T, H, D]` in q's dtype and `lse [T, H]` float32; parts are float32 until they are merged.
    """
    rule = {"scale": scale, "softcap": softcap, "dtype": torch.float32}
    common = paged_attention(q.index_select(0, parts.rows), k_pages, v_pages, parts.segments, causal=False, **rule)
    own = paged_attention(q, k_pages, v_pages, parts.own, **rule)
    return merge_parts(*own, *common, parts.places, q.dtype)


def merge_parts(
    own: Tensor, own_lse: Tensor, common: Tensor, common_lse: Tensor, places: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """A row's own part and those of its levels as one.

    Args:
        own: `[T, H, D]` float32 with `own_lse [T, H]`.
        common: `[V, H, D]` float32 with `common_lse [V, H]`; what no place names may be anything.
        places: int32 `[L, T]`, as in `SharedKeys`.
        dtype: of the result.

    Returns:
        `out [T, H, D]` and `lse [T, H]` float32.
    """
    if kernels.run_on(own, common):
        from headstart.ops.kernels import merge_parts as fused

        return fused.merge_parts(own, own_lse, common, common_lse, places, dtype)
    out, lse = own, own_lse
    for level in places:
        rows = (level >= 0).nonzero()[:, 0]
        if len(rows) == 0:
            continue
        part = level[rows].long()
        merged, merged_lse = merge_attention(out[rows], lse[rows], common[part], common_lse[part])
        out, lse = out.index_copy(0, rows, merged.to(out.dtype)), lse.index_copy(0, rows, merged_lse)
    return out.to(dtype), lse
