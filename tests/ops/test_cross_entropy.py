"""The fused loss against the definition in float64: value and gradients, chunk by chunk."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headstart.ops import cross_entropy
from headstart.ops.cross_entropy import IGNORED, linear_cross_entropy, linear_cross_entropy_reference


def example(rows: int, vocab: int, ignored: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """`hidden [N, 12]`, `weight [V, 12]`, `targets [N]`."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 12, generator=generator)
    weight = torch.randn(vocab, 12, generator=generator)
    targets = torch.randint(vocab, (rows,), generator=generator)
    targets[torch.rand(rows, generator=generator) < ignored] = IGNORED
    return hidden, weight, targets


def by_definition(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients by autograd in float64, from PyTorch's own cross entropy."""
    wide, table = hidden.double().requires_grad_(), weight.double().requires_grad_()
    logits = wide @ table.t()
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    return loss.detach(), *torch.autograd.grad(loss, (wide, table))


def fused(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None, factor: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = linear_cross_entropy(hidden, weight, targets, softcap)
    return loss.detach(), *torch.autograd.grad(loss * factor, (hidden, weight))


@given(
    rows=st.integers(1, 40),
    vocab=st.integers(2, 50),
    softcap=st.sampled_from([None, 5.0, 30.0]),
    ignored=st.sampled_from([0.0, 0.4, 1.0]),
    chunk=st.sampled_from([1, 3, 8, 100]),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_definition(
    rows: int, vocab: int, softcap: float | None, ignored: float, chunk: int, seed: int
) -> None:
    found = example(rows, vocab, ignored, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "_MOST_ROWS", chunk)
        ours = fused(*found, softcap)
    for value, expected in zip(ours, by_definition(*found, softcap), strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(linear_cross_entropy_reference(*found, softcap), by_definition(*found, softcap)[0])


def test_a_large_vocabulary_takes_fewer_rows_at_once() -> None:
    assert cross_entropy.chunk_rows(50) == 1 << 15
    assert cross_entropy.chunk_rows(1 << 17) * (1 << 17) <= 1 << 29
    assert cross_entropy.chunk_rows(1 << 40) == 1


def test_nothing_to_predict_is_a_loss_of_zero_that_moves_nothing() -> None:
    hidden, weight, targets = example(5, 9, ignored=1.0)
    loss, by_hidden, by_weight = fused(hidden, weight, targets)
    assert loss == 0 and not by_hidden.any() and not by_weight.any()
    assert linear_cross_entropy(hidden[:0], weight, targets[:0]) == 0


def test_gradients_follow_what_the_loss_is_multiplied_with() -> None:
    found = example(7, 11)
    for once, thrice in zip(fused(*found)[1:], fused(*found, factor=3.0)[1:], strict=True):
        torch.testing.assert_close(3 * once, thrice)


def test_logits_that_overflow_exp_stay_finite() -> None:
    hidden, weight, targets = example(6, 8, ignored=0.0)
    found = fused(hidden * 1000, weight * 10, targets)
    expected = by_definition(hidden * 1000, weight * 10, targets)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("softcap", [None, 10.0])
def test_under_autocast_the_products_are_in_bfloat16(softcap: float | None) -> None:
    hidden, weight, targets = example(300, 40)
    with torch.autocast("cpu", torch.bfloat16):
        found = fused(hidden, weight, targets, softcap)
    assert [value.dtype for value in found] == [torch.float32] * 3
    for ours, theirs in zip(found, by_definition(hidden, weight, targets, softcap), strict=True):
        # Eight bits of precision, on each of the 300 rows that are summed.
        assert (ours.double() - theirs).norm() <= 0.02 * theirs.norm()
        assert not torch.equal(ours.double(), theirs)


def test_what_is_not_trained_gets_no_gradient() -> None:
    hidden, weight, targets = example(6, 8)
    frozen = hidden.clone().requires_grad_()
    linear_cross_entropy(frozen, weight, targets).backward()
    assert frozen.grad is not None and weight.grad is None
    torch.testing.assert_close(frozen.grad, by_definition(hidden, weight, targets)[1].float())
    table = weight.clone().requires_grad_()
    linear_cross_entropy(hidden, table, targets).backward()
    assert table.grad is not None
    torch.testing.assert_close(table.grad, by_definition(hidden, weight, targets)[2].float())


def test_evaluation_computes_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = example(6, 8)
    expected = linear_cross_entropy(hidden, weight, targets)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a gradient was made")

    monkeypatch.setattr(torch, "mm", refuse)
    with torch.no_grad():
        assert linear_cross_entropy(hidden, weight.requires_grad_(), targets) == expected
