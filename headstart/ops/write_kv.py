"""Keys and values into the paged cache, in the cache's dtype."""

import torch
from torch import Tensor

from headstart.ops import kernels


def write_kv(
    k_pages: Tensor,
    v_pages: Tensor,
    k: Tensor,
    v: Tensor,
    slots: Tensor,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Put the keys and values of new rows into their slots.

    Args:
        k_pages, v_pages: `[P, page_size, Hkv, D]`; where their dtype is of eight bits, they hold values divided by
            their scale, and what is beyond its largest number becomes that.
        k, v: `[T, Hkv, D]`.
        slots: `[T]`, page x page size + offset; on a GPU a row with a negative slot is left out.
        k_scale, v_scale: of pages of eight bits.
    """
    largest = torch.finfo(k_pages.dtype).max if k_pages.dtype.itemsize == 1 else 0.0
    if kernels.run_on(k_pages, v_pages, k, v) and _fit_the_kernel(k_pages, v_pages, k, v):
        from headstart.ops.kernels import write_kv as fused

        fused.write_kv(k_pages, v_pages, k, v, slots, k_scale, v_scale, largest)
        return
    for pages, values, scale in ((k_pages, k, k_scale), (v_pages, v, v_scale)):
        if largest:
            values = (values.float() / scale).clamp(-largest, largest).to(pages.dtype)
            # Eight-bit floats have no scatter of their own.
            pages, values = pages.view(torch.uint8), values.view(torch.uint8)
        pages.flatten(0, 1).index_copy_(0, slots, values.to(pages.dtype))


def _fit_the_kernel(k_pages: Tensor, v_pages: Tensor, k: Tensor, v: Tensor) -> bool:
    """Both pages lie alike, and the numbers of a head beside one another."""
    return k_pages.stride() == v_pages.stride() and k.stride(-1) == v.stride(-1) == k_pages.stride(-1) == 1
