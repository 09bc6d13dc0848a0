"""Cases of the benchmark of single ops that are about weights: in eight bits, and of experts."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.evaluation.ops_shapes import OURS, PLAIN, OpCase, OpShapes, plain_gated
from headstart.ops.activation import gated
from headstart.ops.moe import mix_experts
from headstart.ops.quantized import QUANTIZATIONS, QuantizedWeight, dequantize, quantize, quantized_linear


def quantized_cases(shapes: OpShapes) -> Iterator[OpCase]:
    """The largest product of a layer with a weight in eight bits, beside the one that it takes the place of."""
    m = shapes.model
    out = 2 * m.ffn

    def inputs(rows: int, kind: str) -> tuple[Tensor, ...]:
        weight = shapes.weight(out, m.hidden)
        # What is right is the product with the rounded weight; the wide one holds the same numbers, nearly.
        held = quantize(weight, kind)
        return shapes.random(rows, m.hidden), *held, dequantize(held, shapes.dtype)

    def ours(x: Tensor, values: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
        return quantized_linear(x, QuantizedWeight(values, scale))

    for kind in QUANTIZATIONS:
        for rows in shapes.rows:
            yield OpCase(
                f"linear {kind}",
                f"{rows} x {m.hidden} → {out}",
                partial(inputs, rows, kind),
                {OURS: ours, f"{PLAIN} {str(shapes.dtype).removeprefix('torch.')}": lambda x, v, s, w: F.linear(x, w)},
                lambda x, v, s, w: F.linear(x, v.double() * s.double()[:, None]),
                2.0 * rows * out * m.hidden,
                out * m.hidden + shapes.item * rows * (out + m.hidden),
            )


# Experts, how many of them a token visits, and the inner size of each as a share of the dense one's.
_EXPERTS = (8, 2, 1.0), (128, 8, 0.0625)


def moe_cases(shapes: OpShapes) -> Iterator[OpCase]:
    """A mixture of few large experts (Mixtral's) and of many small ones, with loads that are even in the mean."""
    hidden = shapes.model.hidden

    def inputs(rows: int, experts: int, top_k: int, inner: int) -> tuple[Tensor, ...]:
        mixing, chosen = torch.rand(rows, experts, device=shapes.device).topk(top_k, -1)
        gate_up = torch.stack([shapes.weight(2 * inner, hidden).contiguous() for _ in range(experts)])
        down = torch.stack([shapes.weight(hidden, inner).contiguous() for _ in range(experts)])
        return shapes.random(rows, hidden), mixing, chosen, gate_up, down

    for experts, top_k, share in _EXPERTS:
        inner = max(16, int(shapes.model.ffn * share) // 16 * 16)
        for rows in shapes.rows:
            expected_experts = experts * (1 - (1 - top_k / experts) ** rows)
            yield OpCase(
                "experts",
                f"{rows} x {hidden}, {top_k} of {experts} x {inner}",
                partial(inputs, rows, experts, top_k, inner),
                {OURS: partial(mix_experts, activation="silu"), **_grouped_by_library(shapes)},
                _experts_one_by_one,
                6.0 * rows * top_k * inner * hidden,
                shapes.item * (expected_experts * 3 * inner * hidden + rows * 2 * hidden),
            )


def _grouped_by_library(shapes: OpShapes) -> dict[str, Callable[..., Tensor]]:
    """The same in PyTorch's grouped product, which knows bfloat16 on a GPU."""
    if shapes.device.type != "cuda" or shapes.dtype != torch.bfloat16:
        return {}
    grouped_mm = torch._grouped_mm  # pyright: ignore[reportPrivateImportUsage]

    def run(x: Tensor, mixing: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        ids, order = chosen.flatten().sort()
        every = torch.arange(gate_up.shape[0], device=x.device)
        ends = torch.searchsorted(ids, every, right=True).int()
        inner = gated(grouped_mm(x[order // chosen.shape[1]], gate_up.transpose(1, 2), offs=ends), "silu")
        out = grouped_mm(inner, down.transpose(1, 2), offs=ends) * mixing.flatten()[order, None]
        parts = torch.empty_like(x).repeat(chosen.shape[1], 1).index_copy_(0, order, out.to(x.dtype))
        return parts.view(*chosen.shape, -1).sum(1)

    return {"torch._grouped_mm": run}


def _experts_one_by_one(x: Tensor, mixing: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for expert in range(len(gate_up)):
        token, choice = (chosen == expert).nonzero(as_tuple=True)
        inner = plain_gated(F.linear(x[token], gate_up[expert]))
        y.index_add_(0, token, F.linear(inner, down[expert]) * mixing[token, choice, None])
    return y
