"""Rotary embedding against its definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headstart.ops.rotary import apply_rotary, apply_rotary_reference, rerotate, rotary_rows


def angles(rows: int, half: int, seed: int) -> tuple[Tensor, Tensor]:
    drawn = torch.randn(rows, half, generator=torch.Generator().manual_seed(seed)) * 10
    return drawn.cos(), drawn.sin()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 7),
    heads=st.integers(1, 5),
    half=st.integers(1, 40),
    rest=st.integers(0, 9),
    seed=st.integers(0, 1000),
)
def test_equals_its_definition(rows: int, heads: int, half: int, rest: int, seed: int) -> None:
    cos, sin = angles(rows, half, seed)
    x = torch.randn(rows, heads + 1, 2 * half + rest, generator=torch.Generator().manual_seed(seed))[:, :heads]
    got = apply_rotary(x, rotary_rows(cos, sin, torch.float32))
    torch.testing.assert_close(got, apply_rotary_reference(x, cos, sin), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows_dtype", [torch.bfloat16, torch.float32])
def test_keeps_the_dtype_of_the_heads(rows_dtype: torch.dtype) -> None:
    cos, sin = angles(5, 8, 0)
    x = torch.randn(5, 3, 16).bfloat16()
    got = apply_rotary(x, rotary_rows(cos, sin, rows_dtype))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, apply_rotary_reference(x, cos, sin), rtol=0.02, atol=0.02)


def test_products_depend_on_distance_alone() -> None:
    frequencies = 1.0 / 100.0 ** (torch.arange(8) / 8)
    q, k = torch.randn(1, 2, 16), torch.randn(1, 2, 16)

    def score(query_at: int, key_at: int) -> Tensor:
        turned = []
        for x, at in ((q, query_at), (k, key_at)):
            phase = at * frequencies[None]
            turned.append(apply_rotary(x, rotary_rows(phase.cos(), phase.sin(), torch.float32)))
        return (turned[0] * turned[1]).sum(-1)

    torch.testing.assert_close(score(9, 4), score(105, 100), rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 7), half=st.integers(1, 20), rest=st.integers(0, 5), factor=st.floats(0.5, 2))
def test_rotated_heads_move_to_other_positions(rows: int, half: int, rest: int, factor: float) -> None:
    """As if they had been rotated there at once, whatever factor each of the two has."""
    old, new = ([part.double() for part in angles(rows, half, seed)] for seed in (1, 2))
    new = [part * factor for part in new]
    x = torch.randn(rows, 3, 2 * half + rest, dtype=torch.float64)
    moved = rerotate(apply_rotary_reference(x, *old), (old[0], old[1]), (new[0], new[1]))
    torch.testing.assert_close(moved, apply_rotary_reference(x, *new), rtol=1e-12, atol=1e-12)
