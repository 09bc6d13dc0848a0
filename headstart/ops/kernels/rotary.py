"""Norm and rotation of all query and key heads of a token in one pass over them, in place."""

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from headstart.ops.rotary import HeadNorms, RotaryRows

_HEADS = 8
"""Heads of one program: 2 KiB of a token in bfloat16, heads being 128 wide."""


@triton.jit
def _scaled(x, weight, rsqrt, OFFSET: tl.constexpr, LATE: tl.constexpr, dtype: tl.constexpr):
    """Heads in float32 → their norm, rounded to `dtype` where the plain op rounds, in float32 again."""
    normalised = x * rsqrt
    if OFFSET:
        return (normalised * (1.0 + weight)).to(dtype).to(tl.float32)
    if LATE:
        return (normalised * weight).to(dtype).to(tl.float32)
    return (normalised.to(dtype).to(tl.float32) * weight).to(dtype).to(tl.float32)


@triton.jit
def _weights(q_ptr, k_ptr, head, place, num_heads, inside):
    """`[heads, columns]` float32: the query norm's scale for query heads, the key norm's for the others."""
    is_query = head < num_heads
    q = tl.load(q_ptr + place, mask=inside & is_query, other=0.0)
    k = tl.load(k_ptr + place, mask=inside & (head >= num_heads), other=0.0)
    return tl.where(is_query, q, k).to(tl.float32)


@triton.jit
def _rotate_heads(
    heads_ptr,
    cos_ptr,
    sin_ptr,
    q_weight_ptr,
    k_weight_ptr,
    token_stride,
    head_stride,
    num_heads,
    all_heads,
    head_dim,
    half,
    eps,
    NORM: tl.constexpr,
    OFFSET: tl.constexpr,
    LATE: tl.constexpr,
    ROUND_PRODUCT: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    dtype = heads_ptr.dtype.element_ty
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, HALF)[None, :]
    here = heads_ptr + token * token_stride + head * head_stride
    turned = column < half
    inside = (head < all_heads) & turned
    first = tl.load(here + column, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(here + half + column, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        if REST:
            place = 2 * half + tl.arange(0, REST)[None, :]
            in_rest = (head < all_heads) & (place < head_dim)
            rest = tl.load(here + place, mask=in_rest, other=0.0).to(tl.float32)
            squares += tl.sum(rest * rest, 1)
        rsqrt = tl.rsqrt(squares / head_dim + eps)[:, None]
        weight = _weights(q_weight_ptr, k_weight_ptr, head, column, num_heads, inside)
        first = _scaled(first, weight, rsqrt, OFFSET, LATE, dtype)
        weight = _weights(q_weight_ptr, k_weight_ptr, head, half + column, num_heads, inside)
        second = _scaled(second, weight, rsqrt, OFFSET, LATE, dtype)
        if REST:
            weight = _weights(q_weight_ptr, k_weight_ptr, head, place, num_heads, in_rest)
            tl.store(here + place, _scaled(rest, weight, rsqrt, OFFSET, LATE, dtype).to(dtype), mask=in_rest)
    cos = tl.load(cos_ptr + token * 2 * half + column, mask=turned, other=0.0).to(tl.float32)
    # The second half of the table has the sine's own sign.
    sin = tl.load(sin_ptr + token * 2 * half + half + column, mask=turned, other=0.0).to(tl.float32)
    left, right = first * cos, second * cos
    if ROUND_PRODUCT:
        left, right = left.to(dtype).to(tl.float32), right.to(dtype).to(tl.float32)
    tl.store(here + column, (left - second * sin).to(dtype), mask=inside)
    tl.store(here + half + column, (right + first * sin).to(dtype), mask=inside)


def rotate_heads_(qk: Tensor, num_heads: int, rows: "RotaryRows", norms: "HeadNorms | None") -> None:
    """`qk [T, H + Hkv, D]`, normed and rotated in place; floor: 2 x its bytes."""
    tokens, all_heads, head_dim = qk.shape
    if not tokens:
        return
    half = rows.cos.shape[-1] // 2
    rest = head_dim - 2 * half
    block = min(_HEADS, triton.next_power_of_2(all_heads))
    _rotate_heads[(tokens, triton.cdiv(all_heads, block))](
        qk,
        rows.cos,
        rows.sin,
        None if norms is None else norms.q,
        None if norms is None else norms.k,
        qk.stride(0),
        qk.stride(1),
        num_heads,
        all_heads,
        head_dim,
        half,
        0.0 if norms is None else norms.eps,
        NORM=norms is not None,
        OFFSET=norms is not None and norms.offset,
        LATE=norms is not None and norms.late_rounding,
        ROUND_PRODUCT=rows.cos.dtype == qk.dtype,
        HEADS=block,
        HALF=triton.next_power_of_2(half),
        REST=triton.next_power_of_2(rest) if rest else 0,
        num_warps=4,  # pyright: ignore[reportCallIssue]
    )
