"""Weights in eight bits: quantised once, and multiplied without ever becoming whole matrices of wide numbers.

What a product of few rows costs is reading its weight, so eight bits halve it. `int8` keeps the inputs as they are.
`fp8` (e4m3) multiplies many rows in fp8 on GPUs that can, with inputs scaled by row; few rows, and other devices,
keep them too. Every output has a scale of its own.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.ops import few_rows, kernels
from headstart.ops.activation import gated
from headstart.ops.linear import float32_buffer, widened_rows

QUANTIZATIONS = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
"""The dtype of each kind of quantised weights."""

# Rows up to which PyTorch's product of bfloat16 and int8 beats widening the weight in cache, on CPUs.
_PACKED_ROWS = 16
# That product reads so many inputs at a time, also beyond the last.
_PACKED_INPUTS = 32
# Up to so many rows a kernel that reads the weight as it is may beat what reads it more than once.
_FEW_ROWS = 64
_LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
# Elements that are quantised at a time, and widened at a time.
_BLOCK = 1 << 24
_CACHE_BLOCK = 1 << 19
# `torch._scaled_mm` wants sizes that are multiples of this.
_ALIGNED = 16


class QuantizedWeight(NamedTuple):
    """A weight in eight bits: `values * scale`.

    Attributes:
        values: `[..., out, in]`, fp8 or int8, contiguous.
        scale: `[..., out]`, float32 for fp8, bfloat16 for int8.
    """

    values: Tensor
    scale: Tensor

    @property
    def nbytes(self) -> int:
        """Of both."""
        return self.values.nbytes + self.scale.nbytes


def quantize(weight: Tensor, kind: str) -> QuantizedWeight:
    """Round `[..., out, in]` to eight bits, with a scale for each output that makes its largest number just fit.

    Args:
        weight: of any floating dtype and memory order.
        kind: a name in `QUANTIZATIONS`.
    """
    dtype = QUANTIZATIONS[kind]
    shape, largest = weight.shape, _LARGEST[dtype]
    # A scale of int8 is rounded first, so that the kernel that takes bfloat16 only has the same one.
    scale_dtype = torch.bfloat16 if dtype == torch.int8 else torch.float32
    values = torch.empty(shape, dtype=dtype, device=weight.device)
    scale = torch.empty(shape[:-1], dtype=scale_dtype, device=weight.device)
    height = max(1, _BLOCK // shape[-1])
    for block, into, scales in zip(
        *(each.reshape(-1, *each.shape[-2:]) if each.dim() > 2 else each[None] for each in (weight, values)),
        scale.reshape(-1, shape[-2]),
        strict=True,
    ):
        for top in range(0, shape[-2], height):
            part = slice(top, top + height)
            wide = block[part].float()
            scales[part] = (wide.abs().amax(-1) / largest).clamp(min=torch.finfo(torch.float32).tiny)
            wide = wide / scales[part].float()[:, None]
            into[part] = (wide.round_() if dtype == torch.int8 else wide).clamp_(-largest, largest).to(dtype)
    return QuantizedWeight(values, scale)


def dequantize(weight: QuantizedWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """`[..., out, in]`, each number rounded once."""
    return (weight.values.float() * weight.scale.float()[..., None]).to(dtype)


def quantized_linear(
    x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None, onto: Tensor | None = None
) -> Tensor:
    """`headstart.ops.linear.linear` with a quantised weight.

    Args:
        x: `[T, in]`.
        weight: `[out, in]`.
        bias: `[out]`.
        onto: `[T, out]`, what the product is added to; on a GPU the sum may take its place.

    Returns:
        `[T, out]` in x's dtype.
    """
    if _takes(x, weight, bias, onto) and (config := few_rows.choice(x, *weight, lambda: _many_rows(x, weight))):
        from headstart.ops.kernels import few_rows as fused

        return fused.product(x, weight.values, bias, onto, config, weight.scale)
    y = _many_rows(x, weight) if x.is_cuda else _on_cpu(x, weight)
    y = y if bias is None else y + bias
    return y if onto is None else onto + y


def quantized_gated_linear(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, activation: str) -> Tensor:
    """`x [T, in]`, `weight [2 I, in]`, the gate first → `activation(gate) * up [T, I]`."""
    if len(x) == 1 and _takes(x, weight, bias, None):
        config = few_rows.choice(x, *weight, lambda: _many_rows(x, weight))
        if config is not None:
            from headstart.ops.kernels import few_rows as fused

            return fused.gated_product(x, weight.values, bias, activation, config, weight.scale)
    return gated(quantized_linear(x, weight, bias), activation)


def _takes(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, onto: Tensor | None) -> bool:
    """Whether the kernel of few rows could compute this."""
    return (
        0 < len(x) <= _FEW_ROWS
        and x.dtype in (torch.bfloat16, torch.float16)
        and x.stride(1) == 1
        and (onto is None or onto.is_contiguous())
        and kernels.run_on(x, *weight, bias, onto)
    )


def _many_rows(x: Tensor, weight: QuantizedWeight) -> Tensor:
    """The product on a GPU: in fp8 where it can, else with the widened weight."""
    values, scale = weight
    aligned = values.shape[0] % _ALIGNED == values.shape[1] % _ALIGNED == 0
    if values.dtype == torch.float8_e4m3fn and aligned and _has_fp8(x.device) and len(x):
        rows, row_scale = quantize_rows(x)
        # Scales by row come with results in bfloat16 only.
        scaled_mm = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]
        y = scaled_mm(rows, values.t(), row_scale, scale[None], out_dtype=torch.bfloat16, use_fast_accum=True)
        return y.to(x.dtype)
    return F.linear(x, values.to(x.dtype)) * scale.to(x.dtype)


def _has_fp8(device: torch.device) -> bool:
    """Whether the matrix units of a GPU multiply fp8."""
    return torch.cuda.get_device_capability(device) >= (8, 9)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x [T, N]` → fp8 `[T, N]` and float32 `[T, 1]`, whose product it is: the largest of each row just fits."""
    if x.stride(1) == 1 and kernels.run_on(x):
        from headstart.ops.kernels import quantize_rows as fused

        return fused.quantize_rows(x)
    wide = x.float()
    scale = (wide.abs().amax(-1, keepdim=True) / 448.0).clamp(min=torch.finfo(torch.float32).tiny)
    return (wide / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn), scale


