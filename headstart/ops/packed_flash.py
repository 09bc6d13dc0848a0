"""FlashAttention within packed documents in Triton, forward and backward, dense or over chosen blocks.

The paper's algorithm (arXiv 2205.14135) with rows outside and keys inside; the backward pass computes the scores
anew from each row's log-sum-exp. Memory grows with the tokens, not with their square.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.errors import HeadstartError


class Bounds(NamedTuple):
    """Who sees whom, causally and within documents; see `bounds`.

    Attributes:
        first: int32 `[T]`, the first key that each token sees.
        last: int32 `[T]`, the last token that sees each key.
    """

    first: Tensor
    last: Tensor


def bounds(start: Tensor, window: int | None = None) -> Bounds:
    """Bounds of tokens whose documents begin at `start` int32 `[T]`, and of which each sees `window` at most, itself
    included; the host does not wait."""
    place = torch.arange(start.shape[0], dtype=torch.int32, device=start.device)
    first = start if window is None else torch.maximum(start, place - (window - 1))
    return Bounds(first.contiguous(), torch.searchsorted(first, place, right=True, out_int32=True) - 1)


@dataclass(frozen=True)
class BlockLists:
    """Which blocks of the flat list of tokens look at which; made by `of`.

    Attributes:
        size: tokens of a block.
        keys: int32 `[Hb, B, B]`, for each block of queries the blocks of keys that it looks at, in order.
        key_counts: int32 `[Hb, B]`, how many of each list count.
        queries: int32 `[Hb, B, B]`, for each block of keys the blocks of queries that look at it.
        query_counts: int32 `[Hb, B]`.
    """

    size: int
    keys: Tensor
    key_counts: Tensor
    queries: Tensor
    query_counts: Tensor

    @classmethod
    def of(cls, mask: Tensor, size: int) -> "BlockLists":
        """From a mask `[Hb, B, B]` of blocks of queries by blocks of keys.

        Args:
            mask: bool, B blocks that cover the T tokens; Hb is 1 or a divisor of the query heads. Causality and
                documents hold on top of it, and a token to which nothing is left gets zeros.
            size: tokens of a block, a multiple of 128.

        Raises:
            HeadstartError: the size is no multiple of 128, or the mask is not square.
        """
        if size % 128 or mask.dim() != 3 or mask.shape[1] != mask.shape[2]:
            raise HeadstartError(
                f"block-sparse attention wants a mask [heads, blocks, blocks] of blocks of 128 tokens or a multiple, "
                f"not a mask {list(mask.shape)} of blocks of {size}"
            )
        mask = mask.tril()
        return cls(size, *_lists(mask), *_lists(mask.mT.contiguous()))


def _lists(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where each row of a mask holds, in order, and how often."""
    return (~mask).byte().argsort(stable=True, dim=-1).int(), mask.sum(-1, dtype=torch.int32)


@dataclass(frozen=True)
class Tiles:
    """What one of the kernels is tuned by: queries and keys of a tile, warps, and tiles under way at once."""

    queries: int
    keys: int
    warps: int
    stages: int


def usual_tiles(head_dim: int, dtype: torch.dtype) -> tuple[Tiles, Tiles, Tiles]:
    """Of the forward pass, the queries' gradient, and that of keys and values."""
    if dtype == torch.float32:
        return Tiles(32, 32, 4, 1), Tiles(32, 32, 4, 1), Tiles(32, 32, 4, 1)
    if head_dim > 128:
        return Tiles(128, 32, 8, 2), Tiles(64, 32, 4, 2), Tiles(32, 64, 4, 2)
    return Tiles(64, 64, 4, 3), Tiles(128, 64, 8, 2), Tiles(64, 128, 8, 2)


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Bounds,
    *,
    scale: float,
    blocks: BlockLists | None = None,
    tiles: Sequence[Tiles] = (),
) -> tuple[Tensor, Tensor]:
    """Exact causal attention within documents, differentiable in every argument that is a float and in both results.

    Args:
        q: `[T, H, D]`, in bfloat16, float16 or float32, D at most 256.
        k, v: `[T, Hkv, D]`, Hkv a divisor of H.
        bounds: which keys each token sees.
        scale: factor on query-key products.
        blocks: what lies outside of them is skipped.
        tiles: of the three kernels, instead of `usual_tiles`.

    Returns:
        `out [T, H, D]` and `lse [H, T]` float32, which is -inf where a token sees nothing.
    """
    head_dim = q.shape[2]
    missing = max(1 << (head_dim - 1).bit_length(), 16) - head_dim
    if missing:
        q, k, v = (F.pad(x, (0, missing)) for x in (q, k, v))
    size = 0 if blocks is None else blocks.size
    lists = [] if blocks is None else [blocks.keys, blocks.key_counts, blocks.queries, blocks.query_counts]
    sizes = [size for tile in tiles or usual_tiles(q.shape[2], q.dtype) for size in astuple(tile)]
    out, lse = _forward(q, k, v, *bounds, scale, size, lists, sizes)
    return out[..., :head_dim] if missing else out, lse


