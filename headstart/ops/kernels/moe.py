"""A mixture of experts without waiting for the device: (token, expert) pairs sorted there, then two grouped products.

Nothing here depends on how many tokens an expert has: the grid is that of the worst case, and programs without work
end at once, so that a CUDA graph can hold it. Only weights of experts that somebody chose are read.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstart.ops.kernels.activation import activate, kernel_name

_SORT_BLOCK = 1024
# Tiles of rows that take turns over the same columns of a weight, so that these are found in the level-two cache.
_GROUP = 8


class Config(NamedTuple):
    """How a product is cut: pairs, outputs and inputs of a tile, warps of a program, tiles in flight."""

    pairs: int
    outputs: int
    inputs: int
    warps: int
    stages: int


# By the pairs that an expert has on average, up to so many; a product with a gate has two tiles of outputs.
_GATED = {16: Config(16, 32, 128, 4, 4), 64: Config(64, 64, 64, 4, 4), 1 << 62: Config(128, 64, 64, 8, 4)}
_PLAIN = {16: Config(16, 32, 256, 4, 4), 64: Config(64, 128, 64, 4, 4), 1 << 62: Config(128, 128, 64, 8, 4)}
# Numbers of four bytes go to the ordinary cores, for which tiles have to be small.
_WIDE = Config(16, 32, 32, 4, 2)


@triton.jit
def _sort(experts_ptr, order_ptr, starts_ptr, pairs, BLOCK: tl.constexpr):
    """Each program finds where the pairs of its expert begin, and puts them there in their order."""
    expert = tl.program_id(0)
    before = tl.zeros((BLOCK,), tl.int32)
    for first in tl.range(0, pairs, BLOCK):
        pair = first + tl.arange(0, BLOCK)
        chosen = tl.load(experts_ptr + pair, mask=pair < pairs, other=expert)
        before += (chosen < expert).to(tl.int32)
    start = tl.sum(before, 0)
    for first in tl.range(0, pairs, BLOCK):
        pair = first + tl.arange(0, BLOCK)
        mine = (tl.load(experts_ptr + pair, mask=pair < pairs, other=-1) == expert).to(tl.int32)
        place = start + tl.cumsum(mine, 0) - 1
        tl.store(order_ptr + place, pair, mask=mine == 1)
        start += tl.sum(mine, 0)
    # Where an expert's pairs end, the next one's begin.
    tl.store(starts_ptr + expert + 1, start)
    if expert == 0:
        tl.store(starts_ptr, 0)


@triton.jit
def _find(starts_ptr, tile, experts, PAIRS: tl.constexpr, EXPERTS: tl.constexpr):
    """The expert of a tile of pairs (`experts` beyond the last tile), the tile's first pair, and the expert's end."""
    index = tl.arange(0, EXPERTS)
    start = tl.load(starts_ptr + index, mask=index < experts, other=0)
    end = tl.load(starts_ptr + index + 1, mask=index < experts, other=0)
    tiles = (end - start + PAIRS - 1) // PAIRS
    expert = tl.sum(((tl.cumsum(tiles, 0) <= tile) & (index < experts)).to(tl.int32), 0)
    within = tile - tl.sum(tl.where(index < expert, tiles, 0), 0)
    first = tl.sum(tl.where(index == expert, start, 0), 0) + within * PAIRS
    return expert, first, tl.sum(tl.where(index == expert, end, 0), 0)


@triton.jit
def _grouped(
    x_ptr,
    w_ptr,
    scale_ptr,
    mixing_ptr,
    order_ptr,
    starts_ptr,
    y_ptr,
    x_stride,
    w_expert_stride,
    w_stride,
    experts,
    out_features,
    in_features,
    tiles,
    TOP_K: tl.constexpr,
    GATE: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    EXPERTS: tl.constexpr,
    PAIRS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """With a GATE: rows of tokens → gated inner rows, sorted by expert. Without: those → rows by pair, mixed."""
    program = tl.program_id(0)
    columns = tl.cdiv(out_features, OUTPUTS)
    group = program // (GROUP * columns)
    high = tl.minimum(tiles - group * GROUP, GROUP)
    tile = group * GROUP + program % (GROUP * columns) % high
    expert, first, end = _find(starts_ptr, tile, experts, PAIRS, EXPERTS)
    if expert >= experts:
        return
    place = first + tl.arange(0, PAIRS)
    inside = place < end
    pair = tl.load(order_ptr + place, mask=inside, other=0)
    # Tokens are read from where they lie, and written where their expert's begin; then the other way round.
    read = (pair // TOP_K if GATE != "" else place).to(tl.int64)
    written = (place if GATE != "" else pair).to(tl.int64)
    output = program % (GROUP * columns) // high * OUTPUTS + tl.arange(0, OUTPUTS)
    own_w_ptr = w_ptr + expert.to(tl.int64) * w_expert_stride
    total = tl.zeros((PAIRS, OUTPUTS), tl.float32)
    total_up = total
    for start in tl.range(0, in_features, INPUTS, num_stages=STAGES):
        column = start + tl.arange(0, INPUTS)
        deep = column < in_features
        x = tl.load(x_ptr + read[:, None] * x_stride + column[None, :], mask=inside[:, None] & deep[None, :], other=0.0)
        at = own_w_ptr + output[None, :].to(tl.int64) * w_stride + column[:, None]
        wanted = (output < out_features)[None, :] & deep[:, None]
        w = tl.load(at, mask=wanted, other=0.0).to(x.dtype)
        total = tl.dot(x, w, total, input_precision=PRECISION)
        if GATE != "":
            # Made anew, since a size of 1 is a plain number to Triton, which has no type to turn into a wider one.
            at = own_w_ptr + (output[None, :] + out_features).to(tl.int64) * w_stride + column[:, None]
            w = tl.load(at, mask=wanted, other=0.0).to(x.dtype)
            total_up = tl.dot(x, w, total_up, input_precision=PRECISION)
    wanted = output < out_features
    dtype = y_ptr.dtype.element_ty
    # Rounded where the single ops round.
    if GATE != "":
        if HAS_SCALE:
            own_scale_ptr = scale_ptr + expert * 2 * out_features + output
            total *= tl.load(own_scale_ptr, mask=wanted, other=0.0).to(tl.float32)[None, :]
            total_up *= tl.load(own_scale_ptr + out_features, mask=wanted, other=0.0).to(tl.float32)[None, :]
        y = activate(total.to(dtype).to(tl.float32), GATE).to(dtype).to(tl.float32) * total_up.to(dtype).to(tl.float32)
    else:
        if HAS_SCALE:
            own_scale_ptr = scale_ptr + expert * out_features + output
            total *= tl.load(own_scale_ptr, mask=wanted, other=0.0).to(tl.float32)[None, :]
        mixing = tl.load(mixing_ptr + pair, mask=inside, other=0.0).to(tl.float32)
        y = total.to(dtype).to(tl.float32) * mixing[:, None]
    at = y_ptr + written[:, None] * out_features + output[None, :]
    tl.store(at, y.to(dtype), mask=inside[:, None] & wanted[None, :])


@triton.jit
def _sum(parts_ptr, onto_ptr, y_ptr, size, TOP_K: tl.constexpr, HAS_ONTO: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    dtype = y_ptr.dtype.element_ty
    total = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(TOP_K):
        total += tl.load(parts_ptr + (token * TOP_K + k) * size + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_ONTO:
        total = total.to(dtype).to(tl.float32)
        total += tl.load(onto_ptr + token * size + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + token * size + column, total.to(dtype), mask=inside)


def sort_pairs(experts: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Pairs (token, choice) by expert, in one launch and without waiting.

    Args:
        experts: int64 `[T, K]`, contiguous; pair `t * K + k` is entry `[t, k]`.
        num_experts: E.

    Returns:
        int32 `[T * K]`, the pairs sorted by expert, and int32 `[E + 1]`, where each expert's begin.
    """
    pairs = experts.numel()
    order = torch.empty(pairs, dtype=torch.int32, device=experts.device)
    starts = torch.empty(num_experts + 1, dtype=torch.int32, device=experts.device)
    block = min(_SORT_BLOCK, max(16, triton.next_power_of_2(pairs)))
    _sort[(num_experts,)](experts, order, starts, pairs, BLOCK=block)
    return order, starts