def _on_cpu(x: Tensor, weight: QuantizedWeight) -> Tensor:
    """Few rows by the packed product, which has bfloat16 inputs; more, and fp8, with the weight widened in cache."""
    values, scale = weight
    if values.dtype == torch.int8:
        if 0 < len(x) <= _PACKED_ROWS and x.shape[1] % _PACKED_INPUTS == 0:
            packed = torch._weight_int8pack_mm  # pyright: ignore[reportPrivateImportUsage]
            return packed(x.bfloat16().contiguous(), values, scale).to(x.dtype)
        return (widened_rows(x.float(), values) * scale.float()).to(x.dtype)
    y = torch.empty(len(x), len(values), device=x.device)
    wide, height = x.float(), max(1, _CACHE_BLOCK // values.shape[1])
    buffer = float32_buffer(height * values.shape[1])
    for top in range(0, len(values), height):
        part = values[top : top + height]
        block = buffer[: part.numel()].view(part.shape)
        torch.mm(wide, widen_e4m3(part, block).t(), out=y[:, top : top + height])
    return (y * scale).to(x.dtype)


def widen_e4m3(values: Tensor, into: Tensor) -> Tensor:
    """fp8 e4m3 → `into`, of the same shape: exact, and many times faster than PyTorch's own conversion on CPUs."""
    # Exponent and mantissa, moved to where float16 has them, mean 2**-8 of the number; the sign was extended.
    bits = values.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(-0x4001)
    return into.copy_(bits.view(torch.float16)).mul_(256.0)
