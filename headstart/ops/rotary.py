"""Rotary position embedding: the first and second half of each head are rotated against one another."""

from typing import NamedTuple

import torch
from torch import Tensor

from headstart.ops import kernels
from headstart.ops.norm import rms_norm


class RotaryRows(NamedTuple):
    """What rotates one row per token, made once per step: `cos`, `sin` `[T, 1, R]`, R the rotated dimensions.

    The first half of `sin` is negated, so that rotating is `x * cos + swap_halves(x) * sin`.
    """

    cos: Tensor
    sin: Tensor


def rotary_rows(cos: Tensor, sin: Tensor, dtype: torch.dtype) -> RotaryRows:
    """`cos`, `sin` `[T, R / 2]` in float32 → rows in the dtype in which heads are rotated."""
    cos, sin = cos.to(dtype), sin.to(dtype)
    return RotaryRows(torch.cat((cos, cos), -1).unsqueeze(1), torch.cat((-sin, sin), -1).unsqueeze(1))


class HeadNorms(NamedTuple):
    """The norms of every query and every key head: scales `[D]`, and how they round, as for `rms_norm`."""

    q: Tensor
    k: Tensor
    eps: float
    offset: bool
    late_rounding: bool


def rotate_heads(qk: Tensor, num_heads: int, rows: RotaryRows, norms: HeadNorms | None) -> Tensor:
    """Norm and rotate the heads of queries and keys together.

    Args:
        qk: `[T, H + Hkv, D]`, queries first; on a GPU the result takes its place.
        num_heads: H.
        rows: what rotates the tokens.
        norms: None has none.

    Returns:
        `[T, H + Hkv, D]` in the dtype of qk.
    """
    scales = (None, None) if norms is None else (norms.q, norms.k)
    if qk.stride(-1) == 1 and kernels.run_on(qk, *rows, *scales):
        from headstart.ops.kernels import rotary

        rotary.rotate_heads_(qk, num_heads, rows, norms)
        return qk
    if norms is not None:
        style = {"offset": norms.offset, "late_rounding": norms.late_rounding}
        q, k = qk[:, :num_heads], qk[:, num_heads:]
        qk = torch.cat((rms_norm(q, norms.q, norms.eps, **style), rms_norm(k, norms.k, norms.eps, **style)), 1)
    # Queries and keys are rotated together: half the operations of rotating each.
    return apply_rotary(qk, rows)


def apply_rotary(x: Tensor, rows: RotaryRows) -> Tensor:
    """Rotate the first R dimensions of every head: `x [T, H, D]` → `[T, H, D]` in x's dtype."""
    rotated_size = rows.cos.shape[-1]
    if rotated_size == x.shape[-1]:
        return _rotate(x, rows)
    return torch.cat((_rotate(x[..., :rotated_size], rows), x[..., rotated_size:]), -1)


def _rotate(x: Tensor, rows: RotaryRows) -> Tensor:
    # Rolling by half the size swaps the halves in one pass; with the signed sine this is three operations.
    swapped = x.roll(x.shape[-1] // 2, -1)
    if rows.cos.dtype == x.dtype:
        return torch.addcmul(x * rows.cos, swapped, rows.sin)
    return (x * rows.cos + swapped * rows.sin).to(x.dtype)


def rerotation(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> RotaryRows:
    """What moves rotated heads to other positions: the division of one rotation by another, factors included.

    Args:
        old: cosines and sines `[T, R / 2]` by which the heads were rotated.
        new: those by which they shall be.

    Returns:
        Rows for `apply_rotary`, in the dtype of the tables (at least float32).
    """
    (cos, sin), (to_cos, to_sin) = old, new
    size = cos.square() + sin.square()
    return rotary_rows((to_cos * cos + to_sin * sin) / size, (to_sin * cos - to_cos * sin) / size, cos.dtype)


def rerotate(x: Tensor, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> Tensor:
    """Move rotated heads `[T, H, D]` from positions of which `old` has the cosines and sines to those of `new`."""
    return apply_rotary(x, rerotation(old, new))


def apply_rotary_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same by its definition: `x [T, H, D]`, `cos`, `sin` `[T, R / 2]` → `[T, H, D]`, in float64."""
    half = cos.shape[-1]
    cos, sin = cos.double().unsqueeze(1), sin.double().unsqueeze(1)
    first, second, rest = x.double().split((half, half, x.shape[-1] - 2 * half), -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1).to(x.dtype)
