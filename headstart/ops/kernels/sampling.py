"""Draws of one token per row without sorting the vocabulary, and the random numbers that decide them.

A program reads its row twice: for the largest value of each of its lanes, from which it learns above which value some
hundreds of tokens lie, and for the sum of all weights, while these tokens are put aside. Whatever top-k and top-p keep
is nearly always among them; where it is not, the program searches the whole row for the bounds by bisection.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 8192
_CANDIDATES = 1024
_COLDEST, _HOTTEST = tl.constexpr(1e-5), tl.constexpr(1e30)
_CHUNK = tl.constexpr(16)
"""Candidates that all others are compared with at a time."""


@triton.jit
def _ordered(x):
    """Whole numbers in the order of float32 numbers."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _weights(logits_ptr, place, size, temperature, shift, min_p):
    """Float32 weights relative to the likeliest token's; 0 behind the row's end and for what min-p drops."""
    x = tl.load(logits_ptr + place, mask=place < size, other=-float("inf"))
    weight = tl.exp(x / temperature - shift)
    return x, tl.where(weight >= tl.maximum(min_p, 1e-45), weight, 0.0)


@triton.jit
def _peaks(logits_ptr, size, BLOCK: tl.constexpr):
    """The largest value of each lane, and the first place of the largest of all."""
    best = tl.full((BLOCK,), -float("inf"), tl.float32)
    place = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + at, mask=at < size, other=-float("inf"))
        place = tl.where(x > best, at, place)
        best = tl.maximum(x, best)
    return best, tl.min(tl.where(best == tl.max(best, 0), place, 0x7FFFFFFF), 0)


@triton.jit
def _cut(best, RANK: tl.constexpr):
    """The least value that at most RANK lanes reach, in the order of `_ordered`."""
    keys = _ordered(best)
    low, high = tl.min(keys, 0).to(tl.int64) - 1, tl.max(keys, 0).to(tl.int64) + 1
    while high - low > 1:
        middle = (low + high) // 2
        if tl.sum((keys >= middle).to(tl.int32), 0) <= RANK:
            high = middle
        else:
            low = middle
    return high


@triton.jit
def _draw_in_order(logits_ptr, size, temperature, shift, min_p, point, token, BLOCK: tl.constexpr):
    """By inverting the cumulative distribution in the order of the vocabulary."""
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        sums += _weights(logits_ptr, start + tl.arange(0, BLOCK), size, temperature, shift, min_p)[1]
    target = point * tl.sum(sums.to(tl.float64), 0)
    before = tl.zeros((), tl.float64)
    waiting = tl.full((), 1, tl.int32)
    for start in range(0, size, BLOCK):
        if waiting > 0:
            weight = _weights(logits_ptr, start + tl.arange(0, BLOCK), size, temperature, shift, min_p)[1]
            own = tl.sum(weight.to(tl.float64), 0)
            if before + own > target:
                cumulative = before + tl.cumsum(weight.to(tl.float64), 0)
                token = start + tl.sum((cumulative <= target).to(tl.int32), 0)
                waiting = tl.zeros((), tl.int32)
            before += own
    return token


@triton.jit
def _above(logits_ptr, size, temperature, shift, min_p, bits, BLOCK: tl.constexpr):
    """How many weights are at least that of these bits, and their mass."""
    counts = tl.zeros((BLOCK,), tl.int32)
    masses = tl.zeros((BLOCK,), tl.float64)
    least = bits.to(tl.float32, bitcast=True)
    for start in range(0, size, BLOCK):
        weight = _weights(logits_ptr, start + tl.arange(0, BLOCK), size, temperature, shift, min_p)[1]
        counts += (weight >= least).to(tl.int32)
        masses += tl.where(weight >= least, weight, 0.0).to(tl.float64)
    return tl.sum(counts, 0), tl.sum(masses, 0)


@triton.jit
def _bound(logits_ptr, size, temperature, shift, min_p, count, mass, BLOCK: tl.constexpr):
    """The largest weight such that, from it on, there are `count` entries and more than `mass`.

    Returns the bits of the weight, and the number and mass of what is larger.
    """
    low = tl.full((), 1, tl.int32)
    high = tl.full((), 0x3F800001, tl.int32)  # the next one after 1.0, which no weight exceeds
    count_above, mass_above = tl.zeros((), tl.int32), tl.zeros((), tl.float64)
    while high - low > 1:
        middle = low + (high - low) // 2
        found, weighs = _above(logits_ptr, size, temperature, shift, min_p, middle, BLOCK)
        if (found >= count) & (weighs > mass):
            low = middle
        else:
            high, count_above, mass_above = middle, found, weighs
    return low, count_above, mass_above


