"""Attention over several disjoint sets of keys as one, where rows differ in which sets they have: one launch."""

# A kernel's body is not Python to a type checker.
# pyright: reportGeneralTypeIssues=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstart.ops.attention.launch import power_of_2


@triton.jit
def _merge_parts(
    own,
    own_lse,
    common,
    common_lse,
    places,
    places_level,
    out,
    lse,
    rows,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    LEVELS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Some rows of one head; grid `(T / BLOCK_R, H)`. The common part of a level is read where it has a place only."""
    head = tl.program_id(1)
    r = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    there = r < rows
    inside = (columns < HEAD_DIM)[None, :]
    mine = r * HEADS + head
    top = tl.load(own_lse + mine, mask=there, other=float("-inf"))
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.exp(top - base)
    acc = tl.load(own + mine[:, None] * HEAD_DIM + columns[None, :], mask=there[:, None] & inside, other=0.0)
    acc = acc * total[:, None]
    for level in tl.static_range(LEVELS):
        place = tl.load(places + level * places_level + r, mask=there, other=-1).to(tl.int64)
        has = place >= 0
        its = tl.where(has, place, 0) * HEADS + head
        log = tl.load(common_lse + its, mask=has, other=float("-inf"))
        part = tl.load(common + its[:, None] * HEAD_DIM + columns[None, :], mask=has[:, None] & inside, other=0.0)
        new_top = tl.maximum(top, log)
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        shrink, weight = tl.exp(top - base), tl.exp(log - base)
        acc = acc * shrink[:, None] + part * weight[:, None]
        total = total * shrink + weight
        top = new_top
    saw = total > 0.0
    safe = tl.where(saw, total, 1.0)
    cells = mine[:, None] * HEAD_DIM + columns[None, :]
    tl.store(out + cells, (acc / safe[:, None]).to(out.dtype.element_ty), mask=there[:, None] & inside)
    tl.store(lse + mine, tl.where(saw, top + tl.log(safe), float("-inf")), mask=there)


def merge_parts(
    own: Tensor, own_lse: Tensor, common: Tensor, common_lse: Tensor, places: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`headstart.ops.attention.shared.merge_parts`; floor: the bytes of the parts and of the result."""
    rows, heads, head_dim = own.shape
    out = torch.empty(own.shape, dtype=dtype, device=own.device)
    lse = torch.empty(own_lse.shape, dtype=torch.float32, device=own.device)
    block = 8
    kernel: Any = _merge_parts
    kernel[(-(-rows // block), heads)](
        own, own_lse, common, common_lse, places, places.stride(0), out, lse, rows,
        HEADS=heads, HEAD_DIM=head_dim, LEVELS=places.shape[0], BLOCK_D=power_of_2(head_dim), BLOCK_R=block,
        num_warps=4,
    )  # fmt: skip
    return out, lse
