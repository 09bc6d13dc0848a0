"""The Triton kernel of the descent to the keys that score highest: one program per head and block of queries."""

# pyright: reportArgumentType=false, reportOptionalSubscript=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstart.ops.attention.layout import RaggedLayout
from headstart.ops.attention.selection import KeyBlocks

if TYPE_CHECKING:
    from headstart.ops.attention.descent import Descent


@triton.jit
def _chosen(scores, keep):
    """Bool `[N]`: the `keep` largest scores, of equal ones the first. Scores must not be NaN."""
    bits = scores.to(tl.int32, bitcast=True)
    # Integers in the order of the floats.
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    low = tl.min(ordered, 0).to(tl.int64)
    high = tl.max(ordered, 0).to(tl.int64)
    # The largest value that at least `keep` scores reach.
    while low < high:
        middle = low + (high - low + 1) // 2
        enough = tl.sum((ordered >= middle.to(tl.int32)).to(tl.int32), 0) >= keep
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    above = ordered > low.to(tl.int32)
    equal = (ordered == low.to(tl.int32)).to(tl.int32)
    room = keep - tl.sum(above.to(tl.int32), 0)
    return above | ((equal > 0) & (tl.cumsum(equal, 0) <= room))


@triton.jit(do_not_specialize=["rounds", "table_row"])
def descent_kernel(
    q, k, starts, lengths, table, scratch, scores, lists, counts, rounds, sink_blocks, window, capacity,
    q_row, q_head, k_row, k_head, table_row,
    KEEP: tl.constexpr, REGIONS: tl.constexpr, QUERY_BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr,
    STRIDE: tl.constexpr, CENTER: tl.constexpr, GROUP: tl.constexpr, PAGE: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, CHILDREN: tl.constexpr, BLOCK_L: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The list of one block of queries; grid `(B, H, S)`.

    `scratch [S, H, B, 2, 2, REGIONS]` int32 holds first blocks and sizes, now and in the next round; `scores
    [S, H, B, 2 REGIONS]` what their halves score. `lists [S, H, B, capacity]`, `counts [S, H, B]`.
    """
    block, head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    program = (sequence.to(tl.int64) * tl.num_programs(1) + head) * tl.num_programs(0) + block
    first_row = tl.load(starts + sequence)
    queries = tl.load(starts + sequence + 1) - first_row
    length = tl.load(lengths + sequence)
    top = block * QUERY_BLOCK
    if top >= queries:
        tl.store(counts + program, 0)
        return
    place = length - queries + top
    newest = (tl.minimum(place + QUERY_BLOCK, length) - 1) // KEY_BLOCK
    sink = tl.minimum(newest + 1, sink_blocks)
    recent = tl.maximum(tl.maximum(place - window + 1, 0) // KEY_BLOCK, sink)
    candidates = (recent - sink).to(tl.int64)

    r = tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_D)
    inside = (column < HEAD_DIM)[None, :]
    # The first row of a block is always there; it stands in for those that are not.
    row = top + r * STRIDE
    row = tl.where((r * STRIDE < QUERY_BLOCK) & (row < queries), row, top)
    cells = q + (first_row + row).to(tl.int64)[:, None] * q_row + head * q_head + column[None, :]
    asked = tl.load(cells, mask=inside, other=0.0)

    begin, size = scratch + program * 4 * REGIONS, scratch + program * 4 * REGIONS + REGIONS
    turn = 2 * REGIONS
    mine = scores + program * 2 * REGIONS
    i = tl.arange(0, REGIONS)
    edge = (i * candidates // KEEP).to(tl.int32)
    tl.store(begin + i, edge + sink)
    tl.store(size + i, tl.where(i < KEEP, ((i + 1) * candidates // KEEP).to(tl.int32) - edge, 0))
    c = tl.arange(0, 2 * REGIONS)
    n = tl.arange(0, CHILDREN * KEY_BLOCK)
    now = 0
    for _ in range(rounds):
        tl.debug_barrier()
        for tile in range(2 * REGIONS // CHILDREN):
            child = tile * CHILDREN + n // KEY_BLOCK
            start = tl.load(begin + now + child // 2)
            whole = tl.load(size + now + child // 2)
            half = whole // 2
            share = tl.where(child % 2 == 0, half, whole - half)
            start = tl.where(child % 2 == 0, start, start + half)
            if CENTER:
                start = start + share // 2
            # A place without a region holds anything.
            at = tl.where(share > 0, tl.minimum(start * KEY_BLOCK + n % KEY_BLOCK, length - 1), 0)
            slot = tl.load(table + sequence * table_row + at // PAGE).to(tl.int64) * PAGE + at % PAGE
            there = (share > 0)[:, None] & inside
            keys = tl.load(k + slot[:, None] * k_row + head // GROUP * k_head + column[None, :], mask=there, other=0.0)
            products = tl.dot(asked, tl.trans(keys.to(asked.dtype)), input_precision=PRECISION)
            best = tl.where(share > 0, tl.max(products, 0), float("-inf"))
            best = tl.max(tl.reshape(best, [CHILDREN, KEY_BLOCK]), 1)
            tl.store(mine + tile * CHILDREN + tl.arange(0, CHILDREN), best)
        tl.debug_barrier()
        kept = _chosen(tl.load(mine + c), KEEP)
        start = tl.load(begin + now + c // 2)
        whole = tl.load(size + now + c // 2)
        half = whole // 2
        share = tl.where(c % 2 == 0, half, whole - half)
        start = tl.where(c % 2 == 0, start, start + half)
        to = tl.cumsum(kept.to(tl.int32), 0) - 1
        then = turn - now
        tl.store(begin + then + to, start, mask=kept)
        tl.store(size + then + to, share, mask=kept)
        if KEEP < REGIONS:
            tl.store(size + then + i, tl.zeros([REGIONS], tl.int32), mask=i >= KEEP)
        now = then
    tl.debug_barrier()

    mine = lists + program * capacity
    place_of = tl.arange(0, BLOCK_L)
    tl.store(mine + place_of, place_of, mask=place_of < sink)
    start = tl.load(begin + now + i)
    found = (tl.load(size + now + i) > 0).to(tl.int32)
    tl.store(mine + sink + tl.cumsum(found, 0) - 1, start, mask=found > 0)
    before = sink + tl.sum(found, 0)
    own = newest - recent + 1
    tl.store(mine + before + place_of, recent + place_of, mask=place_of < own)
    tl.store(counts + program, before + own)


def descend_on_gpu(q: Tensor, k_pages: Tensor, layout: RaggedLayout, descent: "Descent") -> KeyBlocks:
    """`descend` by the kernel; nothing waits for the device."""
    heads, head_dim = q.shape[1:]
    page_size, kv_heads = k_pages.shape[1:3]
    starts, lengths, table, most_queries, most_keys = layout.index
    shape = len(lengths), heads, -(-most_queries // descent.query_block)
    regions = max(triton.next_power_of_2(descent.keep), 16)
    scratch = torch.empty(*shape, 4 * regions, dtype=torch.int32, device=q.device)
    scores = torch.empty(*shape, 2 * regions, dtype=torch.float32, device=q.device)
    lists = torch.empty(*shape, descent.capacity, dtype=torch.int32, device=q.device)
    counts = torch.empty(shape, dtype=torch.int32, device=q.device)
    asked = -(-min(descent.query_block, most_queries) // descent.stride)
    kernel: Any = descent_kernel
    kernel[(shape[2], heads, shape[0])](
        q, k_pages, starts, lengths, table, scratch, scores, lists, counts,
        descent.rounds(most_keys), descent.sink_blocks, descent.window, descent.capacity,
        q.stride(0), q.stride(1), k_pages.stride(1), k_pages.stride(2), table.stride(0),
        KEEP=descent.keep, REGIONS=regions, QUERY_BLOCK=descent.query_block, KEY_BLOCK=descent.key_block,
        STRIDE=descent.stride, CENTER=descent.representative == "center", GROUP=heads // kv_heads, PAGE=page_size,
        HEAD_DIM=head_dim, BLOCK_D=max(triton.next_power_of_2(head_dim), 16),
        BLOCK_R=max(triton.next_power_of_2(asked), 16),
        CHILDREN=min(2 * regions, 64 // descent.key_block),
        BLOCK_L=triton.next_power_of_2(descent.capacity),
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32", num_warps=4,
    )  # fmt: skip
    return KeyBlocks(lists, counts, descent.query_block, descent.key_block)