@triton.jit
def _draw_by_bounds(logits_ptr, size, temperature, shift, min_p, top_k, top_p, point, token, BLOCK: tl.constexpr):
    """Among what top-k and then top-p keep, in falling order, found in the whole row."""
    total_count, mass = _above(logits_ptr, size, temperature, shift, min_p, tl.full((), 1, tl.int32), BLOCK)  # pyright: ignore[reportGeneralTypeIssues]
    last, ties = tl.full((), 1, tl.int32), tl.full((), 0, tl.int32)
    if top_k < total_count:
        none = tl.full((), -1.0, tl.float64)
        last, count_above, mass_above = _bound(logits_ptr, size, temperature, shift, min_p, top_k, none, BLOCK)
        ties = top_k - count_above
        mass = mass_above + ties * last.to(tl.float32, bitcast=True).to(tl.float64)
    if top_p < 1:
        # What comes before the last that is kept weighs less than this.
        target = top_p * mass
        bound, count_above, mass_above = _bound(logits_ptr, size, temperature, shift, min_p, 1, target, BLOCK)
        if bound >= last:
            value = bound.to(tl.float32, bitcast=True).to(tl.float64)
            last, ties = bound, tl.maximum(tl.ceil((target - mass_above) / value).to(tl.int32), 1)
            mass = mass_above + ties * value
    drawn, count_above, mass_above = _bound(logits_ptr, size, temperature, shift, min_p, 1, point * mass, BLOCK)
    value = drawn.to(tl.float32, bitcast=True)
    number = ((point * mass - mass_above) / value.to(tl.float64)).to(tl.int32)
    if drawn == last:
        number = tl.minimum(number, ties - 1)
    seen = tl.zeros((), tl.int32)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        same = (_weights(logits_ptr, at, size, temperature, shift, min_p)[1] == value).to(tl.int32)
        place = seen + tl.cumsum(same, 0) - 1
        here = tl.min(tl.where((same > 0) & (place == number), at, 0x7FFFFFFF), 0)
        token = tl.where(here < 0x7FFFFFFF, here, token)
        seen += tl.sum(same, 0)
    return token


