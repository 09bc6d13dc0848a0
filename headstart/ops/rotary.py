"""Rotary position embedding: the first and second half of each head are rotated against one another."""

from typing import NamedTuple

import torch
from torch import Tensor


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


def apply_rotary_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same by its definition: `x [T, H, D]`, `cos`, `sin` `[T, R / 2]` → `[T, H, D]`, in float64."""
    half = cos.shape[-1]
    cos, sin = cos.double().unsqueeze(1), sin.double().unsqueeze(1)
    first, second, rest = x.double().split((half, half, x.shape[-1] - 2 * half), -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1).to(x.dtype)
