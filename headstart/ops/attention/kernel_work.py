"""How the kernels of paged attention divide a step among their programs, worked out on the device."""

# A kernel's body is not Python to Triton, and not Triton to a type checker.
# pyright: reportArgumentType=false, reportOptionalSubscript=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl


@triton.jit
def work(
    starts,
    lengths,
    counts,
    counts_stride,
    num_sequences,
    workers,
    min_query,
    max_query,
    window,
    BLOCK_S: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    WINDOWED: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """The step's work, as vectors over the sequences: their numbers, row tiles and splits of each tile, and how many
    key tiles a split holds."""
    s = tl.arange(0, BLOCK_S)
    there = s < num_sequences
    queries = tl.load(starts + s + 1, mask=there, other=0) - tl.load(starts + s, mask=there, other=0)
    mine = there & (queries >= min_query) & (queries <= max_query)
    row_tiles = tl.where(mine, tl.cdiv(queries, QUERIES), 0)
    splits = tl.where(mine, 1, 0)
    chunk = 1 << 30
    if SPLIT:
        if KEY_BLOCK:
            keys = tl.load(counts + s * counts_stride, mask=there, other=0) * KEY_BLOCK
        else:
            keys = tl.load(lengths + s, mask=there, other=0)
        key_tiles = tl.cdiv(keys, BLOCK_N)
        if WINDOWED and not KEY_BLOCK:
            # A tile's rows see the window before the first of them, which may begin within a tile of keys.
            key_tiles = tl.minimum(key_tiles, tl.cdiv(window + QUERIES, BLOCK_N) + 1)
        chunk = tl.maximum(tl.cdiv(tl.sum(row_tiles * key_tiles), workers), 1)
        splits = tl.where(mine, tl.maximum(tl.cdiv(key_tiles, chunk), 1), 0)
    return s, row_tiles, splits, chunk