@triton.jit
def _draw(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    points_ptr,
    weights_ptr,
    places_ptr,
    drawn_ptr,
    stride,
    size,
    RANK: tl.constexpr,
    CANDIDATES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    best, token = _peaks(logits_ptr, size, BLOCK)  # pyright: ignore[reportGeneralTypeIssues]
    temperature = tl.load(temperature_ptr + row).to(tl.float32)
    if temperature > 0:
        temperature = tl.minimum(tl.maximum(temperature, _COLDEST), _HOTTEST)
        shift = tl.max(best, 0) / temperature
        min_p, top_p = tl.load(min_p_ptr + row).to(tl.float32), tl.load(top_p_ptr + row).to(tl.float32)
        top_k = tl.load(top_k_ptr + row).to(tl.int32)
        top_k = tl.where((top_k > 0) & (top_k < size), top_k, size)
        point = tl.load(points_ptr + row)
        if (top_k == size) & (top_p >= 1):
            token = _draw_in_order(logits_ptr, size, temperature, shift, min_p, point, token, BLOCK)
        else:
            least = _cut(best, RANK)
            weights_ptr += row * CANDIDATES
            places_ptr += row * CANDIDATES
            count, positive = tl.zeros((), tl.int32), tl.zeros((), tl.int32)
            sums = tl.zeros((BLOCK,), tl.float32)
            for start in range(0, size, BLOCK):
                at = start + tl.arange(0, BLOCK)
                x, weight = _weights(logits_ptr, at, size, temperature, shift, min_p)
                kept = ((_ordered(x) >= least) & (weight > 0)).to(tl.int32)
                target = count + tl.cumsum(kept, 0) - 1
                inside = (kept > 0) & (target < CANDIDATES)
                tl.store(weights_ptr + target, weight, mask=inside)
                tl.store(places_ptr + target, at, mask=inside)
                sums += weight
                count += tl.sum(kept, 0)
                positive += tl.sum((weight > 0).to(tl.int32), 0)
            total = tl.sum(sums.to(tl.float64), 0)
            # The threads read what others have written.
            tl.debug_barrier()
            own = tl.arange(0, CANDIDATES)
            weight = tl.load(weights_ptr + own, mask=own < count, other=0.0)
            place = tl.load(places_ptr + own, mask=own < count, other=0)
            rank, before = tl.zeros((CANDIDATES,), tl.int32), tl.zeros((CANDIDATES,), tl.float64)
            for start in range(0, tl.minimum(count, CANDIDATES), _CHUNK):
                other = start + tl.arange(0, _CHUNK)
                theirs = tl.load(weights_ptr + other, mask=other < count, other=0.0)[None, :]
                first = (theirs > weight[:, None]) | ((theirs == weight[:, None]) & (other[None, :] < own[:, None]))
                rank += tl.sum(first.to(tl.int32), 1)
                before += tl.sum(tl.where(first, theirs, 0.0), 1).to(tl.float64)
            mass = tl.where(rank < top_k, weight, 0.0).to(tl.float64)
            reached = tl.sum(mass, 0)
            bound = tl.where(top_p < 1, top_p * tl.where(top_k < positive, reached, total), float("inf"))
            enough = (count == positive) | (top_k <= count) | ((top_k >= positive) & (reached >= bound))
            if (count <= CANDIDATES) & enough:
                kept = (rank < top_k) & ((before < bound) | (rank == 0)) & (weight > 0)
                target = point * tl.sum(tl.where(kept, weight, 0.0).to(tl.float64), 0)
                drawn = tl.min(tl.where(kept & (before + weight > target), rank, CANDIDATES), 0)
                if drawn < CANDIDATES:
                    token = tl.max(tl.where((rank == drawn) & kept, place, 0), 0)
            else:
                token = _draw_by_bounds(logits_ptr, size, temperature, shift, min_p, top_k, top_p, point, token, BLOCK)
    # A row without numbers, from a model that overflows, still gives a token that exists.
    tl.store(drawn_ptr + row, tl.minimum(token, size - 1).to(tl.int64))


@triton.jit
def _uniforms(keys_ptr, positions_ptr, points_ptr, purpose, number, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    key0 = tl.load(keys_ptr + at, mask=inside, other=0).to(tl.uint64, bitcast=True)
    key1 = tl.zeros((BLOCK,), tl.uint64)
    # NumPy counts on before it makes its first block.
    c0 = (tl.load(positions_ptr + at, mask=inside, other=0) + 1).to(tl.uint64, bitcast=True)
    c1 = tl.zeros((BLOCK,), tl.uint64) + purpose.to(tl.uint64)
    c2 = tl.zeros((BLOCK,), tl.uint64) + number.to(tl.uint64)
    c3 = tl.zeros((BLOCK,), tl.uint64)
    first = tl.full((BLOCK,), 0xD2E7470EE14C6C93, tl.uint64)
    second = tl.full((BLOCK,), 0xCA5A826395121157, tl.uint64)
    for _ in tl.static_range(10):
        c0, c1, c2, c3 = (
            tl.umulhi(second, c2) ^ c1 ^ key0,
            second * c2,
            tl.umulhi(first, c0) ^ c3 ^ key1,
            first * c0,
        )
        key0 += tl.full((BLOCK,), 0x9E3779B97F4A7C15, tl.uint64)
        key1 += tl.full((BLOCK,), 0xBB67AE8584CAA73B, tl.uint64)
    point = (c0 >> 11).to(tl.int64).to(tl.float64) * 1.1102230246251565e-16  # 2^-53
    tl.store(points_ptr + at, point, mask=inside)


def uniforms(seeds: Tensor, positions: Tensor, purpose: int, number: int) -> Tensor:
    """Int64 `[N]` each → float64 `[N]`, the numbers of `headstart.ops.sampling.uniforms`."""
    count = len(seeds)
    points = torch.empty(count, dtype=torch.float64, device=seeds.device)
    if count:
        _uniforms[(triton.cdiv(count, 128),)](seeds, positions, points, purpose, number, count, BLOCK=128)  # pyright: ignore[reportArgumentType]
    return points


def draw(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    points: Tensor,
    *,
    block: int = _BLOCK,
    candidates: int = _CANDIDATES,
) -> Tensor:
    """`logits [N, V]` float32 and settings `[N]` each → int64 `[N]`; floor: the bytes of the logits, read twice."""
    rows, size = logits.shape
    drawn = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if not rows:
        return drawn
    weights = torch.empty(rows, candidates, dtype=torch.float32, device=logits.device)
    named: dict[str, Any] = {
        # Some lanes hold two of the largest: that leaves room for them.
        "RANK": candidates * 3 // 4,
        "CANDIDATES": candidates,
        "BLOCK": min(block, triton.next_power_of_2(size)),
        "num_warps": 16,
    }
    places = torch.empty_like(weights, dtype=torch.int32)
    settings = [part.contiguous() for part in (temperature, top_k, top_p, min_p, points)]
    kernel: Any = _draw
    kernel[(rows,)](logits, *settings, weights, places, drawn, logits.stride(0), size, **named)
    return drawn
