"""Keys and values of new rows into their cache slots, both in one launch."""

import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS = 1024
"""Of a row that one program copies: eight bytes and more for each of its threads."""


@triton.jit
def _write(
    k_ptr,
    v_ptr,
    k_pages_ptr,
    v_pages_ptr,
    slots_ptr,
    k_strides,
    v_strides,
    page_strides,
    page_size,
    head_dim,
    size,
    k_factor,
    v_factor,
    LARGEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    if slot >= 0:
        element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = element < size
        head, column = element // head_dim, element % head_dim
        k = tl.load(k_ptr + row * k_strides[0] + head * k_strides[1] + column, mask=inside)
        v = tl.load(v_ptr + row * v_strides[0] + head * v_strides[1] + column, mask=inside)
        if LARGEST > 0.0:
            # The hardware's conversion of what is too large is not the same everywhere.
            k = tl.clamp(k.to(tl.float32) * k_factor, -LARGEST, LARGEST)
            v = tl.clamp(v.to(tl.float32) * v_factor, -LARGEST, LARGEST)
        page, offset = slot // page_size, slot % page_size
        target = page * page_strides[0] + offset * page_strides[1] + head * page_strides[2] + column
        tl.store(k_pages_ptr + target, k.to(k_pages_ptr.dtype.element_ty), mask=inside)
        tl.store(v_pages_ptr + target, v.to(v_pages_ptr.dtype.element_ty), mask=inside)


def write_kv(
    k_pages: Tensor,
    v_pages: Tensor,
    k: Tensor,
    v: Tensor,
    slots: Tensor,
    k_scale: float,
    v_scale: float,
    largest: float,
) -> None:
    """`k, v [T, Hkv, D]` at `slots [T]` of pages of equal strides; rows with a negative slot are left out.

    With a `largest` number (that of an fp8 page's dtype) the values are divided by their scale and bounded by it.
    Floor: the bytes of k and v, read once and written once.
    """
    tokens, kv_heads, head_dim = k.shape
    if not tokens:
        return
    size = kv_heads * head_dim
    block = min(_ELEMENTS, triton.next_power_of_2(size))
    _write[(tokens, triton.cdiv(size, block))](
        k,
        v,
        k_pages,
        v_pages,
        slots,
        k.stride()[:2],
        v.stride()[:2],
        k_pages.stride()[:3],
        k_pages.shape[1],
        head_dim,
        size,
        1.0 / k_scale,
        1.0 / v_scale,
        LARGEST=largest,
        BLOCK=block,
        num_warps=4,  # pyright: ignore[reportCallIssue]
    )
