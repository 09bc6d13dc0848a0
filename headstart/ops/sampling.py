"""Draws of one token per row: what temperature, min-p, top-k and top-p leave, and the numbers that decide.

Both are functions of what they are given alone: the same row, settings and point give the same token, whoever shares
the batch.
"""

import logging
from functools import cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from headstart.ops import kernels

log = logging.getLogger(__name__)

# Nucleus sampling looks at this many candidates first and sorts the whole vocabulary only where they fall short.
_CANDIDATES = 1024
# Rows and vocabulary of the draws by which the kernel has to prove itself.
_TRIALS, _TRIAL_SIZE = 256, 2000
# Below the one a draw is greedy in float32 anyway, above the other it is even; beyond them divisions overflow.
COLDEST, HOTTEST = 1e-5, 1e30


def draw(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, points: Tensor) -> Tensor:
    """One draw per row by inverting the cumulative distribution; on a GPU the host does not wait for it.

    Where top-k or top-p is set, that is the distribution in falling order, of equal tokens in any; else in the order
    of the vocabulary.

    Args:
        logits: `[N, V]` float32.
        temperature: `[N]`, like what follows of any dtype; 0 takes the likeliest token.
        top_k: `[N]`, how many of the likeliest tokens are kept; 0, V and more keep all.
        top_p: `[N]`, the share of what top-k keeps that is kept, from the likeliest on; 1 keeps all.
        min_p: `[N]`, tokens below this share of the likeliest one's probability are dropped.
        points: float64 `[N]` in [0, 1).

    Returns:
        int64 `[N]`.
    """
    if logits.stride(1) == 1 and kernels.run_on(logits) and _kernel_agrees(logits.device):
        from headstart.ops.kernels import sampling

        return sampling.draw(logits, temperature, top_k, top_p, min_p, points)
    return _draw_plainly(logits, temperature, top_k, top_p, min_p, points)


def _draw_plainly(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, points: Tensor
) -> Tensor:
    drawn = logits.argmax(-1)
    random = temperature > 0
    if bool(random.all()):
        return _draw(logits, temperature, top_k, top_p, min_p, points)
    if bool(random.any()):
        drawn[random] = _draw(*(part[random] for part in (logits, temperature, top_k, top_p, min_p, points)))
    return drawn


@cache
def _kernel_agrees(device: torch.device) -> bool:
    """Whether the kernel draws here what it should; where it does not, the plain path draws, and waits for the host."""
    from headstart.ops.kernels import sampling

    numbers = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(_TRIALS, _TRIAL_SIZE, generator=numbers)
    settings = torch.ones(5, _TRIALS, dtype=torch.float64)
    settings[1] = torch.randint(0, _TRIAL_SIZE, (_TRIALS,), generator=numbers) * (torch.arange(_TRIALS) % 3 == 0)
    settings[2, ::2] = 0.9
    settings[3] = 0.0
    settings[4] = torch.rand(_TRIALS, generator=numbers, dtype=torch.float64)
    expected = _draw_plainly(logits, *settings)
    got = sampling.draw(logits.to(device), *settings.to(device)).cpu()
    # Sums in another order settle a draw on the border between two tokens differently now and then.
    agrees = int((got != expected).sum()) <= _TRIALS // 50
    if not agrees:
        log.warning("the kernel that draws tokens is wrong on this GPU; draws go on without it, a little slower")
    return agrees


def tempered(logits: Tensor, temperature: Tensor) -> Tensor:
    """`logits [N, V]` → probabilities `[N, V]` at these temperatures `[N]`, all above 0."""
    return torch.softmax(logits / temperature.float().clamp(COLDEST, HOTTEST)[:, None], -1)


