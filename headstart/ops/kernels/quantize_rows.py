"""Rows in fp8 with a scale each: read twice, the second time from a cache, and written once in half the bytes."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048


@triton.jit
def _quantize_rows(x_ptr, values_ptr, scale_ptr, x_stride, size, LARGEST: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    most = tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, size, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * x_stride + column, mask=column < size, other=0.0).to(tl.float32)
        most = tl.maximum(most, tl.abs(x))
    # A row of zeros has a scale too.
    scale = tl.maximum(tl.max(most, 0) / LARGEST, 1.1754943508222875e-38)
    tl.store(scale_ptr + row, scale)
    for start in tl.range(0, size, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < size
        x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
        value = tl.clamp(x / scale, -LARGEST, LARGEST)
        tl.store(values_ptr + row * size + column, value.to(values_ptr.dtype.element_ty), mask=inside)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x [T, N]` → fp8 `[T, N]` and float32 `[T, 1]`; floor: 1.5 x the bytes of a 16-bit x."""
    rows, size = x.shape
    values = torch.empty(rows, size, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    if rows:
        block = min(_BLOCK, triton.next_power_of_2(size))
        largest = torch.finfo(torch.float8_e4m3fn).max
        _quantize_rows[(rows,)](x, values, scale, x.stride(0), size, LARGEST=largest, BLOCK=block)  # pyright: ignore[reportArgumentType]
    return values, scale
