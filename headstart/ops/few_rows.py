"""Products of few rows on a GPU by whatever reads the weight fastest: cuBLAS or a kernel, as measured here.

A shape is measured when it is first met outside of a CUDA graph's capture; inside of one, a shape that was not
measured goes to cuBLAS. So whoever captures runs the step once before.
"""

import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.ops import kernels

if TYPE_CHECKING:
    from headstart.ops.kernels.few_rows import Config

MOST_ROWS = 16
# Larger than the level-two cache of any GPU that this runs on: written between two runs, it leaves nothing there.
_FLUSH_BYTES = 128 << 20
_REPEATS = 7
# So long is the device busy with emptying the cache that the host, slow in launching a kernel, is done before it: else
# the launch would be measured, of which a captured step has none.
_FLUSHES = 6
# cuBLAS stays where a kernel is not faster by more than what repeated measurements differ by.
_MARGIN = 0.97

_chosen: dict[tuple[int, torch.Size, torch.dtype, torch.dtype, torch.device], "Config | None"] = {}


def takes(x: Tensor, weight: Tensor, bias: Tensor | None, onto: Tensor | None) -> bool:
    """Whether a kernel could compute this product."""
    return (
        0 < x.shape[0] <= MOST_ROWS
        and x.dtype == weight.dtype
        and x.dtype in (torch.bfloat16, torch.float16)
        and x.stride(1) == weight.stride(1) == 1
        and (onto is None or onto.is_contiguous())
        and kernels.run_on(x, weight, bias, onto)
    )


def choice(
    x: Tensor, weight: Tensor, scale: Tensor | None = None, plain: Callable[[], object] | None = None
) -> "Config | None":
    """The kernel's tiling that is fastest for products of this shape; None is the plain way.

    Args:
        x: `[T, in]`.
        weight: `[out, in]`.
        scale: `[out]` of a weight in eight bits.
        plain: computes the product the plain way (default: cuBLAS).
    """
    from headstart.ops.kernels import few_rows

    key = (few_rows.row_tile(x.shape[0]), weight.shape, weight.dtype, x.dtype, x.device)
    if key not in _chosen:
        if torch.cuda.is_current_stream_capturing():
            return None
        _chosen[key] = _fastest(x, weight, scale, plain or (lambda: F.linear(x, weight)))
    return _chosen[key]


def candidates(rows: int) -> "tuple[Config, ...]":
    """The tilings that are tried."""
    from headstart.ops.kernels import few_rows

    return few_rows.ONE_ROW if rows == 1 else few_rows.SEVERAL_ROWS


def _fastest(x: Tensor, weight: Tensor, scale: Tensor | None, plain: Callable[[], object]) -> "Config | None":
    from triton.runtime.errors import OutOfResources

    from headstart.ops.kernels import few_rows

    def by_kernel(config: "Config") -> Callable[[], object]:
        return lambda: few_rows.product(x, weight, None, None, config, scale)

    try:
        cold = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=x.device)
        best, least = None, _MARGIN * seconds(plain, cold.zero_, _REPEATS)
        for config in candidates(x.shape[0]):
            try:
                taken = seconds(by_kernel(config), cold.zero_, _REPEATS)
            except OutOfResources:
                continue  # more rows make larger tiles than this GPU has shared memory for
            if taken < least:
                best, least = config, taken
    except torch.cuda.OutOfMemoryError:
        return None
    return best


def seconds(run: Callable[[], object], before: Callable[[], object], repeats: int) -> float:
    """The median time of `run` on the GPU, each after `before`, and after one run that compiles."""
    run()
    times = []
    for _ in range(repeats):
        for _ in range(_FLUSHES):
            before()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)
