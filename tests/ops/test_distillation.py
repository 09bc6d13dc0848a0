"""The divergence of two networks' distributions, and its gradients, against their definition."""

import pytest
import torch

from headstart.ops import distillation
from headstart.ops.distillation import linear_kl_divergence, linear_kl_divergence_reference


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("softcaps", [(None, None), (5.0, None), (5.0, 3.0)], ids=str)
def test_it_equals_its_definition(chunk: int, temperature: float, softcaps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the widths of the two and the rows at once; rows that do not count have no gradient."""
    monkeypatch.setattr(distillation, "chunk_rows", lambda vocab: 2 * chunk)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    hidden, weight = drawn(23, 8).requires_grad_(), drawn(31, 8).requires_grad_()
    teacher = drawn(23, 12), drawn(31, 12)
    counts = torch.rand(23, generator=generator) < 0.7
    settings = {"temperature": temperature, "softcaps": softcaps}
    want = linear_kl_divergence_reference(hidden, weight, *teacher, counts, **settings)
    gradients = torch.autograd.grad(want, (hidden, weight))
    got = linear_kl_divergence(hidden, weight, *teacher, counts, **settings)
    assert got.item() == pytest.approx(want.item(), rel=1e-5)
    for mine, its in zip(torch.autograd.grad(3 * got, (hidden, weight)), gradients, strict=True):
        torch.testing.assert_close(mine, 3 * its.float(), rtol=1e-4, atol=1e-5)
    assert not torch.autograd.grad(linear_kl_divergence(hidden, weight, *teacher, counts, **settings), hidden)[0][
        ~counts
    ].any()


def test_a_student_that_is_its_teacher_learns_nothing() -> None:
    hidden, weight = torch.randn(9, 4), torch.randn(17, 4)
    student = hidden.clone().requires_grad_()
    got = linear_kl_divergence(student, weight, hidden, weight, torch.ones(9, dtype=torch.bool))
    got.backward()
    assert abs(got.item()) < 1e-5
    assert student.grad is not None and student.grad.abs().max() < 1e-6


def test_frozen_weights_get_no_gradient() -> None:
    """And what is not trained costs no memory for one."""
    hidden, weight = torch.randn(9, 4, requires_grad=True), torch.randn(17, 4)
    linear_kl_divergence(hidden, weight, torch.randn(9, 4), weight, torch.ones(9, dtype=torch.bool)).backward()
    assert hidden.grad is not None and weight.grad is None
