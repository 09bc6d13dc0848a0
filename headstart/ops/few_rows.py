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

_chosen: dict[tuple[bool, torch.Size, torch.dtype, torch.device], "Config | None"] = {}


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


def choice(x: Tensor, weight: Tensor) -> "Config | None":
    """The kernel's tiling that is fastest for products of this shape; None is cuBLAS."""
    key = (x.shape[0] > 1, weight.shape, x.dtype, x.device)
    if key not in _chosen:
        if torch.cuda.is_current_stream_capturing():
            return None
        _chosen[key] = _fastest(x, weight)
    return _chosen[key]


def candidates(rows: int) -> "tuple[Config, ...]":
    """The tilings that are tried."""
    from headstart.ops.kernels import few_rows

    return few_rows.ONE_ROW if rows == 1 else few_rows.SEVERAL_ROWS


def _fastest(x: Tensor, weight: Tensor) -> "Config | None":
    from headstart.ops.kernels import few_rows

    try:
        cold = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=x.device)
        best, least = None, _MARGIN * seconds(lambda: F.linear(x, weight), cold.zero_, _REPEATS)
        for config in candidates(x.shape[0]):
            taken = seconds(lambda config=config: few_rows.product(x, weight, None, None, config), cold.zero_, _REPEATS)
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
