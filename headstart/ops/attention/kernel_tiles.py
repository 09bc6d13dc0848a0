"""A tile of query rows over tiles of keys: where these lie, which of them the rows see, and the running sums."""

# A kernel's body is not Python to Triton, and not Triton to a type checker.
# pyright: reportArgumentType=false, reportOptionalSubscript=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

_LOG2E = tl.constexpr(1.4426950408889634)


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
def start_of(entry, origin, KEY_BLOCK: tl.constexpr, LINES: tl.constexpr):
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
            place = start_of(entry, origin, KEY_BLOCK, LINES) + place % KEY_BLOCK
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
            start = start_of(entry, origin, KEY_BLOCK, LINES)
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
    """`q [M, D]` on `keys [N, D]`: scores `[M, N]`, but for a factor that `over_keys` applies."""
    scores = tl.dot(q, tl.trans(keys.to(q.dtype)), input_precision=PRECISION)
    if SOFTCAP:
        # The soft cap's tanh, by way of the sigmoid.
        scores = 2.0 * tl.sigmoid(scores * (2.0 * scale / softcap)) - 1.0
    return scores


@triton.jit
def over_keys(
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
