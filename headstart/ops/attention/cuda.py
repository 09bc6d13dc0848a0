"""Paged attention on a GPU: short sequences by the Triton kernel, chunks by whatever was measured to be fastest."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from headstart.ops.attention.choice import Kind, choices_of
from headstart.ops.attention.launch import SHORT, Launch, empty_like, plan
from headstart.ops.attention.layout import RaggedLayout
from headstart.ops.attention.library import DENSE, Dense, attend_alone, attend_chunks
from headstart.ops.attention.selection import KeyBlocks
from headstart.ops.attention.shape import Shape

# Shorter chunks are the kernel's: the library takes long to prepare for lengths that it has not met.
_LIBRARY_ROWS = 1024
# It takes 40 to 100 ms to prepare for one (H100, PyTorch 2.11), as long as many prompts take to be read.
_GRID = 1024
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
    shape: Shape | None = None,
    causal: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """`paged_attention` on a GPU, by the named path (`choice.PATHS`) or the fastest."""
    key = (
        *(q.shape, q.stride(), q.dtype, k_pages.shape, k_pages.stride(), v_pages.stride(), k_pages.dtype),
        *((k_pages.data_ptr() | v_pages.data_ptr()) % 16, scale, window, softcap, tree is None, path, shape),
        *(causal, dtype),
        *(() if blocks is None else blocks.kind),
    )
    route = layout.routes.get(key)
    if route is None:
        rule = {"scale": scale, "window": window, "softcap": softcap, "blocks": blocks, "tree": tree, "causal": causal}
        route = layout.routes[key] = _route(q, k_pages, v_pages, layout, rule, path, shape)
    if route.dense is not None and len(layout.query_lengths) == 1 and dtype in (None, q.dtype):
        return attend_alone(route.dense, q, k_pages, v_pages, layout, scale)
    out, lse = empty_like(q, dtype)
    for launch in route.launches:
        launch.run(q, k_pages, v_pages, layout.index, blocks, tree, out, lse)
    if route.dense is not None:
        attend_chunks(route.dense, q, k_pages, v_pages, layout, route.chunks, scale, out, lse)
    return out, lse


@dataclass(frozen=True)
class _Route:
    """How a step is computed: launches of the kernel for some sequences, the library for the other ones, if any."""

    launches: list[Launch]
    dense: Dense | None = None
    chunks: list[int] = field(default_factory=list)


def _route(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    layout: RaggedLayout,
    rule: dict[str, Any],
    path: str | None,
    shape: Shape | None,
) -> _Route:
    """What all layers of a step whose tensors are alike have in common."""
    window = rule["window"]
    plain = rule["causal"] and rule["blocks"] is None and rule["tree"] is None and rule["softcap"] is None
    plain = plain and (window is None or window >= layout.index.max_kv)
    chunks = _chunks(q, k_pages, layout) if plain and path != "triton" else []
    if chunks:
        path = path or _fastest(q, k_pages, layout, chunks)
    dense = DENSE.get(path or "") if chunks else None
    if dense is None:
        chunks = []
    lengths = None
    if layout.on_host:
        left = set(chunks)
        lengths = [n for s, n in enumerate(layout.query_lengths) if s not in left]
    together = layout.index.max_query > SHORT and layout.is_contiguous
    given: dict[str, Any] = {"contiguous": together, "lengths": lengths, "shapes": (None, shape)}
    launches = plan(q, k_pages, v_pages, layout.index, **rule, **given)
    return _Route(launches, dense, chunks)


def _chunks(q: Tensor, k_pages: Tensor, layout: RaggedLayout) -> list[int]:
    """The sequences that a library kernel could compute well: all from some length on, or none."""
    fits = q.dtype in _LIBRARY_DTYPES and k_pages.dtype == q.dtype and layout.index.max_query >= _LIBRARY_ROWS
    if not fits or not layout.on_host or torch.cuda.is_current_stream_capturing():
        return []
    long = [s for s, queries in enumerate(layout.query_lengths) if queries >= _LIBRARY_ROWS]
    # Whole chunks of a long prompt have lengths that return; those of a prompt's end would be prepared for once each.
    known = all(layout.query_lengths[s] % _GRID == layout.kv_lengths[s] % _GRID == 0 for s in long)
    return long if known else []


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