def filtered(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """`logits [N, V]` → probabilities `[N, V]`, what `draw` draws from rows that are not greedy."""
    probabilities = _tempered(logits, temperature, min_p)
    top_k, top_p, bounded = _bounds(top_k, top_p, logits.shape[1])
    if bool(bounded.any()):
        values, indices = probabilities[bounded].sort(dim=-1, descending=True)
        among = _among_likeliest(values, values.sum(-1, keepdim=True), logits.shape[1], top_p[bounded], top_k[bounded])
        probabilities[bounded] = torch.zeros_like(values).scatter_(1, indices, values * among)
    return probabilities / probabilities.sum(-1, keepdim=True)


def draw_reference(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, points: Tensor
) -> Tensor:
    """The same by its definition, row by row, in float64 over the sorted vocabulary."""
    drawn = []
    for row, t, k, p, least, point in zip(logits, temperature, top_k, top_p, min_p, points, strict=True):
        if t == 0:
            drawn.append(row.argmax())
            continue
        weights = torch.softmax(row.double() / t.clamp(COLDEST, HOTTEST), -1)
        weights = weights.masked_fill(weights < weights.max() * least, 0.0)
        order = torch.arange(len(row), device=row.device)
        if 0 < k < len(row) or p < 1:
            weights, order = weights.sort(descending=True, stable=True)
            if 0 < k < len(row):
                weights[int(k) :] = 0.0
            if p < 1:
                before = weights.cumsum(0) - weights
                weights = torch.where((before < p * weights.sum()) | (order == order[0]), weights, 0.0)
        cumulative = weights.cumsum(0)
        index = (cumulative <= point * cumulative[-1]).sum().clamp(max=weights.nonzero().max())
        drawn.append(order[index])
    return torch.stack(drawn)


def invert(weights: Tensor, points: Tensor) -> Tensor:
    """`weights [N, C]`, points in [0, 1) `[N, 1]` → `[N]`, the entry within which each point of the mass falls."""
    cumulative = weights.double().cumsum(-1)
    index = torch.searchsorted(cumulative, points * cumulative[:, -1:], right=True)
    # The product can round up to the total itself: then the first entry that reaches the total is meant.
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    # A row without numbers, from a model that overflows, still gives a token that exists.
    return torch.minimum(index, last).clamp_(max=weights.shape[1] - 1).squeeze(1)


def _tempered(logits: Tensor, temperature: Tensor, min_p: Tensor) -> Tensor:
    """`[N, V]` → probabilities `[N, V]` after temperature and min-p `[N]`; min-p leaves them unnormalised."""
    probabilities = tempered(logits, temperature)
    if bool((min_p > 0).any()):
        floor = probabilities.amax(-1, keepdim=True) * min_p.float()[:, None]
        probabilities = probabilities.masked_fill(probabilities < floor, 0.0)
    return probabilities


def _among_likeliest(values: Tensor, total: Tensor, size: int, top_p: Tensor, top_k: Tensor) -> Tensor:
    """Which of the likeliest entries `values [N, C]`, in falling order, top-k and then top-p keep: bool `[N, C]`.

    `total [N, 1]` is the mass of all `size` entries; `top_p`, `top_k` `[N, 1]`, the latter `size` where it is unset.
    """
    rank = torch.arange(values.shape[1], device=values.device)
    within = values.masked_fill(rank >= top_k, 0.0)
    # The mass that top-p is a share of: all of it, or what top-k has left.
    mass = torch.where(top_k >= size, total, within.sum(-1, keepdim=True))
    before = within.cumsum(-1) - within
    return ((before < top_p * mass) | (top_p >= 1) | (rank == 0)) & (within > 0)


def _draw(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, points: Tensor) -> Tensor:
    """`draw` of rows that are not greedy, each the way that costs it least."""
    points = points[:, None]
    probabilities = _tempered(logits, temperature, min_p)
    top_k, top_p, bounded = _bounds(top_k, top_p, logits.shape[1])
    if not bool(bounded.any()):
        return invert(probabilities, points)
    if bool(bounded.all()):
        return _draw_among_likeliest(probabilities, points, top_p, top_k)
    drawn = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    drawn[~bounded] = invert(probabilities[~bounded], points[~bounded])
    parts = (part[bounded] for part in (probabilities, points, top_p, top_k))
    drawn[bounded] = _draw_among_likeliest(*parts)
    return drawn


def _bounds(top_k: Tensor, top_p: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Top-k int64 `[N, 1]`, `size` where it is unset, top-p `[N, 1]`, and bool `[N]`, whether either bounds a row."""
    top_k = torch.where((top_k > 0) & (top_k < size), top_k.long(), size)
    return top_k[:, None], top_p.float()[:, None], (top_p < 1) | (top_k < size)


def _draw_among_likeliest(probabilities: Tensor, points: Tensor, top_p: Tensor, top_k: Tensor) -> Tensor:
    """`[N, V]`, and `[N, 1]` each, top-k being V where it is unset → `[N]`."""
    size = probabilities.shape[1]
    drawn, short = _draw_among(probabilities, points, top_p, top_k, min(_CANDIDATES, size))
    if bool(short.any()):
        # Only these rows: another choice of candidates could settle ties in the others differently.
        drawn[short], _ = _draw_among(probabilities[short], points[short], top_p[short], top_k[short], size)
    return drawn


def _draw_among(
    probabilities: Tensor, points: Tensor, top_p: Tensor, top_k: Tensor, candidates: int
) -> tuple[Tensor, Tensor]:
    """The same among the likeliest `candidates`, and bool `[N]`: the rows for which these were too few."""
    size = probabilities.shape[1]
    values, indices = probabilities.topk(candidates, dim=-1)
    kept = _among_likeliest(values, probabilities.sum(-1, keepdim=True), size, top_p, top_k)
    short = kept[:, -1] & (top_k[:, 0] > candidates) & (candidates < size)
    return indices.gather(1, invert(values * kept, points)[:, None]).squeeze(1), short


# By which Philox multiplies two words of its counter, and in halves of 32 bits; what is added to its key per round.
_MULTIPLIERS = np.array([[0xD2E7470EE14C6C93], [0xCA5A826395121157]], dtype=np.uint64)
_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)
_MULTIPLIER_HALVES = np.stack((_MULTIPLIERS & _LOW, _MULTIPLIERS >> _HALF))[None]
_KEY_STEPS = (
    np.array([0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B], dtype=np.uint64) * np.arange(10, dtype=np.uint64)[:, None]
)


def uniforms(seeds: ArrayLike, positions: ArrayLike, purpose: int = 0, number: ArrayLike = 0) -> NDArray[np.float64]:
    """The numbers in [0, 1) that decide something at output positions: Philox 4x64-10 with the seeds as its keys.

    They are those of `numpy.random.Philox(key=seed, counter=[position, purpose, number, 0])`, all at once.

    Args:
        seeds: `[N]`, whole numbers from 0 to 2^64 - 1.
        positions: `[N]`.
        purpose, number: tell apart what is decided at one position; the latter may be `[N]`.

    Returns:
        `[N]`.
    """
    # Said outright: of numbers on both sides of 2^63 NumPy would make floats.
    seeds, positions = (np.asarray(values, dtype=np.uint64) for values in (seeds, positions))
    count = len(seeds)
    keys = np.repeat(_KEY_STEPS[:, :, None], count, 2)
    keys[:, 0] += seeds
    # Words 0 and 2 of the counter are multiplied, words 1 and 3 are not. NumPy counts on before its first block.
    even, odd = np.empty((2, count), np.uint64), np.zeros((2, count), np.uint64)
    even[0], even[1], odd[0] = positions + np.uint64(1), number, purpose
    halves, products = np.empty((2, 1, 2, count), np.uint64), np.empty((2, 2, 2, count), np.uint64)
    (low, cross), (other, high) = products
    carry = np.empty_like(even)
    for key in keys:
        np.bitwise_and(even, _LOW, out=halves[0, 0])
        np.right_shift(even, _HALF, out=halves[1, 0])
        np.multiply(halves, _MULTIPLIER_HALVES, out=products)
        # The upper word of each product of 128 bits.
        np.right_shift(low, _HALF, out=low)
        np.add(cross, low, out=cross)
        np.bitwise_and(cross, _LOW, out=carry)
        np.add(other, carry, out=other)
        np.right_shift(cross, _HALF, out=cross)
        np.right_shift(other, _HALF, out=other)
        np.add(high, cross, out=high)
        np.add(high, other, out=high)
        np.bitwise_xor(odd, key, out=odd)
        np.bitwise_xor(odd, high[::-1], out=odd)
        np.multiply(even, _MULTIPLIERS, out=even)
        even, odd = odd, even[::-1]
    return (even[0] >> np.uint64(11)) * 2.0**-53
