"""Triton kernels of the vertical-slash estimate: attention of a prompt's last rows, summed by key and by distance."""

# pyright: reportArgumentType=false, reportOptionalSubscript=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILES = 16
"""Tiles of keys whose sums of exponentials one program takes."""


@triton.jit
def _scores(
    q, k, tile, head, length, rows, scale, q_row, q_head, k_row, k_head,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores `[R, N]` of a tile of keys, -inf where a row does not see a key; the keys' places, and the rows'."""
    r, n = tl.arange(0, BLOCK_R), tile * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_D)
    inside = (column < HEAD_DIM)[None, :]
    asked = tl.load(
        q + head * q_head + r[:, None] * q_row + column[None, :], mask=(r < rows)[:, None] & inside, other=0.0
    )
    cells = k + head // GROUP * k_head + n.to(tl.int64)[:, None] * k_row + column[None, :]
    keys = tl.load(cells, mask=(n < length)[:, None] & inside, other=0.0)
    scores = tl.dot(asked, tl.trans(keys.to(asked.dtype)), input_precision=PRECISION) * scale
    place = length - rows + r
    seen = (n[None, :] <= place[:, None]) & (r < rows)[:, None]
    return tl.where(seen, scores, float("-inf")), n, place


@triton.jit(do_not_specialize=["length", "rows"])
def line_sums_kernel(
    q, k, parts, length, rows, scale, q_row, q_head, k_row, k_head,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """`parts [programs, H, BLOCK_R]`: the log-sum-exp of each row over TILES tiles of keys."""
    head = tl.program_id(1)
    top = tl.full([BLOCK_R], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    for tile in tl.range(0, TILES):
        scores, _, _ = _scores(
            q, k, tl.program_id(0) * TILES + tile, head, length, rows, scale, q_row, q_head, k_row, k_head,
            GROUP, HEAD_DIM, BLOCK_D, BLOCK_R, BLOCK_N, PRECISION,
        )  # fmt: skip
        new_top = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        total = total * tl.exp(top - base) + tl.sum(tl.exp(scores - base[:, None]), 1)
        top = new_top
    logs = tl.where(total > 0.0, top + tl.log(tl.where(total > 0.0, total, 1.0)), float("-inf"))
    at = (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + head) * BLOCK_R
    tl.store(parts + at + tl.arange(0, BLOCK_R), logs)


@triton.jit(do_not_specialize=["length", "rows"])
def line_scores_kernel(
    q, k, lse, columns, distances, length, rows, scale, q_row, q_head, k_row, k_head,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys: sums over the rows into `columns [H, N]`, along the diagonals into `distances [H, N]`."""
    tile, head = tl.program_id(0), tl.program_id(1)
    scores, n, place = _scores(
        q, k, tile, head, length, rows, scale, q_row, q_head, k_row, k_head,
        GROUP, HEAD_DIM, BLOCK_D, BLOCK_R, BLOCK_N, PRECISION,
    )  # fmt: skip
    r = tl.arange(0, BLOCK_R)
    logs = tl.load(lse + head * BLOCK_R + r)
    weights = tl.exp(scores - tl.where(r < rows, logs, 0.0)[:, None])
    first = head.to(tl.int64) * length
    tl.store(columns + first + n, tl.sum(weights, 0), mask=n < length)
    apart = place[:, None] - n[None, :]
    seen = (apart >= 0) & (r < rows)[:, None]
    tl.atomic_add(distances + first + apart, weights, mask=seen, sem="relaxed")


def line_scores_on_gpu(q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """`line_scores` by the kernels; nothing waits for the device."""
    rows, heads, head_dim = q.shape
    length = k.shape[0]
    block_n = 64
    tiles = triton.cdiv(length, block_n)
    shared: dict[str, Any] = {
        "GROUP": heads // k.shape[1],
        "HEAD_DIM": head_dim,
        "BLOCK_D": max(triton.next_power_of_2(head_dim), 16),
        "BLOCK_R": max(triton.next_power_of_2(rows), 16),
        "BLOCK_N": block_n,
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
        "num_warps": 4,
    }
    strides = q.stride(0), q.stride(1), k.stride(0), k.stride(1)
    programs = triton.cdiv(tiles, _TILES)
    parts = torch.empty(programs, heads, shared["BLOCK_R"], dtype=torch.float32, device=q.device)
    kernel: Any = line_sums_kernel
    kernel[(programs, heads)](q, k, parts, length, rows, scale, *strides, **shared, TILES=_TILES)
    lse = torch.logsumexp(parts, 0)
    columns = torch.empty(heads, length, dtype=torch.float32, device=q.device)
    distances = torch.zeros(heads, length, dtype=torch.float32, device=q.device)
    kernel = line_scores_kernel
    kernel[(tiles, heads)](q, k, lse, columns, distances, length, rows, scale, *strides, **shared)
    return columns, distances
