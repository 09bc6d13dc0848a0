"""Paged attention on a GPU: short sequences by the Triton kernel, chunks by whatever was measured to be fastest."""

from itertools import pairwise

import torch
from torch import Tensor

from headstart.ops.attention.choice import Kind, choices_of
from headstart.ops.attention.launch import SHORT, attend_on_gpu
from headstart.ops.attention.layout import KeyBlocks, RaggedLayout
from headstart.ops.attention.library import DENSE, attend_chunks

# Shorter chunks are the kernel's: the library takes long to prepare for lengths that it has not met.
_LIBRARY_ROWS = 1024
_LIBRARY_DTYPES = (torch.bfloat16, torch.float16)


def attend_over_pages(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    layout: RaggedLayout,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    blocks: KeyBlocks | None,
    tree: Tensor | None,
    path: str | None,
) -> tuple[Tensor, Tensor]:
    """`paged_attention` on a GPU, by the named path (`choice.PATHS`) or the fastest."""
    rule = {"scale": scale, "window": window, "softcap": softcap, "blocks": blocks, "tree": tree}
    plain = blocks is None and tree is None and softcap is None and (window is None or window >= layout.index.max_kv)
    chunks = _chunks(q, k_pages, layout) if plain and path != "triton" else []
    together = layout.index.max_query > SHORT and layout.is_contiguous
    if not chunks:
        return attend_on_gpu(q, k_pages, v_pages, layout.index, contiguous=together, **rule)
    path = path or _fastest(q, k_pages, layout, chunks)
    if path == "triton":
        return attend_on_gpu(q, k_pages, v_pages, layout.index, contiguous=together, **rule)
    shortest = min(layout.query_lengths[s] for s in chunks)
    out, lse = attend_on_gpu(q, k_pages, v_pages, layout.index, contiguous=together, longest=shortest - 1, **rule)
    attend_chunks(DENSE[path], q, k_pages, v_pages, layout, chunks, scale, out, lse)
    return out, lse


def _chunks(q: Tensor, k_pages: Tensor, layout: RaggedLayout) -> list[int]:
    """The sequences that a library kernel could compute: all from some length on, and at least one."""
    fits = q.dtype in _LIBRARY_DTYPES and k_pages.dtype == q.dtype and layout.index.max_query >= _LIBRARY_ROWS
    if not fits or not layout.on_host or torch.cuda.is_current_stream_capturing():
        return []
    return [s for s, queries in enumerate(layout.query_lengths) if queries >= _LIBRARY_ROWS]


def _fastest(q: Tensor, k_pages: Tensor, layout: RaggedLayout, chunks: list[int]) -> str:
    """The path that was measured to be fastest for the largest of the chunks."""
    largest = max(chunks, key=lambda s: layout.query_lengths[s] * layout.kv_lengths[s])
    lengths = layout.query_lengths[largest], layout.kv_lengths[largest]
    kind = Kind.of(q.shape[1], k_pages.shape[2], q.shape[2], q.dtype, *lengths)
    return choices_of(q.device).best(kind, lambda kind: measure(kind, q.device, k_pages.shape[1]))


def measure(kind: Kind, device: torch.device, page_size: int, repeats: int = 3) -> dict[str, float]:
    """Seconds that each path takes for one chunk of a kind, over pages that follow each other, without the first run.

    A path that cannot do it is left out.
    """
    dtype: torch.dtype = getattr(torch, kind.dtype.removeprefix("torch."))
    pages = -(-kind.keys // page_size)
    layout = RaggedLayout([kind.rows], [kind.keys], [range(pages)], page_size, device)
    q = torch.randn(kind.rows, kind.heads, kind.head_dim, dtype=dtype, device=device)
    k, v = torch.randn(2, pages, page_size, kind.kv_heads, kind.head_dim, dtype=dtype, device=device)
    rule = {"scale": kind.head_dim**-0.5, "window": None, "softcap": None, "blocks": None, "tree": None}
    taken = {}
    for path in ("triton", *DENSE):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        try:
            attend_over_pages(q, k, v, layout, **rule, path=path)
            for event in events[:-1]:
                event.record()
                attend_over_pages(q, k, v, layout, **rule, path=path)
            events[-1].record()
            torch.cuda.synchronize(device)
        except RuntimeError:
            if path == "triton":
                raise
            continue
        taken[path] = min(a.elapsed_time(b) for a, b in pairwise(events)) / 1e3
    return taken
