"""Gated activations: gate and up are read once, their product written once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS = 1024
"""Of the result, for one program."""


@triton.jit
def activate(gate, NAME: tl.constexpr):
    """The activation of that name in Hugging Face configs, in float32."""
    if NAME == "gelu":
        return 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    if NAME == "relu":
        return tl.maximum(gate, 0.0)
    if NAME == "gelu_tanh":
        # 0.5 (1 + tanh(z)) is the sigmoid of 2 z.
        return gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    return gate * tl.sigmoid(gate)


@triton.jit
def _gated(gate_up_ptr, out_ptr, row_stride, size, NAME: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    dtype = out_ptr.dtype.element_ty
    gate = tl.load(gate_up_ptr + row * row_stride + column, mask=inside).to(tl.float32)
    up = tl.load(gate_up_ptr + row * row_stride + size + column, mask=inside).to(tl.float32)
    gate = activate(gate, NAME).to(dtype).to(tl.float32)
    tl.store(out_ptr + row * size + column, (gate * up).to(dtype), mask=inside)


def kernel_name(activation: str) -> str:
    """What `activate` calls the activation of that name."""
    return {"swish": "silu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}.get(activation, activation)


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """`gate_up [T, 2 I]` → `[T, I]`; floor: 1.5 x the bytes of gate_up."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, size, dtype=gate_up.dtype, device=gate_up.device)
    if rows:
        block = min(_ELEMENTS, triton.next_power_of_2(size))
        grid = rows, triton.cdiv(size, block)
        _gated[grid](
            gate_up,
            out,
            gate_up.stride(0),
            size,
            NAME=kernel_name(activation),
            BLOCK=block,
            num_warps=4,  # pyright: ignore[reportCallIssue]
        )
    return out
