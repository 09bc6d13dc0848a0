"""Dense products of few rows, bound by reading the weight once: what they cost at best is its bytes.

One row is multiplied on the ordinary cores, where many small programs keep enough reads in flight; more rows, up to
the 16 of the smallest matrix instruction, on the tensor cores, where a deep pipeline does. Weights in eight bits are
widened in registers, and pay up to 64 rows.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstart.ops.kernels.activation import activate, kernel_name

MOST_ROWS = 16


class Config(NamedTuple):
    """How a product is cut: outputs and inputs of a tile, warps of a program, tiles in flight."""

    outputs: int
    inputs: int
    warps: int
    stages: int


ONE_ROW = (
    Config(4, 1024, 4, 1),
    Config(2, 2048, 4, 1),
    Config(8, 512, 4, 1),
    Config(4, 1024, 4, 3),
    Config(8, 1024, 8, 2),
    Config(16, 256, 4, 3),
)
SEVERAL_ROWS = (
    Config(32, 256, 4, 4),
    Config(16, 256, 4, 4),
    Config(16, 512, 4, 3),
    Config(64, 128, 4, 5),
    Config(64, 256, 8, 3),
)


@triton.jit
def _tile(w_ptr, output, column, w_stride, out_features, in_features, EVEN: tl.constexpr):
    """`[outputs, inputs]` of the weight, which nobody reads again."""
    at = w_ptr + output[:, None].to(tl.int64) * w_stride + column[None, :]
    if EVEN:
        return tl.load(at, eviction_policy="evict_first")
    inside = (output < out_features)[:, None] & (column < in_features)[None, :]
    return tl.load(at, mask=inside, other=0.0, eviction_policy="evict_first")


@triton.jit
def _one_row(
    x_ptr,
    w_ptr,
    scale_ptr,
    bias_ptr,
    onto_ptr,
    y_ptr,
    w_stride,
    out_features,
    in_features,
    HAS_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_ONTO: tl.constexpr,
    GATE: tl.constexpr,
    EVEN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """With a GATE the weight has two rows for each output: that of its gate, and `out_features` rows on its own."""
    dtype = y_ptr.dtype.element_ty
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    total = tl.zeros((OUTPUTS, INPUTS), tl.float32)
    total_up = total
    for start in tl.range(0, in_features, INPUTS, num_stages=STAGES):
        column = start + tl.arange(0, INPUTS)
        if EVEN:
            x = tl.load(x_ptr + column).to(tl.float32)
        else:
            x = tl.load(x_ptr + column, mask=column < in_features, other=0.0).to(tl.float32)
        total += _tile(w_ptr, output, column, w_stride, out_features, in_features, EVEN).to(tl.float32) * x[None, :]
        if GATE != "":
            up_ptr = w_ptr + out_features.to(tl.int64) * w_stride
            w = _tile(up_ptr, output, column, w_stride, out_features, in_features, EVEN)
            total_up += w.to(tl.float32) * x[None, :]
    inside = output < out_features
    y = tl.sum(total, 1)
    if HAS_SCALE:
        y *= tl.load(scale_ptr + output, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        y += tl.load(bias_ptr + output, mask=inside, other=0.0).to(tl.float32)
    if GATE != "":
        up = tl.sum(total_up, 1)
        if HAS_SCALE:
            up *= tl.load(scale_ptr + out_features + output, mask=inside, other=0.0).to(tl.float32)
        if HAS_BIAS:
            up += tl.load(bias_ptr + out_features + output, mask=inside, other=0.0).to(tl.float32)
        # Rounded where the two ops round.
        gate = activate(y.to(dtype).to(tl.float32), GATE).to(dtype).to(tl.float32)
        y = gate * up.to(dtype).to(tl.float32)
    if HAS_ONTO:
        y += tl.load(onto_ptr + output, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + output, y.to(dtype), mask=inside)


@triton.jit
def _several_rows(
    x_ptr,
    w_ptr,
    scale_ptr,
    bias_ptr,
    onto_ptr,
    y_ptr,
    x_stride,
    rows,
    w_stride,
    out_features,
    in_features,
    HAS_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_ONTO: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    STAGES: tl.constexpr,
):
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.arange(0, ROWS)
    total = tl.zeros((OUTPUTS, ROWS), tl.float32)
    for start in tl.range(0, in_features, INPUTS, num_stages=STAGES):
        column = start + tl.arange(0, INPUTS)
        w = _tile(w_ptr, output, column, w_stride, out_features, in_features, EVEN)
        inside = (row < rows)[None, :] & (column < in_features)[:, None]
        x = tl.load(x_ptr + row[None, :] * x_stride + column[:, None], mask=inside, other=0.0)
        total = tl.dot(w.to(x.dtype), x, total)
    inside = (row < rows)[None, :] & (output < out_features)[:, None]
    place = row[None, :] * out_features + output[:, None]
    if HAS_SCALE:
        total *= tl.load(scale_ptr + output, mask=output < out_features, other=0.0).to(tl.float32)[:, None]
    if HAS_BIAS:
        total += tl.load(bias_ptr + output, mask=output < out_features, other=0.0).to(tl.float32)[:, None]
    if HAS_ONTO:
        total += tl.load(onto_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + place, total.to(y_ptr.dtype.element_ty), mask=inside)


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None, onto: Tensor | None, config: Config, scale: Tensor | None = None
) -> Tensor:
    """`x [T, in]` with few rows, `weight [out, in]`, `bias [out]` → `[T, out]`.

    `onto [T, out]`, contiguous, is added, and the sum takes its place. A weight in eight bits has a `scale [out]`.
    Floor: the bytes of the weight.
    """
    rows, (out_features, in_features) = x.shape[0], weight.shape
    y = torch.empty(rows, out_features, dtype=x.dtype, device=x.device) if onto is None else onto
    grid = (triton.cdiv(out_features, config.outputs),)
    sizes = weight.stride(0), out_features, in_features
    if rows == 1:
        named = _named(weight, scale, bias, onto, out_features, config, GATE="")
        _one_row[grid](x, weight, scale, bias, onto, y, *sizes, **named)
    else:
        named = _named(weight, scale, bias, onto, out_features, config, ROWS=row_tile(rows))
        _several_rows[grid](x, weight, scale, bias, onto, y, x.stride(0), rows, *sizes, **named)
    return y


def gated_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, config: Config, scale: Tensor | None = None
) -> Tensor:
    """`x [1, in]`, `weight [2 I, in]`, the gate first → `activation(gate) * up [1, I]`; floor: the weight's bytes."""
    inner, in_features = weight.shape[0] // 2, weight.shape[1]
    y = torch.empty(1, inner, dtype=x.dtype, device=x.device)
    # Each program reads two tiles.
    config = config._replace(outputs=max(1, config.outputs // 2))
    named = _named(weight, scale, bias, None, inner, config, GATE=kernel_name(activation))
    grid = (triton.cdiv(inner, config.outputs),)
    _one_row[grid](x, weight, scale, bias, None, y, weight.stride(0), inner, in_features, **named)
    return y


def row_tile(rows: int) -> int:
    """Rows of the tile that holds so many."""
    return 1 if rows == 1 else max(MOST_ROWS, 1 << (rows - 1).bit_length())


def _named(
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    onto: Tensor | None,
    out_features: int,
    config: Config,
    **own: Any,
) -> dict[str, Any]:
    """What both kernels are told by name, and what one of them is."""
    return own | {
        "HAS_SCALE": scale is not None,
        "HAS_BIAS": bias is not None,
        "HAS_ONTO": onto is not None,
        "EVEN": out_features % config.outputs == 0 and weight.shape[1] % config.inputs == 0,
        "OUTPUTS": config.outputs,
        "INPUTS": config.inputs,
        "STAGES": config.stages,
        "num_warps": config.warps,
    }
