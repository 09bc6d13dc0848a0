"""The Triton kernel of paged attention: prefill chunks, decodes, drafts and sparse blocks are all tiles of rows here.

A program takes one **row tile** (queries of one sequence times the query heads that share a KV head) over one range of
its keys, with an online softmax (FlashAttention, arXiv 2205.14135). Which tile that is, each program works out from the
sequences' lengths on the device, so that a captured launch serves whatever lengths the buffers hold at replay. Long
key ranges are cut among several programs (`SPLIT`), and `merge_kernel` puts their parts together by log-sum-exp.
"""


# A kernel's body is not Python to Triton, and not Triton to a type checker.
# pyright: reportArgumentType=false, reportOptionalSubscript=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from headstart.ops.attention.kernel_tiles import over_keys, start_of
from headstart.ops.attention.kernel_work import work

_LN2 = tl.constexpr(0.6931471805599453)
_LISTS = ["blocks_sequence", "blocks_head", "blocks_row", "counts_sequence", "counts_head"]
_LISTS += ["bands_sequence", "bands_head", "singles_sequence", "singles_head", "covered_sequence", "covered_head"]
_STEP = ["num_sequences", "workers", "min_query", "max_query", "window", "table_row", "part_rows"]


@triton.jit(
    do_not_specialize=[*_STEP, *_LISTS],
    do_not_specialize_on_alignment=["table_row"],
)
def attention_kernel(
    q,
    k,
    v,
    k_maps,
    v_maps,
    out,
    lse,
    part_out,
    part_lse,
    starts,
    lengths,
    table,
    blocks,
    counts,
    bands,
    band_counts,
    singles,
    single_counts,
    covered,
    tree,
    num_sequences,
    workers,
    min_query,
    max_query,
    window,
    scale,
    softcap,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    table_row,
    blocks_sequence,
    blocks_head,
    blocks_row,
    counts_sequence,
    counts_head,
    bands_sequence,
    bands_head,
    singles_sequence,
    singles_head,
    covered_sequence,
    covered_head,
    part_rows,
    HEADS: tl.constexpr,
    QUERIES: tl.constexpr,
    FOLD: tl.constexpr,
    GROUP: tl.constexpr,
    LIST_GROUP: tl.constexpr,
    PAGE: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    QUERY_BLOCK: tl.constexpr,
    LINES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAUSAL: tl.constexpr,
    SOFTCAP: tl.constexpr,
    TREE: tl.constexpr,
    SPLIT: tl.constexpr,
    PHASES: tl.constexpr,
    TMA: tl.constexpr,
    BEHIND: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One row tile over one range of its keys; grid `(items, H / FOLD)`, where items may be more than there is work.

    `q, out [T, H, D]`, `lse [T, H]`; `k, v` and the tensor maps `k_maps, v_maps` hold `[slots, Hkv, D]`. A tile has
    QUERIES queries of FOLD heads each in its BLOCK_M rows. `blocks [S, H / LIST_GROUP, B, K]` and `counts [S,
    H / LIST_GROUP, B]` name the blocks of KEY_BLOCK keys that each QUERY_BLOCK queries look at (all keys where
    KEY_BLOCK is 0). With LINES, heads that have bands or columns look at those instead, as `Lines` says. Without CAUSAL
    every row sees all keys of its sequence; no window or tree goes with that.
    """
    head = tl.program_id(1)
    kv_head = head * FOLD // GROUP
    my_counts = counts + head * FOLD // LIST_GROUP * counts_head if KEY_BLOCK else counts
    s, row_tiles, splits, chunk = work(
        starts, lengths, my_counts, counts_sequence, num_sequences, workers,
        min_query, max_query, window, BLOCK_S, QUERIES, BLOCK_N, KEY_BLOCK, WINDOWED, SPLIT,
    )  # fmt: skip
    items = row_tiles * splits
    ends = tl.cumsum(items, 0)
    # The last tile of a long prompt sees the most keys: it goes first, so that light ones fill the end.
    item = tl.sum(items, 0) - 1 - tl.program_id(0)
    # A program without work runs through with nothing to do.
    busy = item >= 0
    item = tl.maximum(item, 0)
    sequence = tl.minimum(tl.sum((ends <= item).to(tl.int32), 0), num_sequences - 1)
    my_splits = tl.maximum(tl.sum(tl.where(s == sequence, splits, 0), 0), 1)
    nth = item - tl.sum(tl.where(s < sequence, items, 0), 0)
    row_tile, split = nth // my_splits, nth % my_splits

    first_row = tl.load(starts + sequence)
    queries = tl.load(starts + sequence + 1) - first_row
    kv_length = tl.load(lengths + sequence)
    before = kv_length - queries
    m = tl.arange(0, BLOCK_M)
    query = row_tile * QUERIES + m // FOLD
    my_head = head * FOLD + m % FOLD
    used = busy & (query < queries) & (m < QUERIES * FOLD)
    row = (first_row + query).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    cell = used[:, None] & (columns < HEAD_DIM)[None, :]
    q_tile = tl.load(q + (row * q_row + my_head * q_head)[:, None] + columns[None, :], mask=cell, other=0.0)
    limit = before + query if CAUSAL else tl.full([BLOCK_M], 0, tl.int32) + kv_length
    bits = tl.load(tree + row, mask=used, other=0) if TREE else limit

    # Keys up to `end` matter to some row, those in [whole, edge) to every row: only the tiles around need masks.
    lowest = before + row_tile * QUERIES
    highest = tl.minimum(lowest + QUERIES, kv_length) - 1
    count, skipped, single = 0, 0, 0
    # No band, no column: only a head with lines has an origin.
    origin = -1
    my_blocks = blocks
    if TREE:
        edge, end = before, kv_length
    elif not CAUSAL:
        edge, end = kv_length, kv_length
    else:
        edge, end = lowest + 1, highest + 1
    begin, whole = 0, 0
    if WINDOWED:
        begin = tl.maximum(lowest - window + 1, 0) // BLOCK_N
        whole = tl.cdiv(tl.maximum(highest - window + 1, 0), BLOCK_N)
    if KEY_BLOCK:
        nth_block = row_tile * QUERIES // QUERY_BLOCK
        count = tl.load(my_counts + sequence * counts_sequence + nth_block)
        list_head = head * FOLD // LIST_GROUP
        my_blocks = blocks + (sequence * blocks_sequence + list_head * blocks_head) + nth_block * blocks_row
        if LINES:
            nth_list = sequence * (HEADS // LIST_GROUP) + list_head
            banded = tl.load(band_counts + nth_list)
            single = tl.load(single_counts + nth_list)
            if banded + single > 0:
                origin = before + nth_block * QUERY_BLOCK
                count = banded
                my_blocks = bands + (sequence * bands_sequence + list_head * bands_head)
                # Bands that end before the first key come first.
                high = count
                while skipped < high:
                    middle = (skipped + high) // 2
                    reaches = origin - tl.load(my_blocks + middle) + KEY_BLOCK > 0
                    high = tl.where(reaches, middle, high)
                    skipped = tl.where(reaches, skipped, middle + 1)
            cut = origin - tl.load(my_blocks + skipped, mask=(origin >= 0) & (skipped < count), other=0) < 0
            cut = cut & (origin >= 0)
            begin = skipped * KEY_BLOCK // BLOCK_N
            whole = tl.cdiv((skipped + cut.to(tl.int32)) * KEY_BLOCK, BLOCK_N)
        full = count
        start = start_of(tl.load(my_blocks + full - 1, mask=full > skipped, other=0), origin, KEY_BLOCK, LINES)
        while (full > skipped) & (start + KEY_BLOCK > edge):
            full -= 1
            start = start_of(tl.load(my_blocks + full - 1, mask=full > skipped, other=0), origin, KEY_BLOCK, LINES)
        edge, end = full * KEY_BLOCK, count * KEY_BLOCK
        if WINDOWED:
            whole, edge = 0, 0
            if not LINES:
                begin = 0
    edge = edge // BLOCK_N
    end = tl.where(busy, tl.cdiv(end, BLOCK_N), 0)
    if SPLIT:
        begin = begin + split * chunk
        end = tl.minimum(end, begin + chunk)

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    my_table = table + sequence.to(tl.int64) * table_row
    my_k, my_v = k + kv_head * k_head, v + kv_head * v_head
    run = tl.load(my_table) * PAGE if CONTIGUOUS else 0
    left, right = begin, begin
    if PHASES:
        left = tl.minimum(tl.maximum(whole, begin), end)
        right = tl.maximum(tl.minimum(edge, end), left)
    for phase in tl.static_range(3):
        # The tiles at the window's edge, those that every row sees, those on the diagonal.
        if (phase == 0 and (WINDOWED or LINES) and PHASES) or (phase == 1 and PHASES) or phase == 2:
            acc, total, top = over_keys(
                acc, total, top, q_tile,
                begin if phase == 0 else left if phase == 1 else right,
                left if phase == 0 else right if phase == 1 else end,
                limit, bits, my_k, my_v, k_maps, v_maps, k_row, v_row, my_table, run, my_blocks, count, origin, None,
                kv_head, before, kv_length, window, scale, softcap, PAGE, CONTIGUOUS, KEY_BLOCK, LINES, False, HEAD_DIM,
                BLOCK_D, BLOCK_N, WINDOWED, SOFTCAP, TREE, phase != 1, TMA, BEHIND and phase == 1,
                STAGES if phase == 1 or not PHASES else 1, PRECISION,
            )  # fmt: skip
    if LINES:
        my_singles = singles + (sequence * singles_sequence + head * FOLD // LIST_GROUP * singles_head)
        my_covered = covered + (sequence.to(tl.int64) * covered_sequence + head * FOLD // LIST_GROUP * covered_head)
        # The single keys up to the last row: the others are behind it.
        few, high = 0, tl.where(busy, single, 0)
        while few < high:
            middle = (few + high) // 2
            near = tl.load(my_singles + middle) <= highest
            few = tl.where(near, middle + 1, few)
            high = tl.where(near, high, middle)
        acc, total, top = over_keys(
            acc, total, top, q_tile, 0, tl.cdiv(few, BLOCK_N), limit, bits, my_k, my_v, k_maps, v_maps, k_row, v_row,
            my_table, run, my_singles, few, origin + QUERY_BLOCK, my_covered, kv_head, before, kv_length, window, scale,
            softcap, PAGE, CONTIGUOUS, 1, False, True, HEAD_DIM, BLOCK_D, BLOCK_N, WINDOWED, SOFTCAP, TREE, True, TMA,
            False, STAGES, PRECISION,
        )  # fmt: skip

    saw = total > 0.0
    acc = acc / tl.where(saw, total, 1.0)[:, None]
    log_sum = tl.where(saw, (top + tl.log2(tl.where(saw, total, 1.0))) * _LN2, float("-inf"))
    done = my_splits == 1
    cells = (row * HEADS + my_head)[:, None] * HEAD_DIM + columns[None, :]
    tl.store(out + cells, acc.to(out.dtype.element_ty), mask=cell & done)
    tl.store(lse + row * HEADS + my_head, log_sum, mask=used & done)
    if SPLIT:
        part = (item.to(tl.int64) * tl.num_programs(1) + head) * part_rows + m
        tl.store(part_out + part[:, None] * HEAD_DIM + columns[None, :], acc, mask=cell & (not done))
        tl.store(part_lse + part, log_sum, mask=used & (not done))