def most_tiles(pairs: int, experts: int, height: int) -> int:
    """Tiles of `height` pairs of one expert each that so many pairs can need, however they fall."""
    return (pairs + min(pairs, experts) * (height - 1)) // height


def mix(
    x: Tensor,
    weights: Tensor,
    experts: Tensor,
    gate_up: Tensor,
    down: Tensor,
    activation: str,
    onto: Tensor | None,
    scales: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`headstart.ops.moe.mix_experts` in four launches.

    Args:
        x: `[T, hidden]`, T at least 1, rows of any stride.
        weights, experts: `[T, K]`, contiguous.
        gate_up, down: `[E, 2 I, hidden]` and `[E, hidden, I]`, in x's dtype or in one of eight bits.
        activation: its name.
        onto: `[T, hidden]`, contiguous, added to the result, or None.
        scales: of weights in eight bits, `[E, 2 I]` and `[E, hidden]`.

    Returns:
        `[T, hidden]`. Floor: the bytes of the chosen experts, or `6 T K I hidden` operations.
    """
    (tokens, hidden), (num_experts, _, inner) = x.shape, down.shape
    top_k = experts.shape[1]
    order, starts = sort_pairs(experts, num_experts)
    middle = torch.empty(tokens * top_k, inner, dtype=x.dtype, device=x.device)
    parts = torch.empty(tokens * top_k, hidden, dtype=x.dtype, device=x.device)
    gate_up_scale, down_scale = (None, None) if scales is None else scales
    shared = weights, order, starts, num_experts
    _launch(x, gate_up, gate_up_scale, *shared, middle, top_k, kernel_name(activation))
    _launch(middle, down, down_scale, *shared, parts, top_k, "")
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    block = min(1024, triton.next_power_of_2(hidden))
    grid = tokens, triton.cdiv(hidden, block)
    named: dict[str, Any] = {"TOP_K": top_k, "HAS_ONTO": onto is not None, "BLOCK": block}
    _sum[grid](parts, onto, y, hidden, **named)
    return y


def _launch(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    mixing: Tensor,
    order: Tensor,
    starts: Tensor,
    experts: int,
    y: Tensor,
    top_k: int,
    gate: str,
) -> None:
    """One grouped product into `y [pairs, out]`."""
    pairs, out_features = y.shape
    config = config_for(pairs, experts, x.dtype, gated=bool(gate))
    tiles = most_tiles(pairs, experts, config.pairs)
    _grouped[(tiles * triton.cdiv(out_features, config.outputs),)](
        x,
        weight,
        scale,
        mixing,
        order,
        starts,
        y,
        x.stride(0),
        weight.stride(0),
        weight.stride(1),
        experts,
        out_features,
        x.shape[1],
        tiles,
        TOP_K=top_k,
        GATE=gate,
        HAS_SCALE=scale is not None,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        GROUP=_GROUP,
        EXPERTS=triton.next_power_of_2(experts),
        PAIRS=config.pairs,
        OUTPUTS=config.outputs,
        INPUTS=config.inputs,
        STAGES=config.stages,
        num_warps=config.warps,  # pyright: ignore[reportCallIssue]
    )


def config_for(pairs: int, experts: int, dtype: torch.dtype, *, gated: bool) -> Config:
    """The tiling for so many pairs; the number of experts that have any is not known here."""
    if dtype == torch.float32:
        return _WIDE
    load = pairs / min(pairs, experts)
    return next(config for most, config in (_GATED if gated else _PLAIN).items() if load <= most)
