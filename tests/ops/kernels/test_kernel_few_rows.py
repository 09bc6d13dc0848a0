"""Products of few rows by the kernels, in every tiling and with every epilogue, against the plain ops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.ops import few_rows, kernels
from headstart.ops.activation import gated
from headstart.ops.kernels import few_rows as kernel
from headstart.ops.linear import gated_linear, linear, linear_reference
from tests.ops.kernels.devices import DEVICE, random

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")

SMALL = kernel.Config(4, 16, 4, 1)
EVERY = (*kernel.ONE_ROW, *kernel.SEVERAL_ROWS)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, kernel.MOST_ROWS),
    out_features=st.integers(1, 70),
    in_features=st.integers(1, 70),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    bias=st.booleans(),
    onto=st.booleans(),
    even=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_the_reference(rows, out_features, in_features, dtype, bias, onto, even, seed):
    config = kernel.Config(16, 16, 4, 2)
    if rows > 1 and DEVICE == "cpu":
        dtype = torch.float16  # the interpreter's matrix product takes bfloat16 for whole numbers
    if even:
        out_features, in_features = -(-out_features // 16) * 16, -(-in_features // 16) * 16
    x = random(rows, in_features + 3, dtype=dtype, seed=seed)[:, :in_features]
    weight = random(out_features, in_features + 5, dtype=dtype, seed=seed + 1)[:, :in_features]
    b = random(out_features, dtype=dtype, seed=seed + 2) if bias else None
    base = random(rows, out_features, dtype=dtype, seed=seed + 3) if onto else None
    want = linear_reference(x.double(), weight.double(), None if b is None else b.double())
    if base is not None:
        want = want + base.double()
    got = kernel.product(x, weight, b, base, config)
    assert got.shape == (rows, out_features) and got.dtype == dtype
    assert base is None or got.data_ptr() == base.data_ptr()
    magnitude = x.double().abs() @ weight.double().abs().t() + 3
    assert ((got.double() - want).abs() / magnitude).max() < torch.finfo(dtype).eps


@pytest.mark.parametrize("config", EVERY)
def test_every_tiling(config):
    rows = 1 if config in kernel.ONE_ROW else 5
    x, weight = random(rows, 2100, dtype=torch.float16), random(75, 2100, dtype=torch.float16, seed=1)
    want = linear_reference(x.double(), weight.double())
    got = kernel.product(x, weight, None, None, config)
    torch.testing.assert_close(got.double(), want, rtol=2e-3, atol=0.05)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh", "gelu", "relu"])
def test_gated(bias, activation):
    x, weight = random(1, 50, dtype=torch.float16), random(2 * 21, 50, dtype=torch.float16, seed=1)
    b = random(42, dtype=torch.float16, seed=2) if bias else None
    want = gated(linear_reference(x.double(), weight.double(), None if b is None else b.double()), activation)
    got = kernel.gated_product(x, weight, b, activation, SMALL)
    torch.testing.assert_close(got.double(), want, rtol=4e-3, atol=1e-2)


def test_what_was_chosen_computes(monkeypatch):
    """The op takes the tiling that was chosen for the shape, and the plain product where none was."""
    used = []
    monkeypatch.setattr(kernels, "run_on", lambda *tensors: True)
    monkeypatch.setattr(few_rows, "choice", lambda x, weight: used.append(x.shape[0]) or SMALL)
    x, weight = random(1, 40, dtype=torch.float16), random(6, 40, dtype=torch.float16, seed=1)
    want = linear_reference(x.double(), weight.double())
    torch.testing.assert_close(linear(x, weight).double(), want, rtol=2e-3, atol=0.01)
    onto = torch.ones(1, 6, dtype=torch.float16, device=x.device)
    torch.testing.assert_close(linear(x, weight, None, onto).double(), want + 1, rtol=2e-3, atol=0.01)
    torch.testing.assert_close(
        gated_linear(x, weight, None, "silu").double(), gated(want, "silu"), rtol=4e-3, atol=0.02
    )
    assert used == [1, 1, 1]


def test_what_no_kernel_takes(monkeypatch):
    """More rows, other dtypes, rows that do not lie together."""
    monkeypatch.setattr(kernels, "run_on", lambda *tensors: True)
    weight = random(6, 40, dtype=torch.float16)
    assert few_rows.takes(random(16, 40, dtype=torch.float16), weight, None, None)
    assert not few_rows.takes(random(17, 40, dtype=torch.float16), weight, None, None)
    assert not few_rows.takes(random(0, 40, dtype=torch.float16), weight, None, None)
    assert not few_rows.takes(random(1, 40), weight.float(), None, None)
    assert not few_rows.takes(random(1, 40, dtype=torch.bfloat16), weight, None, None)
    assert not few_rows.takes(random(40, 2, dtype=torch.float16).t(), weight, None, None)


def test_the_bounds_agree():
    assert few_rows.MOST_ROWS == kernel.MOST_ROWS
