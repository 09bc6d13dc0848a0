"""Attention of a GPU's queries over keys that live in the host's memory.

Decodes go to the keys: a query of some kilobytes travels, and the processor attends where the keys lie. Chunks bring
the keys to them: their arithmetic is the GPU's, and each key serves many rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from headstart.ops.attention.dispatch import paged_attention
from headstart.ops.attention.layout import RaggedLayout
from headstart.ops.attention.shape import Shape

# A step whose sequences all have at most so many rows goes to the host.
_FEW_ROWS = 16


def attend_host_pages(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    layout: RaggedLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    shape: Shape | None = None,
) -> tuple[Tensor, Tensor]:
    """`paged_attention` of `q [T, H, D]` over pages `[P, page_size, Hkv, D]` in the host's memory.

    Args:
        shape: of the GPU kernel's launch for chunks.

    Returns:
        `out [T, H, D]` and `lse [T, H]` float32, where q is.
    """
    rule = {"scale": scale, "window": window, "softcap": softcap}
    if max(layout.query_lengths) <= _FEW_ROWS:
        here = _moved(layout, layout.page_tables, k_pages.device)
        out, lse = paged_attention(q.to(k_pages.device), k_pages, v_pages, here, **rule)
        return out.to(q.device), lse.to(q.device)
    counts = [-(-length // layout.page_size) for length in layout.kv_lengths]
    used = [page for table, count in zip(layout.page_tables, counts, strict=True) for page in table[:count]]
    keys, values = (_brought(pool, used, q.device) for pool in (k_pages, v_pages))
    firsts = [sum(counts[:s]) for s in range(len(counts))]
    tables = [range(first, first + count) for first, count in zip(firsts, counts, strict=True)]
    return paged_attention(q, keys, values, _moved(layout, tables, q.device), **rule, shape=shape)


def _moved(layout: RaggedLayout, tables: Sequence[Sequence[int]], device: torch.device) -> RaggedLayout:
    """The layout over other page tables on another device, made once a step and read in each such layer."""
    key = "host pages", device
    if key not in layout.routes:
        layout.routes[key] = RaggedLayout(layout.query_lengths, layout.kv_lengths, tables, layout.page_size, device)
    return layout.routes[key]


def _brought(pool: Tensor, pages: list[int], device: torch.device) -> Tensor:
    """A copy of these pages on the device; pages that follow each other are read in place."""
    first = pages[0]
    if pages == list(range(first, first + len(pages))):
        return pool[first : first + len(pages)].to(device, non_blocking=True)
    return pool[torch.tensor(pages)].to(device)
