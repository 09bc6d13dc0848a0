"""Draws against their definition, and random numbers against NumPy's own generator, bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.ops.sampling import draw, draw_reference, filtered, uniforms
from tests.ops.draws import assert_drawn_alike, rows_to_draw


@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.integers(1, 60))
def test_draws_equal_the_definition(data: st.DataObject, size: int) -> None:
    rows = rows_to_draw(data, size)
    assert_drawn_alike(draw(*rows), draw_reference(*rows), rows)


def test_shares_of_many_draws_are_those_of_what_is_left() -> None:
    """With evenly spread points, each token is drawn as often as its probability says."""
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    own = [torch.tensor([value]) for value in (0.8, 20, 0.9, 0.05)]
    count = 20_000
    points = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = draw(logits.expand(count, -1), *(value.expand(count) for value in own), points)
    shares = torch.bincount(drawn, minlength=50) / count
    torch.testing.assert_close(shares, filtered(logits, *own)[0], rtol=0, atol=2 / count)


def test_a_row_without_numbers_gives_a_token() -> None:
    rows = torch.full((3, 7), torch.nan), *(torch.full((3,), value) for value in (1.0, 3, 0.5, 0.0))
    drawn = draw(*rows, torch.full((3,), 0.5, dtype=torch.float64))
    assert ((drawn >= 0) & (drawn < 7)).all()


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**31), st.integers(0, 1000)), min_size=1, max_size=20
    ),
    purpose=st.integers(0, 3),
)
def test_uniforms_are_those_of_numpy(rows: list[tuple[int, int, int]], purpose: int) -> None:
    """Of lists too, with seeds on both sides of 2^63."""
    expected = [
        np.random.Generator(np.random.Philox(key=seed, counter=[position, purpose, number, 0])).random()
        for seed, position, number in rows
    ]
    seeds, positions, numbers = map(list, zip(*rows, strict=True))
    assert uniforms(seeds, positions, purpose, numbers).tolist() == expected
    assert uniforms(np.array(seeds, dtype=np.uint64), positions, purpose, numbers[0])[0] == expected[0]
    assert len(uniforms([], [], purpose)) == 0


@pytest.mark.parametrize("right", [True, False])
def test_a_kernel_that_draws_wrongly_is_not_used(right: bool, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """Whatever compiled it: before its first draw a kernel is held to the plain path."""
    pytest.importorskip("triton")
    from headstart.ops import kernels, sampling
    from headstart.ops.kernels import sampling as kernel

    used = []

    def pretended(logits, *settings):
        used.append(len(logits))
        drawn = sampling._draw_plainly(logits, *settings)
        return drawn if right else (drawn + 1) % logits.shape[1]

    monkeypatch.setattr(kernels, "run_on", lambda *tensors: True)
    monkeypatch.setattr(kernel, "draw", pretended)
    sampling._kernel_agrees.cache_clear()
    try:
        logits = torch.randn(5, 50)
        settings = [torch.full((5,), value, dtype=torch.float64) for value in (1.0, 0, 0.8, 0.0, 0.3)]
        drawn = sampling.draw(logits, *settings)
        assert torch.equal(drawn, sampling._draw_plainly(logits, *settings))
        assert used[1:] == ([5] if right else [])
        assert ("is wrong on this GPU" in caplog.text) == (not right)
    finally:
        sampling._kernel_agrees.cache_clear()
