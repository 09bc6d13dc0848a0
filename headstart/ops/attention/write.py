"""Puts a step's keys and values into their pages."""

from torch import Tensor


def write_kv(k_pages: Tensor, v_pages: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """Put `k, v [T, Hkv, D]` into `k_pages, v_pages [P, page_size, Hkv, D]` at `slots [T]`."""
    k_pages.flatten(0, 1).index_copy_(0, slots, k.to(k_pages.dtype))
    v_pages.flatten(0, 1).index_copy_(0, slots, v.to(v_pages.dtype))
