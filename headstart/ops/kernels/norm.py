"""Residual sum and RMS norm in one pass: each element is read once and written once per result."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _scaled(x, weight, size, eps, OFFSET: tl.constexpr, LATE: tl.constexpr, dtype: tl.constexpr):
    """One row, float32 and 0 behind its end → its norm in `dtype`, rounded where the plain op rounds."""
    normalised = x * tl.rsqrt(tl.sum(x * x, 0) / size + eps)
    if OFFSET:
        return (normalised * (1.0 + weight)).to(dtype)
    if LATE:
        return (normalised * weight).to(dtype)
    return (normalised.to(dtype).to(tl.float32) * weight).to(dtype)


@triton.jit
def _add_norm(
    x_ptr,
    branch_ptr,
    after_ptr,
    before_ptr,
    sum_ptr,
    normed_ptr,
    x_stride,
    branch_stride,
    size,
    eps,
    ADD: tl.constexpr,
    AFTER: tl.constexpr,
    BEFORE: tl.constexpr,
    OFFSET: tl.constexpr,
    LATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < size
    dtype = x_ptr.dtype.element_ty
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        branch = tl.load(branch_ptr + row * branch_stride + column, mask=inside, other=0.0).to(tl.float32)
        if AFTER:
            weight = tl.load(after_ptr + column, mask=inside, other=0.0).to(tl.float32)
            branch = _scaled(branch, weight, size, eps, OFFSET, LATE, dtype).to(tl.float32)
        total = (x + branch).to(dtype)
        tl.store(sum_ptr + row * size + column, total, mask=inside)
        x = total.to(tl.float32)
    if BEFORE:
        weight = tl.load(before_ptr + column, mask=inside, other=0.0).to(tl.float32)
        normed = _scaled(x, weight, size, eps, OFFSET, LATE, dtype)
        tl.store(normed_ptr + row * size + column, normed, mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, offset: bool, late_rounding: bool) -> Tensor:
    """`x [..., N]` → `[..., N]`; floor: 2 x the bytes of x."""
    rows = x.reshape(-1, x.shape[-1])
    normed = torch.empty_like(rows, memory_format=torch.contiguous_format)
    _launch(rows, None, None, weight, None, normed, eps, offset, late_rounding)
    return normed.view(x.shape)


def add_rms_norm(
    x: Tensor,
    branch: Tensor,
    after: Tensor | None,
    before: Tensor | None,
    eps: float,
    *,
    offset: bool,
    late_rounding: bool,
) -> tuple[Tensor, Tensor]:
    """`x, branch [T, N]` → the sum, and its norm if `before` is given; floor: 3 or 4 x the bytes of x."""
    total = torch.empty_like(x, memory_format=torch.contiguous_format)
    normed = total if before is None else torch.empty_like(total)
    _launch(x, branch, after, before, total, normed, eps, offset, late_rounding)
    return total, normed


def _launch(
    x: Tensor,
    branch: Tensor | None,
    after: Tensor | None,
    before: Tensor | None,
    total: Tensor | None,
    normed: Tensor,
    eps: float,
    offset: bool,
    late_rounding: bool,
) -> None:
    rows, size = x.shape
    if not rows:
        return
    block = triton.next_power_of_2(size)
    _add_norm[(rows,)](
        x,
        branch,
        after,
        before,
        total,
        normed,
        x.stride(0),
        0 if branch is None else branch.stride(0),
        size,
        eps,
        ADD=branch is not None,
        AFTER=after is not None,
        BEFORE=before is not None,
        OFFSET=offset,
        LATE=late_rounding,
        BLOCK=block,
        # A product and a sum in one would leave out the rounding between them.
        enable_fp_fusion=False,  # pyright: ignore[reportCallIssue]
        num_warps=min(16, max(1, block // 512)),  # pyright: ignore[reportCallIssue]
    )
