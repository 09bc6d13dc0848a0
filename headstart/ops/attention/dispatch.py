"""One door to the paths of paged attention."""

import logging
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from headstart.ops.attention.choice import forced
from headstart.ops.attention.dense import attend_densely
from headstart.ops.attention.layout import RaggedLayout
from headstart.ops.attention.reference import paged_attention_reference
from headstart.ops.attention.selection import AnySelection
from headstart.ops.attention.shape import Shape
from headstart.ops.attention.sparse import attend_sparsely

log = logging.getLogger(__name__)


def paged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    layout: RaggedLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    selection: AnySelection | None = None,
    tree: Tensor | None = None,
    path: str | None = None,
    shape: Shape | None = None,
    causal: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal attention of each sequence's last rows over its cached keys.

    Args:
        q: `[T, H, D]`; row i of a sequence with Q rows and N keys sees keys 0 .. N - Q + i.
        k_pages, v_pages: `[P, page_size, Hkv, D]`, H a multiple of Hkv; this step's keys are already in them.
        layout: which rows and pages belong together.
        scale: factor on the scores.
        window: a row sees its own and the `window - 1` keys before it; None sees all.
        softcap: scores become `softcap * tanh(scores / softcap)`.
        selection: what lies outside it is skipped, and costs nothing.
        tree: int64 `[T]`, for drafts that branch: bit j of a row's mask says whether it sees the j-th of its
            sequence's rows, itself included; keys before these it sees all. A sequence with more than 64 rows is
            causal whatever its masks say. A window counts places in the cache.
        path: to take on a GPU (triton, cudnn, flash, plain), before what HEADSTART_ATTENTION says; None takes the
            fastest.
        shape: of the Triton kernel's launch for chunks, instead of the usual one.
        causal: without it every row sees all keys of its sequence, of which there may be fewer than rows; without
            window and tree.
        dtype: of the result (default: that of q); parts that will be merged want float32.

    Returns:
        `out [T, H, D]` in that dtype and `lse [T, H]` float32.

    Raises:
        HeadstartError: the environment variable HEADSTART_ATTENTION names no path (triton, cudnn, flash, plain).
    """
    assert causal or (window is None and tree is None), "a window or a tree says which keys come later"
    rule = {"scale": scale, "window": window, "softcap": softcap, "causal": causal}
    path = (path or forced()) if q.is_cuda else "plain"
    if path != "plain" and _kernel_can(q, k_pages):
        from headstart.ops.attention.cuda import attend_over_pages

        blocks = None if selection is None else selection.key_blocks(layout)
        return attend_over_pages(
            q, k_pages, v_pages, layout, **rule, blocks=blocks, tree=tree, path=path, shape=shape, dtype=dtype
        )
    if selection is not None and tree is None and causal:
        out, lse = attend_sparsely(
            q,
            k_pages,
            v_pages,
            layout,
            scale=scale,
            window=window,
            softcap=softcap,
            selection=selection.key_blocks(layout),
        )
    elif softcap is not None or selection is not None or tree is not None:
        out, lse = paged_attention_reference(q, k_pages, v_pages, layout, **rule, selection=selection, tree=tree)
    else:
        out, lse = attend_densely(q, k_pages, v_pages, layout, scale, window, causal)
    return out.to(dtype or q.dtype), lse


def _kernel_can(q: Tensor, k_pages: Tensor) -> bool:
    """Whether the Triton kernel can compute this; what keeps it from doing so is said once."""
    if not _has_triton():
        return _say_once("there is no Triton")
    from headstart.ops.attention.launch import lacks

    lacking = lacks(q, k_pages)
    return lacking is None or _say_once(f"the kernel knows no {lacking}")


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _say_once(why: str) -> bool:
    log.warning("attention runs without its kernel, which is slow: %s", why)
    return False
