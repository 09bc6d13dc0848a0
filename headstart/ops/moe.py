"""Mixture of experts: each token is sent to a few feed-forward experts and their outputs are mixed."""

import torch
from torch import Tensor

from headstart.ops import kernels
from headstart.ops.activation import gated
from headstart.ops.linear import empty_weight, linear
from headstart.ops.quantized import QuantizedWeight, quantized_linear


def empty_experts(
    experts: int, out_features: int, in_features: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Tensor:
    """Uninitialised weights `[experts, out, in]`, each in the memory order of `empty_weight`."""
    one = empty_weight(out_features, in_features, dtype, device)
    return torch.empty_strided((experts, *one.shape), (one.numel(), *one.stride()), dtype=dtype, device=device)


def route(logits: Tensor, top_k: int, *, renormalise: bool, keep_float32: bool) -> tuple[Tensor, Tensor]:
    """Choose each token's experts by softmax in float32.

    Args:
        logits: `[T, E]`.
        top_k: experts per token, K.
        renormalise: the K weights are divided by their sum.
        keep_float32: mix in float32 (Mixtral) rather than in the dtype of the logits.

    Returns:
        weights `[T, K]` and expert numbers `[T, K]`.
    """
    weights, experts = logits.softmax(-1, dtype=torch.float32).topk(top_k, -1)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return (weights if keep_float32 else weights.to(logits.dtype)), experts


def mix_experts(
    x: Tensor,
    weights: Tensor,
    experts: Tensor,
    gate_up: Tensor | QuantizedWeight,
    down: Tensor | QuantizedWeight,
    activation: str,
    onto: Tensor | None = None,
) -> Tensor:
    """Send every token through its experts, each expert reading all of its tokens at once.

    On a GPU nothing waits for the device, and only the weights of experts that were chosen are read.

    Args:
        x: `[T, hidden]`.
        weights: `[T, K]`, from `route`.
        experts: `[T, K]`.
        gate_up: `[E, 2 I, hidden]`, the gate first.
        down: `[E, hidden, I]`, quantised as `gate_up` is or like it not at all.
        activation: a name in `headstart.ops.activation.ACTIVATIONS`.
        onto: `[T, hidden]`, added to the result.

    Returns:
        `[T, hidden]`.
    """
    if isinstance(gate_up, QuantizedWeight) and isinstance(down, QuantizedWeight):
        values, scales = (gate_up.values, down.values), (gate_up.scale, down.scale)
    else:
        assert isinstance(gate_up, Tensor) and isinstance(down, Tensor)
        values, scales = (gate_up, down), None
    if _fit_the_kernel(x, *values, onto, scales is not None) and kernels.run_on(x, weights, experts, *values, onto):
        from headstart.ops.kernels import moe as fused

        return fused.mix(x, weights.contiguous(), experts.contiguous(), *values, activation, onto, scales)
    mixed = _mix_one_by_one(x, weights, experts, gate_up, down, activation)
    return mixed if onto is None else onto + mixed


def _fit_the_kernel(x: Tensor, gate_up: Tensor, down: Tensor, onto: Tensor | None, quantized: bool) -> bool:
    """Some rows, numbers of each that lie beside one another, and one dtype."""
    lies = x.stride(1) == gate_up.stride(2) == down.stride(2) == 1 and (onto is None or onto.is_contiguous())
    return len(x) > 0 and lies and (quantized or x.dtype == gate_up.dtype == down.dtype)


def _mix_one_by_one(
    x: Tensor,
    weights: Tensor,
    experts: Tensor,
    gate_up: Tensor | QuantizedWeight,
    down: Tensor | QuantizedWeight,
    activation: str,
) -> Tensor:
    """`mix_experts` by a loop over the experts, whose loads the host has to know."""
    top_k = experts.shape[-1]
    order = experts.flatten().argsort(stable=True)
    counts = experts.flatten().bincount(minlength=_count(gate_up)).tolist()
    tokens = order // top_k
    grouped = x[tokens]
    outputs = []
    start = 0
    for expert, count in enumerate(counts):
        if count:
            rows = grouped[start : start + count]
            inner = gated(_product(rows, gate_up, expert), activation)
            outputs.append(_product(inner, down, expert))
            start += count
    scaled = torch.cat(outputs) * weights.flatten()[order, None]
    return torch.zeros_like(x).index_add(0, tokens, scaled.to(x.dtype))


def _count(weight: Tensor | QuantizedWeight) -> int:
    return (weight.values if isinstance(weight, QuantizedWeight) else weight).shape[0]


def _product(x: Tensor, weight: Tensor | QuantizedWeight, expert: int) -> Tensor:
    """`[T, in]` times one expert's weight."""
    if isinstance(weight, QuantizedWeight):
        return quantized_linear(x, QuantizedWeight(weight.values[expert], weight.scale[expert]))
    return linear(x, weight[expert])


def mix_experts_reference(
    x: Tensor, weights: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor, activation: str
) -> Tensor:
    """The same by its definition: every expert reads every token, and what was not chosen weighs nothing."""
    mixed = torch.zeros(x.shape[0], gate_up.shape[0], dtype=weights.dtype, device=x.device)
    mixed = mixed.scatter(1, experts, weights)
    inner = gated(torch.einsum("th,eih->eti", x, gate_up), activation)
    return torch.einsum("eti,ehi,te->th", inner, down, mixed.to(x.dtype))