@torch.library.custom_op("headstart::packed_flash", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first: Tensor,
    last: Tensor,
    scale: float,
    size: int,
    lists: list[Tensor],
    sizes: list[int],
) -> tuple[Tensor, Tensor]:
    from headstart.ops.kernels import packed_flash as kernels

    tokens, heads, _ = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
    tiles = Tiles(*sizes[:4])
    kernel: Any = kernels.forward_kernel
    kernel[(-(-tokens // tiles.queries), heads)](
        _map(q, tiles.queries), _map(k, tiles.keys), _map(v, tiles.keys), out, lse, first,
        *(lists[:2] or (None, None)), tokens, scale, HEADS=heads, **_common(q, k, tiles, size, lists[:2]),
    )  # fmt: skip
    return out, lse


@torch.library.custom_op("headstart::packed_flash_backward", mutates_args=())
def _backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    first: Tensor,
    last: Tensor,
    scale: float,
    size: int,
    lists: list[Tensor],
    sizes: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    from headstart.ops.kernels import packed_flash as kernels

    tokens, heads, _ = q.shape
    kv_heads = k.shape[1]
    grad_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    grad_k, grad_v = (torch.empty(k.shape, dtype=k.dtype, device=k.device) for _ in range(2))
    delta = torch.empty_like(lse)
    tiles, key_tiles = Tiles(*sizes[4:8]), Tiles(*sizes[8:])
    kernel: Any = kernels.queries_gradient_kernel
    kernel[(-(-tokens // tiles.queries), heads)](
        _map(q, tiles.queries), _map(k, tiles.keys), _map(v, tiles.keys), _map(out, tiles.queries),
        _map(grad_out, tiles.queries), lse, grad_lse.contiguous(), delta, grad_q, first, *(lists[:2] or (None, None)),
        tokens, scale, HEADS=heads, **_common(q, k, tiles, size, lists[:2]),
    )  # fmt: skip
    kernel = kernels.keys_gradient_kernel
    kernel[(-(-tokens // key_tiles.keys), kv_heads)](
        _map(q, key_tiles.queries), _map(k, key_tiles.keys), _map(v, key_tiles.keys),
        _map(grad_out, key_tiles.queries), lse, delta, grad_k, grad_v, first, last, *(lists[2:] or (None, None)),
        tokens, scale, KV_HEADS=kv_heads, **_common(q, k, key_tiles, size, lists[2:]),
    )  # fmt: skip
    return grad_q, grad_k, grad_v


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), q.new_empty(
        q.shape[1], q.shape[0], dtype=torch.float32
    )


@_backward.register_fake
def _(grad_out: Tensor, grad_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, first, last, ctx.scale, ctx.size, lists, ctx.sizes = inputs
    ctx.save_for_backward(q, k, v, *output, first, last, *lists)


def _differentiate(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    *saved, first, last = ctx.saved_tensors[:7]
    lists = list(ctx.saved_tensors[7:])
    gradients = _backward(grad_out, grad_lse, *saved, first, last, ctx.scale, ctx.size, lists, ctx.sizes)
    return *gradients, None, None, None, None, [None] * len(lists), None  # pyright: ignore[reportReturnType]


_forward.register_autograd(_differentiate, setup_context=_keep)


def _common(q: Tensor, k: Tensor, tiles: Tiles, size: int, lists: list[Tensor]) -> dict[str, Any]:
    """What all three kernels are told."""
    heads, head_dim = q.shape[1:]
    return {
        "lists_head": lists[0].stride(0) if lists else 0,
        "lists_row": lists[0].stride(1) if lists else 0,
        "counts_head": lists[1].stride(0) if lists else 0,
        "GROUP": heads // k.shape[1],
        "LIST_GROUP": heads // lists[0].shape[0] if lists else 1,
        "HEAD_DIM": head_dim,
        "BLOCK": size,
        "BLOCK_M": tiles.queries,
        "BLOCK_N": tiles.keys,
        "STAGES": tiles.stages,
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }


def _map(x: Tensor, rows: int) -> Any:
    """A tensor map that loads so many tokens of one head from `[T, heads, D]`; what lies behind the end is 0."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    tokens, heads, head_dim = x.shape
    aligned = x.stride(0) * x.element_size() % 16 == 0 and x.data_ptr() % 16 == 0
    if x.stride()[1:] != (head_dim, 1) or not aligned:
        # A clone, since a tensor of one head or token may count as contiguous whatever its strides are.
        x = torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x)
    return TensorDescriptor(x, [tokens, heads * head_dim], [x.stride(0), 1], [rows, head_dim])
