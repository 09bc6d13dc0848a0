"""Triton kernels that put results over disjoint keys together by log-sum-exp."""

# A kernel's body is not Python to Triton, and not Triton to a type checker.
# pyright: reportArgumentType=false, reportOptionalSubscript=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from headstart.ops.attention.kernel_work import work


@triton.jit(do_not_specialize=["num_sequences", "workers", "min_query", "max_query", "window", "part_rows"])
def merge_kernel(
    out,
    lse,
    part_out,
    part_lse,
    starts,
    lengths,
    counts,
    num_sequences,
    workers,
    min_query,
    max_query,
    window,
    counts_sequence,
    counts_head,
    part_rows,
    HEADS: tl.constexpr,
    QUERIES: tl.constexpr,
    FOLD: tl.constexpr,
    LIST_GROUP: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_P: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """Puts the parts of one row together, BLOCK_P at a time; grid `(row tiles, H / FOLD, rows of a tile)`."""
    head, m = tl.program_id(1), tl.program_id(2)
    my_counts = counts + head * FOLD // LIST_GROUP * counts_head if KEY_BLOCK else counts
    s, row_tiles, splits, _ = work(
        starts, lengths, my_counts, counts_sequence, num_sequences, workers,
        min_query, max_query, window, BLOCK_S, QUERIES, BLOCK_N, KEY_BLOCK, WINDOWED, True,
    )  # fmt: skip
    ends = tl.cumsum(row_tiles, 0)
    sequence = tl.sum((ends <= tl.program_id(0)).to(tl.int32), 0)
    if sequence >= num_sequences:
        return
    my_splits = tl.sum(tl.where(s == sequence, splits, 0), 0)
    row_tile = tl.program_id(0) - tl.sum(tl.where(s < sequence, row_tiles, 0), 0)
    first_row = tl.load(starts + sequence)
    query = row_tile * QUERIES + m // FOLD
    if (my_splits == 1) | (first_row + query >= tl.load(starts + sequence + 1)):
        return
    item = tl.sum(tl.where(s < sequence, row_tiles * splits, 0), 0) + row_tile * my_splits

    columns = tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_D], tl.float32)
    total = 0.0
    top = float("-inf")
    for start in range(0, my_splits, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        part = ((item + p).to(tl.int64) * tl.num_programs(1) + head) * part_rows + m
        here = p < my_splits
        logs = tl.load(part_lse + part, mask=here, other=float("-inf"))
        cell = (here & (logs > float("-inf")))[:, None] & (columns < HEAD_DIM)[None, :]
        values = tl.load(part_out + part[:, None] * HEAD_DIM + columns[None, :], mask=cell, other=0.0)
        new_top = tl.maximum(top, tl.max(logs, 0))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp(logs - base)
        shrink = tl.exp(top - base)
        acc = acc * shrink + tl.sum(values * weights[:, None], 0)
        total = total * shrink + tl.sum(weights, 0)
        top = new_top
    row = (first_row + query).to(tl.int64) * HEADS + head * FOLD + m % FOLD
    saw = total > 0.0
    safe = tl.where(saw, total, 1.0)
    tl.store(out + row * HEAD_DIM + columns, (acc / safe).to(out.dtype.element_ty), mask=columns < HEAD_DIM)
    tl.store(lse + row, tl.where(saw, top + tl.log(safe), float("-inf")))


@triton.jit(do_not_specialize=["rows"])
def merge_rows_kernel(
    out_a,
    lse_a,
    out_b,
    lse_b,
    out,
    lse,
    rows,
    a_head,
    a_row,
    lse_a_head,
    lse_a_row,
    b_head,
    b_row,
    lse_b_head,
    lse_b_row,
    out_row,
    out_head,
    lse_row,
    lse_head,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Two results over disjoint keys, `[H, R, D]` with `[H, R]`, as one; grid `(rows / BLOCK_R, H)`."""
    r = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    head = tl.program_id(1)
    columns = tl.arange(0, BLOCK_D)
    there = r < rows
    cell = there[:, None] & (columns < HEAD_DIM)[None, :]
    log_a = tl.load(lse_a + head * lse_a_head + r * lse_a_row, mask=there, other=0.0)
    log_b = tl.load(lse_b + head * lse_b_head + r * lse_b_row, mask=there, other=0.0)
    a = tl.load(out_a + (head * a_head + r * a_row)[:, None] + columns[None, :], mask=cell, other=0.0)
    b = tl.load(out_b + (head * b_head + r * b_row)[:, None] + columns[None, :], mask=cell, other=0.0)
    top = tl.maximum(log_a, log_b)
    safe = tl.where(top == float("-inf"), 0.0, top)
    weight_a, weight_b = tl.exp(log_a - safe), tl.exp(log_b - safe)
    total = weight_a + weight_b
    share = tl.where(total > 0.0, total, 1.0)
    merged = a.to(tl.float32) * (weight_a / share)[:, None] + b.to(tl.float32) * (weight_b / share)[:, None]
    cells = (r * out_row + head * out_head)[:, None] + columns[None, :]
    tl.store(out + cells, merged.to(out.dtype.element_ty), mask=cell)
    tl.store(
        lse + r * lse_row + head * lse_head, tl.where(total > 0.0, safe + tl.log(share), float("-inf")), mask=there
    )
