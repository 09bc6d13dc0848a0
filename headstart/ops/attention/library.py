"""Prefill chunks through the library's dense kernels (cuDNN, flash) over pages on a GPU.

These kernels know whole sequences only, with queries and keys of equal number where they are causal. A chunk therefore
attends to the keys before it and to its own apart, and `merge_rows` puts the two together.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from headstart.ops.attention.kernel_merge import merge_rows_kernel
from headstart.ops.attention.launch import empty_like, power_of_2
from headstart.ops.attention.layout import RaggedLayout

Dense = Callable[[Tensor, Tensor, Tensor, float, bool], tuple[Tensor, Tensor]]
"""`q [1, H, Q, D]`, `k, v [1, Hkv, N, D]`, scale, causal → `out [1, H, Q, D]`, `lse [H, Q]` float32."""


def cudnn(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """cuDNN's fused attention, a `Dense`."""
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, True, 0.0, causal, False, scale=scale
    )
    return out, lse.reshape(q.shape[1:3])


def flash(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """PyTorch's own flash attention, a `Dense`."""
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)
    return out, lse.reshape(q.shape[1:3])


DENSE: dict[str, Dense] = {"cudnn": cudnn, "flash": flash}
"""The library's kernels by name."""


def attend_alone(
    dense: Dense, q: Tensor, k_pages: Tensor, v_pages: Tensor, layout: RaggedLayout, scale: float
) -> tuple[Tensor, Tensor]:
    """Causal attention of a step that is one chunk: `out [T, H, D]`, `lse [T, H]`, which may be views."""
    if layout.kv_lengths[0] > layout.num_rows:
        out, lse = empty_like(q)
        attend_chunks(dense, q, k_pages, v_pages, layout, [0], scale, out, lse)
        return out, lse
    keys, values = (_keys(layout, 0, pages) for pages in (k_pages, v_pages))
    out, lse = dense(_batched(q), keys, values, scale, True)
    return out[0].transpose(0, 1), lse.t()


def attend_chunks(
    dense: Dense,
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    layout: RaggedLayout,
    sequences: list[int],
    scale: float,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Causal attention of these sequences' rows over their cached keys, into their rows of `out` and `lse`."""
    for s in sequences:
        first, last = layout.query_starts[s : s + 2]
        before = layout.kv_lengths[s] - (last - first)
        rows = _batched(q[first:last])
        keys, values = (_keys(layout, s, pages) for pages in (k_pages, v_pages))
        own, own_lse = dense(rows, keys[:, :, before:], values[:, :, before:], scale, True)
        if before:
            past, past_lse = dense(rows, keys[:, :, :before], values[:, :, :before], scale, False)
            merge_rows(past[0], past_lse, own[0], own_lse, out[first:last], lse[first:last])
        else:
            out[first:last] = own[0].transpose(0, 1)
            lse[first:last] = own_lse.t()


def _keys(layout: RaggedLayout, s: int, pages: Tensor) -> Tensor:
    """`[1, Hkv, N, D]`: what a sequence holds in the pages `[P, page_size, Hkv, D]`; a view where they follow each
    other."""
    first = layout.first_pages[s]
    if first is None:
        return _batched(layout.gather(s, pages)[0])
    page, row, head, one = pages.stride()
    # One view instead of five: the host has little time in a short step.
    shape = (1, pages.shape[2], layout.kv_lengths[s], pages.shape[3])
    return pages.as_strided(shape, (page, head, row, one), pages.storage_offset() + first * page)


def _batched(x: Tensor) -> Tensor:
    """`[N, H, D]` as `[1, H, N, D]`."""
    return x.transpose(0, 1)[None]


def merge_rows(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor, out: Tensor, lse: Tensor) -> None:
    """`merge_attention` in one launch.

    Args:
        out_a, out_b: `[H, R, D]`, over disjoint keys.
        lse_a, lse_b: `[H, R]` float32.
        out: `[R, H, D]`, written.
        lse: `[R, H]` float32, written.
    """
    rows, heads, head_dim = out.shape
    block = 8
    kernel: Any = merge_rows_kernel
    kernel[(-(-rows // block), heads)](
        out_a, lse_a, out_b, lse_b, out, lse, rows,
        *out_a.stride()[:2], *lse_a.stride(), *out_b.stride()[:2], *lse_b.stride(), *out.stride()[:2], *lse.stride(),
        HEAD_DIM=head_dim, BLOCK_D=power_of_2(head_dim), BLOCK_R=block, num_warps=4,
    )  # fmt: skip
