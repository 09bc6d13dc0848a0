"""FlashAttention, forward and backward, within packed documents (arXiv 2205.14135): no score reaches main memory.

Tiles lie on the flat list of tokens and pay no heed to documents. `first[q]` is the first key that token q sees, and
`last[k]` the last token that sees key k; neither ever falls along the list, so a tile's two ends tell which tiles it
meets, and which of those need no mask.
"""

# A kernel's body is not Python to Triton, and not Triton to a type checker.
# pyright: reportArgumentType=false, reportOptionalSubscript=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _listed(nth, lists, BLOCK: tl.constexpr, SIZE: tl.constexpr):
    """The nth tile of SIZE tokens in a list of blocks of BLOCK tokens; with BLOCK 0, all tiles count."""
    tile = nth
    if BLOCK:
        tile = tl.load(lists + nth // (BLOCK // SIZE)) * (BLOCK // SIZE) + nth % (BLOCK // SIZE)
    return tile


@triton.jit
def _keys_of(first, row_0, tokens, count, BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The key tiles that a row tile meets, `begin` to `end`, and from `left` to `right` those that need no mask."""
    begin = tl.load(first + row_0) // BLOCK_N
    end = tl.cdiv(tl.minimum(row_0 + BLOCK_M, tokens), BLOCK_N)
    left = tl.cdiv(tl.load(first + tl.minimum(row_0 + BLOCK_M, tokens) - 1), BLOCK_N)
    left = tl.minimum(tl.maximum(left, begin), end)
    right = tl.minimum(tl.maximum((row_0 + 1) // BLOCK_N, left), end)
    if BLOCK:
        begin, left, right, end = 0, 0, 0, count * (BLOCK // BLOCK_N)
    return begin, left, right, end


@triton.jit
def _forward_over(
    acc,
    total,
    top,
    q,
    rows,
    my_first,
    begin,
    end,
    k,
    v,
    lists,
    column,
    to_base_2,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Takes key tiles into the weighted values `acc [M, D]`, weights `total [M]` and largest scores `top [M]`."""
    for nth in tl.range(begin, end, num_stages=STAGES):
        key_0 = _listed(nth, lists, BLOCK, BLOCK_N) * BLOCK_N
        scores = tl.dot(q, tl.trans(k.load([key_0, column])), input_precision=PRECISION)
        if MASKED:
            keys = (key_0 + tl.arange(0, BLOCK_N))[None, :]
            scores = tl.where((keys <= rows[:, None]) & (keys >= my_first[:, None]), scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * to_base_2)
        base = tl.where(new_top == float("-inf"), 0.0, new_top) if MASKED else new_top
        shrink = tl.exp2(top - base)
        weights = tl.exp2(scores * to_base_2 - base[:, None])
        total = total * shrink + tl.sum(weights, 1)
        values = v.load([key_0, column])
        acc = tl.dot(weights.to(q.dtype), values, acc * shrink[:, None], input_precision=PRECISION)
        top = new_top
    return acc, total, top


@triton.jit(do_not_specialize=["tokens"])
def forward_kernel(
    q,
    k,
    v,
    out,
    lse,
    first,
    lists,
    counts,
    tokens,
    scale,
    lists_head,
    lists_row,
    counts_head,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    LIST_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One row tile of one head; grid `(row tiles, H)`.

    `q`, `k`, `v` are tensor maps of `[T, heads x D]`; `out [T, H, D]`, `lse [H, T]`. With BLOCK, `lists [Hb, B, B]` and
    `counts [Hb, B]` name the blocks of keys that each block of rows looks at.
    """
    row_0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    head = tl.program_id(1)
    rows = row_0 + tl.arange(0, BLOCK_M)
    there = rows < tokens
    my_first = tl.load(first + rows, mask=there, other=0)
    count = 0
    if BLOCK:
        lists += head // LIST_GROUP * lists_head + row_0 // BLOCK * lists_row
        count = tl.load(counts + head // LIST_GROUP * counts_head + row_0 // BLOCK)
    begin, left, right, end = _keys_of(first, row_0, tokens, count, BLOCK, BLOCK_M, BLOCK_N)
    acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    q_tile = q.load([row_0, head * HEAD_DIM])
    for phase in tl.static_range(3):
        # Around where documents begin, what every row sees, around the diagonal; a list is all of the last kind.
        if phase == 2 or BLOCK == 0:
            acc, total, top = _forward_over(
                acc, total, top, q_tile, rows, my_first,
                begin if phase == 0 else left if phase == 1 else right,
                left if phase == 0 else right if phase == 1 else end,
                k, v, lists, head // GROUP * HEAD_DIM, scale * _LOG2E, BLOCK, BLOCK_N, phase != 1,
                STAGES if phase == 1 or BLOCK else 1, PRECISION,
            )  # fmt: skip
    saw = total > 0.0
    safe = tl.where(saw, total, 1.0)
    cells = (rows.to(tl.int64) * HEADS + head)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    tl.store(out + cells, (acc / safe[:, None]).to(out.dtype.element_ty), mask=there[:, None])
    log_sum = tl.where(saw, (top + tl.log2(safe)) * _LN2, float("-inf"))
    tl.store(lse + head.to(tl.int64) * tokens + rows, log_sum, mask=there)


@triton.jit
def _queries_gradient_over(
    acc,
    q,
    grad,
    log_sum,
    delta,
    rows,
    my_first,
    begin,
    end,
    k,
    v,
    lists,
    column,
    to_base_2,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Takes key tiles into the gradient of a row tile's queries, `acc [M, D]`, but for the scale."""
    for nth in tl.range(begin, end, num_stages=STAGES):
        key_0 = _listed(nth, lists, BLOCK, BLOCK_N) * BLOCK_N
        keys = k.load([key_0, column])
        scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
        weights = tl.exp2(scores * to_base_2 - log_sum[:, None])
        if MASKED:
            place = (key_0 + tl.arange(0, BLOCK_N))[None, :]
            weights = tl.where((place <= rows[:, None]) & (place >= my_first[:, None]), weights, 0.0)
        values = v.load([key_0, column])
        by_weight = tl.dot(grad, tl.trans(values), input_precision=PRECISION)
        by_score = (weights * (by_weight - delta[:, None])).to(q.dtype)
        acc = tl.dot(by_score, keys, acc, input_precision=PRECISION)
    return acc


@triton.jit(do_not_specialize=["tokens"])
def queries_gradient_kernel(
    q,
    k,
    v,
    out,
    grad_out,
    lse,
    grad_lse,
    delta,
    grad_q,
    first,
    lists,
    counts,
    tokens,
    scale,
    lists_head,
    lists_row,
    counts_head,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    LIST_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The queries' gradient, a row tile of one head, and `delta [H, T]` for `keys_gradient_kernel`; grid
    `(row tiles, H)`.

    `q`, `k`, `v`, `out` and `grad_out` are tensor maps of `[T, heads x D]`; `lse, grad_lse [H, T]`; `grad_q [T, H, D]`.
    """
    row_0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    head = tl.program_id(1)
    rows = row_0 + tl.arange(0, BLOCK_M)
    there = rows < tokens
    my_first = tl.load(first + rows, mask=there, other=0)
    count = 0
    if BLOCK:
        lists += head // LIST_GROUP * lists_head + row_0 // BLOCK * lists_row
        count = tl.load(counts + head // LIST_GROUP * counts_head + row_0 // BLOCK)
    begin, left, right, end = _keys_of(first, row_0, tokens, count, BLOCK, BLOCK_M, BLOCK_N)
    grad = grad_out.load([row_0, head * HEAD_DIM])
    mine = head.to(tl.int64) * tokens + rows
    my_delta = tl.sum(grad.to(tl.float32) * out.load([row_0, head * HEAD_DIM]).to(tl.float32), 1)
    my_delta -= tl.load(grad_lse + mine, mask=there, other=0.0)
    tl.store(delta + mine, my_delta, mask=there)
    log_sum = tl.load(lse + mine, mask=there, other=0.0) * _LOG2E
    acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    q_tile = q.load([row_0, head * HEAD_DIM])
    for phase in tl.static_range(3):
        if phase == 2 or BLOCK == 0:
            acc = _queries_gradient_over(
                acc, q_tile, grad, log_sum, my_delta, rows, my_first,
                begin if phase == 0 else left if phase == 1 else right,
                left if phase == 0 else right if phase == 1 else end,
                k, v, lists, head // GROUP * HEAD_DIM, scale * _LOG2E, BLOCK, BLOCK_N, phase != 1,
                STAGES if phase == 1 or BLOCK else 1, PRECISION,
            )  # fmt: skip
    cells = (rows.to(tl.int64) * HEADS + head)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    tl.store(grad_q + cells, (acc * scale).to(grad_q.dtype.element_ty), mask=there[:, None])


@triton.jit
def _keys_gradient_over(
    grad_keys,
    grad_values,
    keys,
    values,
    places,
    begin,
    end,
    q,
    grad_out,
    lse,
    delta,
    first,
    tokens,
    lists,
    column,
    to_base_2,
    BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    MASKED: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Takes row tiles into the gradients of a tile of keys, `[N, D]` but for the scale, and of its values `[N, D]`."""
    for nth in tl.range(begin, end, num_stages=STAGES):
        row_0 = _listed(nth, lists, BLOCK, BLOCK_M) * BLOCK_M
        rows = row_0 + tl.arange(0, BLOCK_M)
        there = rows < tokens
        queries = q.load([row_0, column])
        scores = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
        log_sum = tl.load(lse + rows, mask=there, other=0.0) * _LOG2E
        weights = tl.exp2(scores * to_base_2 - log_sum[None, :])
        if MASKED:
            my_first = tl.load(first + rows, mask=there, other=0)
            seen = (places[:, None] <= rows[None, :]) & (places[:, None] >= my_first[None, :])
            weights = tl.where(seen & there[None, :], weights, 0.0)
        grad = grad_out.load([row_0, column])
        grad_values = tl.dot(weights.to(grad.dtype), grad, grad_values, input_precision=PRECISION)
        by_weight = tl.dot(values, tl.trans(grad), input_precision=PRECISION)
        my_delta = tl.load(delta + rows, mask=there, other=0.0)
        by_score = (weights * (by_weight - my_delta[None, :])).to(queries.dtype)
        grad_keys = tl.dot(by_score, queries, grad_keys, input_precision=PRECISION)
    return grad_keys, grad_values


@triton.jit(do_not_specialize=["tokens"])
def keys_gradient_kernel(
    q,
    k,
    v,
    grad_out,
    lse,
    delta,
    grad_k,
    grad_v,
    first,
    last,
    lists,
    counts,
    tokens,
    scale,
    lists_head,
    lists_row,
    counts_head,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    LIST_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradients of keys and values, a tile of one KV head, summed over its query heads; grid `(key tiles, Hkv)`.

    `q`, `k`, `v` and `grad_out` are tensor maps of `[T, heads x D]`; `lse, delta [H, T]`; `grad_k, grad_v
    [T, Hkv, D]`. With BLOCK, `lists` and `counts` name the blocks of rows that look at each block of keys.
    """
    key_0 = tl.program_id(0) * BLOCK_N
    kv_head = tl.program_id(1)
    places = key_0 + tl.arange(0, BLOCK_N)
    newest = tl.minimum(key_0 + BLOCK_N, tokens) - 1
    begin = key_0 // BLOCK_M
    end = tl.cdiv(tl.load(last + newest) + 1, BLOCK_M)
    # Rows from the newest key on see all keys here, as long as the first key's document or window lasts.
    left = tl.minimum(tl.cdiv(newest, BLOCK_M), end)
    right = tl.minimum(tl.maximum((tl.load(last + key_0) + 1) // BLOCK_M, left), end)
    keys = k.load([key_0, kv_head * HEAD_DIM])
    values = v.load([key_0, kv_head * HEAD_DIM])
    grad_keys = tl.zeros([BLOCK_N, HEAD_DIM], tl.float32)
    grad_values = tl.zeros([BLOCK_N, HEAD_DIM], tl.float32)
    for nth in range(GROUP):
        head = kv_head * GROUP + nth
        my_lists = lists
        if BLOCK:
            my_lists = lists + head // LIST_GROUP * lists_head + key_0 // BLOCK * lists_row
            count = tl.load(counts + head // LIST_GROUP * counts_head + key_0 // BLOCK)
            begin, left, right, end = 0, 0, 0, count * (BLOCK // BLOCK_M)
        for phase in tl.static_range(3):
            # Around the diagonal, rows that see every key, around where windows or documents end.
            if phase == 2 or BLOCK == 0:
                grad_keys, grad_values = _keys_gradient_over(
                    grad_keys, grad_values, keys, values, places,
                    begin if phase == 0 else left if phase == 1 else right,
                    left if phase == 0 else right if phase == 1 else end,
                    q, grad_out, lse + head.to(tl.int64) * tokens, delta + head.to(tl.int64) * tokens, first, tokens,
                    my_lists, head * HEAD_DIM, scale * _LOG2E, BLOCK, BLOCK_M, phase != 1,
                    STAGES if phase == 1 or BLOCK else 1, PRECISION,
                )  # fmt: skip
    cells = (places.to(tl.int64) * KV_HEADS + kv_head)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    there = (places < tokens)[:, None]
    tl.store(grad_k + cells, (grad_keys * scale).to(grad_k.dtype.element_ty), mask=there)
    tl.store(grad_v + cells, grad_values.to(grad_v.dtype.element_ty), mask=there)
