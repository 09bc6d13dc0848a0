"""The kernels that draw and that make random numbers against the definition and against NumPy."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.ops.kernels import sampling as kernel
from headstart.ops.sampling import draw_reference, uniforms
from tests.ops.draws import assert_drawn_alike, rows_to_draw
from tests.ops.kernels.devices import DEVICE


@settings(max_examples=25, deadline=None)
@given(data=st.data(), size=st.integers(1, 90), candidates=st.sampled_from([16, 64, 128]))
def test_draws_equal_the_definition(data: st.DataObject, size: int, candidates: int) -> None:
    """In blocks smaller than the row, with few and with many candidates."""
    rows = rows_to_draw(data, size)
    logits, *settings = (part.to(DEVICE) for part in rows)
    # As the columns of one array, which do not lie in one piece.
    settings = torch.stack([part.double() for part in settings], 1).unbind(1)
    got = kernel.draw(logits, *settings, block=32, candidates=candidates)
    assert_drawn_alike(got.cpu(), draw_reference(*rows), rows)


@pytest.mark.parametrize("value", [torch.nan, -torch.inf, torch.inf])
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:All-NaN")
def test_a_row_without_numbers_gives_a_token(value: float) -> None:
    settings = (torch.full((2,), number, device=DEVICE) for number in (1.0, 3, 0.5, 0.0))
    points = torch.full((2,), 0.5, dtype=torch.float64, device=DEVICE)
    drawn = kernel.draw(torch.full((2, 40), value, device=DEVICE), *settings, points, block=32, candidates=16)
    assert ((drawn >= 0) & (drawn < 40)).all()


def test_uniforms_are_those_of_numpy() -> None:
    seeds = torch.tensor([0, 1, -1, 2**63 - 1, 123456789, -(2**63)])
    positions = torch.tensor([0, 1, 2, 3, 2**31, 99])
    got = kernel.uniforms(seeds.to(DEVICE), positions.to(DEVICE), 2, 7)
    assert got.tolist() == uniforms(seeds.numpy().astype("uint64"), positions.numpy(), 2, 7).tolist()
