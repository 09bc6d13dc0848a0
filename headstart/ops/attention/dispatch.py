"""One door to the paths of paged attention."""

from torch import Tensor

from headstart.ops.attention.dense import attend_densely
from headstart.ops.attention.layout import RaggedLayout, Selection
from headstart.ops.attention.reference import paged_attention_reference


def paged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    layout: RaggedLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    selection: Selection | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal attention of each sequence's last rows over its cached keys.

    Args:
        q: `[T, H, D]`; row i of a sequence with Q rows and N keys sees keys 0 .. N - Q + i.
        k_pages, v_pages: `[P, page_size, Hkv, D]`, H a multiple of Hkv; this step's keys are already in them.
        layout: which rows and pages belong together.
        scale: factor on the scores.
        window: a row sees its own and the `window - 1` keys before it; None sees all.
        softcap: scores become `softcap * tanh(scores / softcap)`.
        selection: pages outside it are skipped.

    Returns:
        `out [T, H, D]` in q's dtype and `lse [T, H]` float32.
    """
    if softcap is not None or selection is not None:
        return paged_attention_reference(
            q, k_pages, v_pages, layout, scale=scale, window=window, softcap=softcap, selection=selection
        )
    return attend_densely(q, k_pages, v_pages, layout, scale, window)
