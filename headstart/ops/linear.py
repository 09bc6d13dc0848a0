"""`y = x W^T + b` for dense weights: the memory order they want on each device, and the fastest exact product.

Two facts about CPUs shape this file. A product with one row is bound by reading the weight, and reads a wide one
(more outputs than inputs) fastest when it lies as `[in, out]`, a deep one when it lies as `[out, in]`. A product
with many rows in bfloat16 is several times slower than in float32 on a CPU without bfloat16 units, so there the
weight is widened block by block in cache and multiplied in float32, which also rounds less. From how many rows that
pays is measured once per process, not assumed.
"""

import math
import threading
import time
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.ops import few_rows, kernels
from headstart.ops.activation import gated

# A block of the widened weight has to stay in a core's L2 cache (2 MiB of float32 here) to be worth widening.
_BLOCK_ELEMENTS = 1 << 19
_BLOCK_COLUMNS = 8192
# With this many rows the product dominates and one widening of the whole weight is as good as blocks.
_WHOLE_ROWS = 256
# A first product that takes so many times what the other takes has not only been slow for want of a warm-up; in float16
# some CPUs take seconds for what float32 does in milliseconds.
_HOPELESS = 20.0


def empty_weight(out_features: int, in_features: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """An uninitialised weight `[out, in]`, laid out in memory as is fastest on the device.

    On a CPU a wide weight is a transposed view (strides `(1, out)`): fill it with `copy_`, never assume contiguity.
    """
    if torch.device(device).type == "cpu" and out_features >= in_features:
        return torch.empty(in_features, out_features, dtype=dtype, device=device).t()
    return torch.empty(out_features, in_features, dtype=dtype, device=device)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
    """The dense product, accumulated in float32.

    Args:
        x: `[T, in]`.
        weight: `[out, in]`.
        bias: `[out]`.
        onto: `[T, out]`, what the product is added to; on a GPU the sum takes its place.

    Returns:
        `[T, out]` in x's dtype.
    """
    if few_rows.takes(x, weight, bias, onto) and (config := few_rows.choice(x, weight)) is not None:
        from headstart.ops.kernels import few_rows as fused

        return fused.product(x, weight, bias, onto, config)
    if onto is not None:
        if bias is None and kernels.run_on(x, weight, onto):
            return onto.addmm_(x, weight.t())
        return onto + linear(x, weight, bias)
    if x.is_cuda or x.dtype == torch.float32 or x.requires_grad or weight.requires_grad:
        return F.linear(x, weight, bias)
    if x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16):
        first = widening_pays_from(x.dtype)
        if first is not None and x.shape[0] >= first:
            return _widened_linear(x, weight, bias)
        if x.shape[0] == 1 and weight.is_contiguous():
            y = torch.mv(weight, x[0])
            return (y if bias is None else y + bias)[None]
    return F.linear(x, weight, bias)


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """`x [T, in]`, `weight [2 I, in]`, the gate first → `activation(gate) * up [T, I]`."""
    if x.shape[0] == 1 and few_rows.takes(x, weight, bias, None):
        config = few_rows.choice(x, weight)
        if config is not None:
            from headstart.ops.kernels import few_rows as fused

            return fused.gated_product(x, weight, bias, activation, config)
    return gated(linear(x, weight, bias), activation)


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The plain product in float64, rounded once."""
    y = x.double() @ weight.double().t()
    return (y if bias is None else y + bias.double()).to(x.dtype)


def _widened_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product in float32 with the weight widened block by block into a small buffer."""
    wide = x.float()
    y = widened_rows(wide, weight) if weight.is_contiguous() else _widened_columns(wide, weight.t())
    return (y if bias is None else y.add_(bias)).to(x.dtype)


def widened_rows(x: Tensor, weight: Tensor) -> Tensor:
    """`x [T, in]` float32, `weight [out, in]` contiguous, of any dtype → float32 `[T, out]`, some outputs at a time."""
    out_features, in_features = weight.shape
    y = torch.empty(x.shape[0], out_features)
    elements = weight.numel() if x.shape[0] >= _WHOLE_ROWS else _BLOCK_ELEMENTS
    height = max(1, min(out_features, elements // in_features))
    buffer = float32_buffer(height * in_features)
    for top in range(0, out_features, height):
        bottom = min(top + height, out_features)
        block = buffer[: (bottom - top) * in_features].view(bottom - top, in_features)
        block.copy_(weight[top:bottom])
        torch.mm(x, block.t(), out=y[:, top:bottom])
    return y


def _widened_columns(x: Tensor, weight: Tensor) -> Tensor:
    """`x [T, in]` float32, `weight [in, out]` → float32 `[T, out]`, some inputs at a time, summed up."""
    rows, (in_features, out_features) = x.shape[0], weight.shape
    y = torch.empty(rows, out_features)
    width = min(out_features, _BLOCK_COLUMNS)
    depth = in_features if rows >= _WHOLE_ROWS else max(1, min(in_features, _BLOCK_ELEMENTS // width))
    buffer = float32_buffer(depth * width)
    for left in range(0, out_features, width):
        right = min(left + width, out_features)
        part = y[:, left:right]
        for top in range(0, in_features, depth):
            bottom = min(top + depth, in_features)
            block = buffer[: (bottom - top) * (right - left)].view(bottom - top, right - left)
            block.copy_(weight[top:bottom, left:right])
            if top == 0:
                torch.mm(x[:, top:bottom], block, out=part)
            else:
                part.addmm_(x[:, top:bottom], block)
    return y


_scratch = threading.local()


def float32_buffer(elements: int) -> Tensor:
    """A float32 buffer that each thread keeps between calls, since fresh pages cost more than the widening."""
    buffer: Tensor | None = getattr(_scratch, "buffer", None)
    if buffer is None or buffer.numel() < elements:
        with torch.inference_mode(False):
            buffer = _scratch.buffer = torch.empty(elements)
    return buffer


@lru_cache(maxsize=4)
def widening_pays_from(dtype: torch.dtype) -> int | None:
    """The least number of rows from which the float32 product beats the native one here; None when it never does."""
    # On one thread: with several, a neighbour on the machine would decide what is a property of the CPU.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            weight = empty_weight(4096, 1024, dtype).fill_(0.01)
            first = None
            for rows in (64, 32, 16, 8, 4, 2):
                x = torch.full((rows, 1024), 0.01, dtype=dtype)
                widened = _best_time(lambda x=x: _widened_linear(x, weight, None))
                native = _best_time(lambda x=x: F.linear(x, weight), hopeless=_HOPELESS * widened)
                if widened >= native:
                    break
                first = rows
        return first
    finally:
        torch.set_num_threads(threads)


def _best_time(run: Callable[[], Tensor], repeats: int = 3, hopeless: float = math.inf) -> float:
    """Seconds of the fastest of a few runs, after one that warms up; of that one alone where it is beyond hope."""
    start = time.perf_counter()
    run()
    times = []
    if (first := time.perf_counter() - start) > hopeless:
        return first
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
