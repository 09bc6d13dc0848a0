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

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _work(
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


@triton.jit
def _visible(places, there, limit, before, window, bits, WINDOWED: tl.constexpr, TREE: tl.constexpr):
    """bool `[M, N]`: which keys, by their places `[N]` and whether they are there, the rows see that stand at
    `limit [M]`."""
    seen = there[None, :]
    if TREE:
        own = tl.minimum(tl.maximum(places - before, 0), 63).to(tl.int64)
        chosen = ((bits[:, None] >> own[None, :]) & 1) == 1
        seen = seen & ((places < before)[None, :] | chosen)
    else:
        seen = seen & (places[None, :] <= limit[:, None])
    if WINDOWED:
        seen = seen & (places[None, :] > limit[:, None] - window)
    return seen


@triton.jit
def _start(entry, origin, KEY_BLOCK: tl.constexpr, LINES: tl.constexpr):
    """The place of the first key of a list's entry: a block's number, or a band of the rows that begin at `origin`."""
    if LINES:
        return tl.where(origin < 0, entry * KEY_BLOCK, origin - entry)
    return entry * KEY_BLOCK


@triton.jit
def _locate(
    tile,
    table,
    run,
    blocks,
    count,
    origin,
    kv_length,
    PAGE: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    LINES: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Places `[N]` and cache slots `[N]` of a tile of keys, and the slot of the first where the others follow it.

    A key that is not there has a place of at least `kv_length`, or below 0. Where a tile lies within one key block, and
    within one page or a run of pages, one look into the tables tells all.
    """
    n = tl.arange(0, BLOCK_N)
    first_slot = 0
    if (CONTIGUOUS or (PAGE % BLOCK_N == 0 and not LINES)) and (KEY_BLOCK == 0 or KEY_BLOCK % BLOCK_N == 0):
        place = tile * BLOCK_N
        if KEY_BLOCK:
            at = place // KEY_BLOCK
            entry = tl.load(blocks + at, mask=at < count, other=0)
            place = _start(entry, origin, KEY_BLOCK, LINES) + place % KEY_BLOCK
        if CONTIGUOUS:
            first_slot = run + place
        else:
            first_slot = tl.load(table + place // PAGE, mask=place < kv_length, other=0) * PAGE + place % PAGE
        places, slots = place + n, first_slot + n
    else:
        places = tile * BLOCK_N + n
        if KEY_BLOCK:
            at = places // KEY_BLOCK
            entry = tl.load(blocks + at, mask=at < count, other=0)
            start = _start(entry, origin, KEY_BLOCK, LINES)
            places = tl.where(at < count, start + places % KEY_BLOCK, kv_length)
        places = tl.minimum(places, kv_length)
        if CONTIGUOUS:
            slots = run + places
        else:
            known = (places >= 0) & (places < kv_length)
            slots = tl.load(table + places // PAGE, mask=known, other=0) * PAGE + places % PAGE
    return places, slots, first_slot


@triton.jit
def _load(
    pool,
    maps,
    row_stride,
    kv_head,
    there,
    slots,
    first_slot,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,
    TMA: tl.constexpr,
):
    """One KV head of a tile of keys or values, `[N, D]`; with `MASKED`, zeros where nothing is `there` `[N]`."""
    if TMA and not MASKED:
        return maps.load([first_slot, kv_head * HEAD_DIM])
    columns = tl.arange(0, BLOCK_D)
    cells = pool + slots.to(tl.int64)[:, None] * row_stride + columns[None, :]
    if MASKED:
        return tl.load(cells, mask=there[:, None] & (columns < HEAD_DIM)[None, :], other=0.0)
    if HEAD_DIM == BLOCK_D:
        return tl.load(cells)
    return tl.load(cells, mask=(columns < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def _score(q, keys, scale, softcap, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr):
    """`q [M, D]` on `keys [N, D]`: scores `[M, N]`, but for a factor that `_over_keys` applies."""
    scores = tl.dot(q, tl.trans(keys.to(q.dtype)), input_precision=PRECISION)
    if SOFTCAP:
        # The soft cap's tanh, by way of the sigmoid.
        scores = 2.0 * tl.sigmoid(scores * (2.0 * scale / softcap)) - 1.0
    return scores


@triton.jit
def _over_keys(
    acc,
    total,
    top,
    q,
    first,
    last,
    limit,
    bits,
    k,
    v,
    k_maps,
    v_maps,
    k_row,
    v_row,
    table,
    run,
    blocks,
    count,
    origin,
    covered,
    kv_head,
    before,
    kv_length,
    window,
    scale,
    softcap,
    PAGE: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    LINES: tl.constexpr,
    COVERED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    TREE: tl.constexpr,
    MASKED: tl.constexpr,
    TMA: tl.constexpr,
    BEHIND: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Takes the key tiles `first` to `last` into the running sums of a row tile.

    `acc [M, D]`, `total [M]` and `top [M]` are the weighted values, the weights and the largest score (in base 2) so
    far. Keys that some row must not see, or that are not there, want `MASKED`; with `COVERED`, those are left out too
    that `covered` marks at their distance before `origin`. With `BEHIND`, a tile's values are multiplied one round
    later, so that the matrix unit works while the next scores go through the exponential.
    """
    to_base_2 = (softcap if SOFTCAP else scale) * _LOG2E
    # Kept for a round as integers, since a loop's own float matrices go to the matrix unit by way of shared memory.
    kept = tl.zeros([acc.shape[0], BLOCK_N], tl.int16)
    shrink = tl.full([acc.shape[0]], 1.0, tl.float32)
    for tile in tl.range(first, last, num_stages=STAGES):
        places, slots, slot = _locate(
            tile, table, run, blocks, count, origin, kv_length, PAGE, CONTIGUOUS, KEY_BLOCK, LINES, BLOCK_N
        )  # fmt: skip
        there = (places < kv_length) & (places >= 0) if LINES else places < kv_length
        keys = _load(k, k_maps, k_row, kv_head, there, slots, slot, HEAD_DIM, BLOCK_D, MASKED, TMA)
        scores = _score(q, keys, scale, softcap, SOFTCAP, PRECISION)
        if BEHIND:
            _, old_slots, old_slot = _locate(
                tl.maximum(tile - 1, first), table, run, blocks, count, origin, kv_length, PAGE, CONTIGUOUS, KEY_BLOCK,
                LINES, BLOCK_N,
            )  # fmt: skip
            values = _load(v, v_maps, v_row, kv_head, there, old_slots, old_slot, HEAD_DIM, BLOCK_D, MASKED, TMA)
            weights = kept.to(q.dtype, bitcast=True)
            acc = tl.dot(weights, values.to(q.dtype), acc * shrink[:, None], input_precision=PRECISION)
        if MASKED:
            seen = _visible(places, there, limit, before, window, bits, WINDOWED, TREE)
            if COVERED:
                seen = (
                    seen & (tl.load(covered + origin - places, mask=there & (places <= origin), other=0) == 0)[None, :]
                )
            scores = tl.where(seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * to_base_2)
        # A row that has seen nothing yet has no largest score to subtract.
        base = tl.where(new_top == float("-inf"), 0.0, new_top) if MASKED else new_top
        shrink = tl.exp2(top - base)
        exact = tl.exp2(scores * to_base_2 - base[:, None])
        total = total * shrink + tl.sum(exact, 1)
        weights = exact.to(q.dtype)
        top = new_top
        if BEHIND:
            kept = weights.to(tl.int16, bitcast=True)
        else:
            values = _load(v, v_maps, v_row, kv_head, there, slots, slot, HEAD_DIM, BLOCK_D, MASKED, TMA)
            acc = tl.dot(weights, values.to(q.dtype), acc * shrink[:, None], input_precision=PRECISION)
    if BEHIND and first < last:
        places, slots, slot = _locate(
            last - 1, table, run, blocks, count, origin, kv_length, PAGE, CONTIGUOUS, KEY_BLOCK, LINES, BLOCK_N
        )  # fmt: skip
        values = _load(v, v_maps, v_row, kv_head, places < kv_length, slots, slot, HEAD_DIM, BLOCK_D, MASKED, TMA)
        weights = kept.to(q.dtype, bitcast=True)
        acc = tl.dot(weights, values.to(q.dtype), acc * shrink[:, None], input_precision=PRECISION)
    return acc, total, top


# Lists are of other lengths in each step.
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
    s, row_tiles, splits, chunk = _work(
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
        start = _start(tl.load(my_blocks + full - 1, mask=full > skipped, other=0), origin, KEY_BLOCK, LINES)
        while (full > skipped) & (start + KEY_BLOCK > edge):
            full -= 1
            start = _start(tl.load(my_blocks + full - 1, mask=full > skipped, other=0), origin, KEY_BLOCK, LINES)
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
            acc, total, top = _over_keys(
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
        acc, total, top = _over_keys(
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
    s, row_tiles, splits, _ = _work(
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
