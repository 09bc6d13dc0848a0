"""Mixture of experts: routing by hand, and grouping against every expert reading every token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headstart.ops.moe import empty_experts, mix_experts, mix_experts_reference, route


def weights(experts: int, inner: int, hidden: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    gate_up, down = (
        empty_experts(experts, 2 * inner, hidden, torch.float32),
        empty_experts(experts, hidden, inner, torch.float32),
    )
    gate_up.copy_(torch.randn(gate_up.shape, generator=generator) * hidden**-0.5)
    down.copy_(torch.randn(down.shape, generator=generator) * inner**-0.5)
    return gate_up, down


@settings(max_examples=50, deadline=None)
@given(
    tokens=st.integers(1, 20),
    experts=st.integers(1, 9),
    inner=st.integers(1, 7),
    hidden=st.integers(1, 9),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_grouping_equals_its_definition(
    tokens: int, experts: int, inner: int, hidden: int, seed: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, experts))
    gate_up, down = weights(experts, inner, hidden, seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, hidden, generator=generator)
    logits = torch.randn(tokens, experts, generator=generator)
    mixing, chosen = route(logits, top_k, renormalise=data.draw(st.booleans()), keep_float32=True)
    got = mix_experts(x, mixing, chosen, gate_up, down, "silu")
    expected = mix_experts_reference(x, mixing, chosen, gate_up, down, "silu")
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_tokens_that_all_choose_one_expert() -> None:
    gate_up, down = weights(4, 3, 5, 0)
    x = torch.randn(6, 5)
    mixing, chosen = torch.ones(6, 1), torch.full((6, 1), 2)
    got = mix_experts(x, mixing, chosen, gate_up, down, "silu")
    torch.testing.assert_close(got, mix_experts_reference(x, mixing, chosen, gate_up, down, "silu"))


def test_routing_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]))
    mixing, chosen = route(logits, 2, renormalise=False, keep_float32=True)
    assert chosen.tolist() == [[0, 1], [2, 1]]
    torch.testing.assert_close(mixing, torch.tensor([[0.5, 0.3], [0.7, 0.2]]))
    mixing, _ = route(logits, 2, renormalise=True, keep_float32=True)
    torch.testing.assert_close(mixing, torch.tensor([[0.625, 0.375], [7 / 9, 2 / 9]]))


@pytest.mark.parametrize("keep_float32", [True, False])
def test_dtypes(keep_float32: bool) -> None:
    gate_up, down = (part.bfloat16() for part in weights(3, 4, 6, 0))
    x = torch.randn(5, 6).bfloat16()
    mixing, chosen = route(torch.randn(5, 3).bfloat16(), 2, renormalise=True, keep_float32=keep_float32)
    assert mixing.dtype == (torch.float32 if keep_float32 else torch.bfloat16)
    assert mix_experts(x, mixing, chosen, gate_up, down, "silu").dtype == torch.bfloat16


def test_gradients_reach_inputs_weights_and_router() -> None:
    gradients = []
    for function in (mix_experts, mix_experts_reference):
        gate_up, down = (part.requires_grad_() for part in weights(3, 4, 6, 1))
        x = torch.linspace(-1, 1, 30).view(5, 6).requires_grad_()
        logits = torch.linspace(-2, 2, 15).view(5, 3).sin().requires_grad_()
        mixing, chosen = route(logits, 2, renormalise=True, keep_float32=True)
        function(x, mixing, chosen, gate_up, down, "silu").square().sum().backward()
        gradients.append([part.grad for part in (x, logits, gate_up, down)])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
